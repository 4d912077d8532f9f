// Attention over one KV page, for vectors of any length. Knows no instruction set.
//
// Up to 6 query rows share every K and V vector that is loaded and widened. Each score, and each output element, is one
// chain of fused multiply-adds in order of head dimension or position, so a row's bits do not depend on the tile it is
// in.
#pragma once

#include <cfloat>
#include <type_traits>

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/simd_math.h"

namespace dllama {
namespace {

static_assert(kKeyGroup % kLanes == 0, "a vector of a K page is one dimension of positions of one group");

constexpr int kMaxRows = 6;
constexpr size_t kLine = 64;  // bytes of a cache line

template <typename Element>
constexpr bool kHasScales = std::is_same_v<Element, int8_t>;

// Scales of the positions of a page, which lie behind its quants.
KERNEL_INLINE const float* scales_of(const int8_t* page, size_t head_dim) {
  return reinterpret_cast<const float*>(page + kPageSize * head_dim);
}

// Vectors side by side in a tile of R rows: as many sums as there are registers for, since each multiply-add waits for
// the one before (4 cycles, two a cycle), and every vector of K or V serves all rows.
constexpr int vectors_for(int num_rows) {
  return num_rows * 4 + 4 < kRegisters ? 4 : 2;
}

// Asks for the lines of the next page that lie where `bytes` are read of this one.
template <size_t bytes>
KERNEL_INLINE void look_ahead(const char* next) {
  KERNEL_UNROLL
  for (size_t i = 0; i < bytes; i += kLine) prefetch(next + i);
}

// The rows of one tile.
struct Tile {
  float weights[kMaxRows][kPageSize];  // scores, until softmax() turns those below `valid` into exponentials
  float rescale[kMaxRows];             // of what the row has summed so far
  uint32_t valid[kMaxRows];
  uint32_t min_valid, max_valid;
  const float* q;  // [R, head_dim]
  float* acc;      // [R, head_dim]
  size_t head_dim;
  const char *next_k, *next_v;
};

template <int R, int kVectors>
KERNEL_INLINE void clear(F32xN (&sums)[R][kVectors]) {
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    KERNEL_UNROLL
    for (int i = 0; i < kVectors; i++) sums[r][i] = zeros();
  }
}

// weights[r][p] = q[r] . K[p] for all positions below max_valid, and some beyond, which stay in lanes of their own.
template <int R, typename Element>
KERNEL_INLINE void score(Tile& tile, const Element* k_page) {
  constexpr int kVectors = vectors_for(R);
  constexpr size_t kBytes = kVectors * kLanes * sizeof(Element);
  const size_t group_size = tile.head_dim * kKeyGroup;
  const char* next = tile.next_k;
  for (size_t p = 0; p < tile.max_valid; p += kVectors * kLanes) {
    F32xN sums[R][kVectors];
    clear(sums);
    const Element* keys = k_page + p * tile.head_dim;
    for (size_t d = 0; d < tile.head_dim; d++, keys += kKeyGroup, next += kBytes) {
      look_ahead<kBytes>(next);
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
      for (int i = 0; i < kVectors; i++) {
        const size_t at = p + i * kLanes;
        if constexpr (kHasScales<Element>) sums[r][i] = mul(sums[r][i], load(scales_of(k_page, tile.head_dim) + at));
        store(tile.weights[r] + at, sums[r][i]);
      }
    }
  }
}

// Turns the scores of one row into exponentials relative to its new maximum, times the scales of the values if these have
// some. Positions from `valid` on are replaced before anything is computed from them: whatever the page holds there, it
// cannot reach the row.
template <typename Element>
KERNEL_INLINE void softmax(Tile& tile, int row, const Element* v_page, float& row_max, float& row_sum) {
  float* weights = tile.weights[row];
  const size_t valid = tile.valid[row];

  F32xN maxima = all(row_max);
  for (size_t p = 0; p < valid; p += kLanes) {
    F32xN scores = load(weights + p);
    if (valid - p < kLanes) {
      scores = keep_first(scores, valid - p, all(-__builtin_inff()));
      store(weights + p, scores);
    }
    maxima = max(maxima, scores);
  }
  const float new_max = max_lanes(maxima);

  F32xN sums = zeros();
  for (size_t p = 0; p < valid; p += kLanes) {
    const F32xN e = exp(sub(load(weights + p), all(new_max)));
    sums = add(sums, e);
    if constexpr (kHasScales<Element>) {
      store(weights + p, mul(e, load(scales_of(v_page, tile.head_dim) + p)));
    } else {
      store(weights + p, e);
    }
  }
  tile.rescale[row] = first_lane(exp(all(row_max - new_max)));  // 0 on the first page: exp(-inf)
  row_sum = row_sum * tile.rescale[row] + sum_lanes(sums);
  row_max = new_max;
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
    look_ahead<kBytes>(next);
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

template <int R, typename Element>
void attend_tile(const AttentionRows& rows, size_t first, const Element* k_page, const Element* v_page) {
  Tile tile;
  tile.head_dim = rows.head_dim;
  tile.q = rows.q + first * rows.head_dim;
  tile.acc = rows.acc + first * rows.head_dim;
  // Without a next page this one, which is in the caches then: no test in the loops.
  tile.next_k = static_cast<const char*>(rows.next_k != nullptr ? rows.next_k : k_page);
  tile.next_v = static_cast<const char*>(rows.next_v != nullptr ? rows.next_v : v_page);
  tile.min_valid = kPageSize;
  tile.max_valid = 0;
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    const uint32_t valid = rows.valid[first + r];
    tile.valid[r] = valid;
    if (valid < tile.min_valid) tile.min_valid = valid;
    if (valid > tile.max_valid) tile.max_valid = valid;
  }
  if (tile.max_valid == 0) return;

  score<R>(tile, k_page);
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    if (tile.valid[r] > 0) softmax(tile, r, v_page, rows.max[first + r], rows.sum[first + r]);
  }
  constexpr int kVectors = vectors_for(R);
  size_t d = 0;
  for (; d + kVectors * kLanes <= rows.head_dim; d += kVectors * kLanes) mix<R, kVectors>(tile, v_page, d, kLanes);
  for (; d + kLanes <= rows.head_dim; d += kLanes) mix<R, 1>(tile, v_page, d, kLanes);
  if (d < rows.head_dim) mix<R, 1>(tile, v_page, d, rows.head_dim - d);
}

// As few passes over the page as there can be, about equal.
template <typename Element>
void attend(const AttentionRows& rows, const Element* k_page, const Element* v_page) {
  constexpr decltype(&attend_tile<1, Element>) kTiles[kMaxRows] = {
      attend_tile<1, Element>, attend_tile<2, Element>, attend_tile<3, Element>,
      attend_tile<4, Element>, attend_tile<5, Element>, attend_tile<6, Element>};
  size_t passes = (rows.rows + kMaxRows - 1) / kMaxRows;
  for (size_t row = 0; row < rows.rows; passes--) {
    const size_t n = (rows.rows - row + passes - 1) / passes;
    kTiles[n - 1](rows, row, k_page, v_page);
    row += n;
  }
}

// Where dimension 0 of a position lies in a K page; the others follow kKeyGroup elements apart.
template <typename Element>
KERNEL_INLINE Element* key_at(Element* k_page, size_t head_dim, size_t slot) {
  return k_page + slot / kKeyGroup * head_dim * kKeyGroup + slot % kKeyGroup;
}

// Calls use(d, narrow, n) for the next n <= kLanes values of a row from dimension d on, times `factor`, as Elements.
template <typename Element, typename Use>
KERNEL_INLINE void narrow_row(const float* x, size_t head_dim, float factor, const Use& use) {
  for (size_t d = 0; d < head_dim; d += kLanes) {
    const size_t left = head_dim - d < kLanes ? head_dim - d : kLanes;
    Element narrow[kLanes];
    store(narrow, mul(load(x + d, left), all(factor)));
    use(d, narrow, left);
  }
}

template <typename Element>
KERNEL_INLINE void scatter_key(const float* k, size_t head_dim, size_t slot, float factor, Element* k_page) {
  Element* out = key_at(k_page, head_dim, slot);
  narrow_row<Element>(k, head_dim, factor, [&](size_t d, const Element* narrow, size_t n) {
    for (size_t i = 0; i < n; i++) out[(d + i) * kKeyGroup] = narrow[i];
  });
}

template <typename Element>
void store_key(const float* k, size_t head_dim, size_t slot, Element* k_page) {
  scatter_key(k, head_dim, slot, 1.0f, k_page);
}

// Sets the scale of a position and returns what to multiply its values with.
KERNEL_INLINE float set_scale(const float* x, size_t head_dim, size_t slot, int8_t* page) {
  F32xN amax = zeros();
  for (size_t d = 0; d < head_dim; d += kLanes) {
    const F32xN v = load(x + d, head_dim - d);
    amax = max(max(v, sub(zeros(), v)), amax);
  }
  const float scale = max_lanes(amax) / 127.0f;
  std::memcpy(page + kPageSize * head_dim + slot * sizeof(scale), &scale, sizeof(scale));
  return scale < FLT_MIN ? 0.0f : 1.0f / scale;
}

void store_key_q80(const float* k, size_t head_dim, size_t slot, int8_t* k_page) {
  scatter_key(k, head_dim, slot, set_scale(k, head_dim, slot, k_page), k_page);
}

void store_value_q80(const float* v, size_t head_dim, size_t slot, int8_t* v_page) {
  int8_t* out = v_page + slot * head_dim;
  narrow_row<int8_t>(v, head_dim, set_scale(v, head_dim, slot, v_page),
                     [&](size_t d, const int8_t* narrow, size_t n) { std::memcpy(out + d, narrow, n); });
}

KERNEL_INLINE void install_attention(Kernels& table) {
  table.store_key_f16 = store_key<uint16_t>;
  table.store_key_f32 = store_key<float>;
  table.store_key_q80 = store_key_q80;
  table.store_value_q80 = store_value_q80;
  table.attend_f16 = attend<uint16_t>;
  table.attend_f32 = attend<float>;
  table.attend_q80 = attend<int8_t>;
}

}  // namespace
}  // namespace dllama
