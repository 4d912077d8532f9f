// Attention's products with pages of F16 and F32. Knows no instruction set.
//
// Each score, and each output element, is one chain of fused multiply-adds in order of head dimension or position, so a
// row's bits do not depend on the tile it is in.
#pragma once

#include "kernels/simd_attention_tile.h"

namespace dllama {
namespace {

template <int R, int kVectors>
KERNEL_INLINE void clear(F32xN (&sums)[R][kVectors]) {
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    KERNEL_UNROLL
    for (int i = 0; i < kVectors; i++) sums[r][i] = zeros();
  }
}

// weights[r][p] = q[r] . K[p] for all positions below max_valid, and some beyond, which stay in lanes of their own.
template <int R, int kVectors, typename Element>
KERNEL_INLINE void score_groups(Tile& tile, const Element* k_page) {
  constexpr size_t kBytes = kVectors * kLanes * sizeof(Element);
  const size_t group_size = tile.head_dim * kKeyGroup;
  const char* next = tile.next_k;
  for (size_t p = 0; p < tile.max_valid; p += kVectors * kLanes) {
    F32xN sums[R][kVectors];
    clear(sums);
    const Element* keys = k_page + p * tile.head_dim;
    for (size_t d = 0; d < tile.head_dim; d++, keys += kKeyGroup, next += kBytes) {
      if (tile.looks_ahead) look_ahead<kBytes>(next);
      F32xN k[kVectors];
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) {
        constexpr int kPerGroup = kKeyGroup / kLanes;
        k[i] = load(keys + i / kPerGroup * group_size + i % kPerGroup * kLanes);
      }
      KERNEL_UNROLL
      for (int r = 0; r < R; r++) {
        const F32xN q = all_of(tile.q + r * tile.head_dim + d);
        KERNEL_UNROLL
        for (int i = 0; i < kVectors; i++) sums[r][i] = mul_add(q, k[i], sums[r][i]);
      }
    }
    KERNEL_UNROLL
    for (int r = 0; r < R; r++) {
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) store(tile.weights[r] + p + i * kLanes, sums[r][i]);
    }
  }
}

template <int R, typename Element>
KERNEL_INLINE void score(Tile& tile, const Element* k_page) {
  constexpr int kVectors = vectors_for(R);
  if (tile.max_valid > kVectors * kLanes / 2) return score_groups<R, kVectors>(tile, k_page);
  score_groups<R, kVectors / 2>(tile, k_page);  // the beginning of a page, which many of a prompt's rows end in
}

// acc[r][d...] = acc[r][d...] * rescale[r] + weights[r] . V[...][d...] for the dimensions of kVectors vectors, or for
// `left` < kLanes dimensions of one.
template <int R, int kVectors, typename Element>
KERNEL_INLINE void mix(const Tile& tile, const Element* v_page, size_t d, size_t left) {
  F32xN sums[R][kVectors];
  clear(sums);
  const Element* values = v_page + d;
  constexpr size_t kBytes = kVectors * kLanes * sizeof(Element);
  const char* next = tile.next_v + d * kPageSize * sizeof(Element);
  for (size_t p = 0; p < tile.min_valid; p++, values += tile.head_dim, next += kBytes) {
    if (tile.looks_ahead) look_ahead<kBytes>(next);
    F32xN v[kVectors];
    KERNEL_UNROLL
    for (int i = 0; i < kVectors; i++) v[i] = load(values + i * kLanes, left);
    KERNEL_UNROLL
    for (int r = 0; r < R; r++) {
      const F32xN weight = all_of(tile.weights[r] + p);
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) sums[r][i] = mul_add(weight, v[i], sums[r][i]);
    }
  }
  // Positions that only some rows may see. A weight of 0 would not hide them: 0 * NaN is NaN.
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    values = v_page + tile.min_valid * tile.head_dim + d;
    for (size_t p = tile.min_valid; p < tile.valid[r]; p++, values += tile.head_dim) {
      const F32xN weight = all_of(tile.weights[r] + p);
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) sums[r][i] = mul_add(weight, load(values + i * kLanes, left), sums[r][i]);
    }
  }
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    if (tile.valid[r] == 0) continue;
    float* acc = tile.acc + r * tile.head_dim + d;
    for (int i = 0; i < kVectors; i++, acc += kLanes) {
      store(acc, mul_add(load(acc, left), all(tile.rescale[r]), sums[r][i]), left);
    }
  }
}

template <typename Element>
void store_key(const float* k, size_t head_dim, size_t slot, Element* k_page) {
  Element* out = k_page + slot / kKeyGroup * head_dim * kKeyGroup + slot % kKeyGroup;
  for (size_t d = 0; d < head_dim; d += kLanes) {
    const size_t left = head_dim - d;
    Element narrow[kLanes];
    store(narrow, load(k + d, left));
    for (size_t i = 0; i < kLanes && i < left; i++) out[(d + i) * kKeyGroup] = narrow[i];
  }
}

}  // namespace
}  // namespace dllama
