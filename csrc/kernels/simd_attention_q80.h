// Attention's products with pages of Q80, and how these are written. Knows no instruction set.
//
// Queries and weights are int16 here: products of pairs with int8 add up exactly in int32, twice as many at a time as
// floats would, and their rounding is far below that of the pages.
#pragma once

#include <cfloat>

#include "kernels/simd_attention_tile.h"

namespace dllama {
namespace {

// Scales of the positions of a page, which lie behind its quants.
KERNEL_INLINE const float* scales_of(const int8_t* page, size_t head_dim) {
  return reinterpret_cast<const float*>(page + kPageSize * head_dim);
}

template <int R, int kVectors>
KERNEL_INLINE void clear(I32xN (&sums)[R][kVectors]) {
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    KERNEL_UNROLL
    for (int i = 0; i < kVectors; i++) sums[r][i] = int_zeros();
  }
}

// The next kLanes pairs, or the last `left` and zeros.
KERNEL_INLINE PairsxN load_pairs(const int8_t* p, size_t left) {
  if (left >= kLanes) return load_pairs(p);
  int8_t padded[2 * kLanes] = {};
  std::memcpy(padded, p, 2 * left);
  return load_pairs(padded);
}

// As for floats, a pair of dimensions at a time.
template <int R>
KERNEL_INLINE void score(Tile& tile, const int8_t* k_page) {
  constexpr int kVectors = vectors_for(R);
  constexpr size_t kBytes = kVectors * kLanes * 2;
  const size_t group_size = tile.head_dim * kKeyGroup;
  const char* next = tile.next_k;
  for (size_t p = 0; p < tile.max_valid; p += kVectors * kLanes) {
    I32xN sums[R][kVectors];
    clear(sums);
    const int8_t* keys = k_page + p * tile.head_dim;
    for (size_t d = 0; d < tile.head_dim; d += 2, keys += 2 * kKeyGroup, next += kBytes) {
      if (tile.looks_ahead) look_ahead<kBytes>(next);
      PairsxN k[kVectors];
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) {
        constexpr int kPerGroup = kKeyGroup / kLanes;
        k[i] = load_pairs(keys + i / kPerGroup * group_size + i % kPerGroup * 2 * kLanes);
      }
      KERNEL_UNROLL
      for (int r = 0; r < R; r++) {
        const PairsxN q = all_pairs_of(tile.q_quants + r * tile.head_dim + d);
        KERNEL_UNROLL
        for (int i = 0; i < kVectors; i++) sums[r][i] = mul_add_pairs(q, k[i], sums[r][i]);
      }
    }
    KERNEL_UNROLL
    for (int r = 0; r < R; r++) {
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) {
        const size_t at = p + i * kLanes;
        const F32xN scales = mul(all(tile.q_scales[r]), load(scales_of(k_page, tile.head_dim) + at));
        store(tile.weights[r] + at, mul(to_floats(sums[r][i]), scales));
      }
    }
  }
}

// Behind softmax(): the weights of one row times the scales of the values as quants, 0 for what the row may not see.
KERNEL_INLINE void quantize_weights(Tile& tile, int row, const int8_t* v_page) {
  float* weights = tile.weights[row];
  const size_t valid = tile.valid[row];
  F32xN largest = zeros();
  for (size_t p = 0; p < tile.max_valid; p += kLanes) {
    F32xN w = zeros();
    if (p < valid) w = mul(load(weights + p), load(scales_of(v_page, tile.head_dim) + p));
    if (p < valid && valid - p < kLanes) w = keep_first(w, valid - p, zeros());
    store(weights + p, w);
    largest = max(largest, w);
  }
  const float scale = max_lanes(largest) / static_cast<float>(kMaxWeightQuant);
  const float inverse = scale < FLT_MIN ? 0.0f : 1.0f / scale;
  for (size_t p = 0; p < tile.max_valid; p += kLanes) {
    store(tile.weight_quants[row] + p, mul(load(weights + p), all(inverse)));
  }
  tile.weight_scales[row] = scale;
}

// As for floats, a pair of positions at a time.
template <int R, int kVectors>
KERNEL_INLINE void mix(const Tile& tile, const int8_t* v_page, size_t d, size_t left) {
  I32xN sums[R][kVectors];
  clear(sums);
  constexpr size_t kBytes = kVectors * kLanes * 2;
  const int8_t* values = v_page + 2 * d;
  const char* next = tile.next_v + d * kPageSize;
  for (size_t p = 0; p < tile.max_valid; p += 2, values += 2 * tile.head_dim, next += kBytes) {
    if (tile.looks_ahead) look_ahead<kBytes>(next);
    PairsxN v[kVectors];
    KERNEL_UNROLL
    for (int i = 0; i < kVectors; i++) v[i] = load_pairs(values + i * 2 * kLanes, left);
    KERNEL_UNROLL
    for (int r = 0; r < R; r++) {
      const PairsxN weights = all_pairs_of(tile.weight_quants[r] + p);
      KERNEL_UNROLL
      for (int i = 0; i < kVectors; i++) sums[r][i] = mul_add_pairs(weights, v[i], sums[r][i]);
    }
  }
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    if (tile.valid[r] == 0) continue;
    float* acc = tile.acc + r * tile.head_dim + d;
    for (int i = 0; i < kVectors; i++, acc += kLanes) {
      const F32xN mixed = mul(to_floats(sums[r][i]), all(tile.weight_scales[r]));
      store(acc, mul_add(load(acc, left), all(tile.rescale[r]), mixed), left);
    }
  }
}

// Rounds a row to whole multiples, up to `limit`, of the scale that it returns; value d goes to out[place(d)].
template <typename Quant, typename Place>
KERNEL_INLINE float quantize_row(const float* x, size_t head_dim, int limit, Quant* out, const Place& place) {
  F32xN amax = zeros();
  for (size_t d = 0; d < head_dim; d += kLanes) {
    const F32xN v = load(x + d, head_dim - d);
    amax = max(max(v, sub(zeros(), v)), amax);
  }
  const float scale = max_lanes(amax) / static_cast<float>(limit);
  const float inverse = scale < FLT_MIN ? 0.0f : 1.0f / scale;
  for (size_t d = 0; d < head_dim; d += kLanes) {
    Quant quants[kLanes];
    // To -limit..limit, whatever x is.
    const F32xN lowest = all(-static_cast<float>(limit));
    const F32xN product = max(mul(load(x + d, head_dim - d), all(inverse)), lowest);
    store(quants, sub(zeros(), max(sub(zeros(), product), lowest)));
    for (size_t i = 0; i < kLanes && d + i < head_dim; i++) out[place(d + i)] = quants[i];
  }
  return scale;
}

float quantize_query(const float* q, size_t head_dim, int16_t* out) {
  return quantize_row(q, head_dim, kMaxQueryQuant, out, [](size_t d) { return d; });
}

KERNEL_INLINE void set_scale(int8_t* page, size_t head_dim, size_t slot, float scale) {
  std::memcpy(page + kPageSize * head_dim + slot * sizeof(scale), &scale, sizeof(scale));
}

void store_key_q80(const float* k, size_t head_dim, size_t slot, int8_t* k_page) {
  int8_t* out = k_page + slot / kKeyGroup * kKeyGroup * head_dim + slot % kKeyGroup * 2;
  const auto place = [](size_t d) { return d / 2 * 2 * kKeyGroup + d % 2; };
  set_scale(k_page, head_dim, slot, quantize_row(k, head_dim, 127, out, place));
}

void store_value_q80(const float* v, size_t head_dim, size_t slot, int8_t* v_page) {
  int8_t* out = v_page + slot / 2 * 2 * head_dim + slot % 2;
  set_scale(v_page, head_dim, slot, quantize_row(v, head_dim, 127, out, [](size_t d) { return 2 * d; }));
}

}  // namespace
}  // namespace dllama
