// AVX2: attention over one KV page, and writing keys into it.
//
// Up to 4 query rows share every K and V vector that is loaded and widened. Each score, and each output element, is one
// chain of fused multiply-adds in order of head dimension or position, so a row's bits do not depend on the tile it is in.
// Sealed: intrinsics and plain structs only, nothing the linker could share with code for older CPUs.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/avx2_common.h"
#include "kernels/kernels.h"
#include "kernels/levels.h"

namespace dllama {
namespace {

static_assert(kKeyGroup == kLanes, "one vector of a K page is one dimension of one group of positions");

constexpr int kMaxRows = 4;

// Vectors side by side in a tile of R rows: enough independent chains to hide the latency of a multiply-add (4 cycles,
// two a cycle), few enough to stay in 16 registers.
constexpr int vectors_for(int num_rows) { return num_rows <= 2 ? 4 : 2; }

KERNEL_INLINE __m256 load8(const float* p) { return _mm256_loadu_ps(p); }

KERNEL_INLINE __m256 load8(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// `left` elements where fewer than 8 remain, then zeros.
KERNEL_INLINE __m256 load_some(const float* p, size_t left) { return load_floats(p, left); }

KERNEL_INLINE __m256 load_some(const uint16_t* p, size_t left) {
  if (left >= kLanes) return load8(p);
  __m128i half_f16x8 = _mm_setzero_si128();
  std::memcpy(&half_f16x8, p, left * sizeof(uint16_t));
  return _mm256_cvtph_ps(half_f16x8);
}

// The rows of one tile. `weights` are scores until softmax() turns them into exponentials, 0 beyond a row's `valid`.
struct Tile {
  alignas(32) float weights[kMaxRows][kPageSize];
  float rescale[kMaxRows];     // of what the row has summed so far
  uint32_t valid[kMaxRows];
  uint32_t min_valid, max_valid;
  const float* q;              // [R, head_dim]
  float* acc;                  // [R, head_dim]
  size_t head_dim;
};

// tile.weights[r][p] = q[r] . K[p] for positions up to max_valid, and some beyond: those stay in lanes of their own.
template <int R, typename Element>
KERNEL_INLINE void score(Tile& tile, const Element* k_page) {
  constexpr int kVectors = vectors_for(R);
  const size_t group_size = tile.head_dim * kKeyGroup;
  for (size_t p = 0; p < tile.max_valid; p += kVectors * kKeyGroup) {
    const Element* k = k_page + p * tile.head_dim;
    __m256 sum_f32x8[R][kVectors];
    for (int r = 0; r < R; r++) {
      for (int v = 0; v < kVectors; v++) sum_f32x8[r][v] = _mm256_setzero_ps();
    }
    for (size_t d = 0; d < tile.head_dim; d++, k += kKeyGroup) {
      __m256 k_f32x8[kVectors];
      for (int v = 0; v < kVectors; v++) k_f32x8[v] = load8(k + v * group_size);
      for (int r = 0; r < R; r++) {
        const __m256 q_f32x8 = _mm256_broadcast_ss(tile.q + r * tile.head_dim + d);
        for (int v = 0; v < kVectors; v++) sum_f32x8[r][v] = _mm256_fmadd_ps(q_f32x8, k_f32x8[v], sum_f32x8[r][v]);
      }
    }
    for (int r = 0; r < R; r++) {
      for (int v = 0; v < kVectors; v++) _mm256_store_ps(tile.weights[r] + p + v * kKeyGroup, sum_f32x8[r][v]);
    }
  }
}

// Turns the scores of one row into exponentials relative to its new maximum. Positions beyond `valid` are blended away
// before anything is computed from them.
KERNEL_INLINE void softmax(Tile& tile, int r, float& max, float& sum) {
  const __m256 no_score = _mm256_set1_ps(-__builtin_inff());
  float* weights = tile.weights[r];
  const size_t valid = tile.valid[r];

  __m256 max_f32x8 = _mm256_set1_ps(max);
  for (size_t p = 0; p < valid; p += kLanes) {
    __m256 score = _mm256_load_ps(weights + p);
    if (valid - p < kLanes) {
      score = _mm256_blendv_ps(no_score, score, _mm256_castsi256_ps(first_lanes(valid - p)));
      _mm256_store_ps(weights + p, score);
    }
    max_f32x8 = _mm256_max_ps(max_f32x8, score);
  }
  const float new_max = max_lanes(max_f32x8);

  __m256 sum_f32x8 = _mm256_setzero_ps();
  for (size_t p = 0; p < valid; p += kLanes) {
    const __m256 e = exp_f32x8(_mm256_sub_ps(_mm256_load_ps(weights + p), _mm256_set1_ps(new_max)));
    _mm256_store_ps(weights + p, e);
    sum_f32x8 = _mm256_add_ps(sum_f32x8, e);
  }
  tile.rescale[r] = _mm256_cvtss_f32(exp_f32x8(_mm256_set1_ps(max - new_max)));  // 0 at first: exp(-inf)
  sum = sum * tile.rescale[r] + sum_lanes(sum_f32x8);
  max = new_max;
}

// acc[r][d ...] = acc * rescale + weights[r] . V[..., d ...], for kVectors * 8 dimensions, or `left` < 8 with one vector.
template <int R, int kVectors, typename Element>
KERNEL_INLINE void mix(const Tile& tile, const Element* v_page, size_t d, size_t left) {
  __m256 sum_f32x8[R][kVectors];
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < kVectors; v++) sum_f32x8[r][v] = _mm256_setzero_ps();
  }
  const Element* row = v_page + d;
  for (size_t p = 0; p < tile.min_valid; p++, row += tile.head_dim) {
    __m256 v_f32x8[kVectors];
    for (int v = 0; v < kVectors; v++) v_f32x8[v] = load_some(row + v * kLanes, left);
    for (int r = 0; r < R; r++) {
      const __m256 weight_f32x8 = _mm256_broadcast_ss(tile.weights[r] + p);
      for (int v = 0; v < kVectors; v++) {
        sum_f32x8[r][v] = _mm256_fmadd_ps(weight_f32x8, v_f32x8[v], sum_f32x8[r][v]);
      }
    }
  }
  // What only some rows may see: a weight of 0 would not do, since 0 * NaN is NaN.
  for (int r = 0; r < R; r++) {
    row = v_page + tile.min_valid * tile.head_dim + d;
    for (size_t p = tile.min_valid; p < tile.valid[r]; p++, row += tile.head_dim) {
      const __m256 weight_f32x8 = _mm256_broadcast_ss(tile.weights[r] + p);
      for (int v = 0; v < kVectors; v++) {
        sum_f32x8[r][v] = _mm256_fmadd_ps(weight_f32x8, load_some(row + v * kLanes, left), sum_f32x8[r][v]);
      }
    }
  }
  for (int r = 0; r < R; r++) {
    if (tile.valid[r] == 0) continue;
    float* acc = tile.acc + r * tile.head_dim + d;
    const __m256 rescale_f32x8 = _mm256_set1_ps(tile.rescale[r]);
    for (int v = 0; v < kVectors; v++, acc += kLanes) {
      store_floats(acc, _mm256_fmadd_ps(load_floats(acc, left), rescale_f32x8, sum_f32x8[r][v]), left);
    }
  }
}

template <int R, typename Element>
void attend_tile(const AttentionRows& rows, size_t first, const Element* k_page, const Element* v_page) {
  constexpr size_t kWide = vectors_for(R) * kLanes;
  Tile tile;
  tile.head_dim = rows.head_dim;
  tile.q = rows.q + first * rows.head_dim;
  tile.acc = rows.acc + first * rows.head_dim;
  tile.min_valid = kPageSize;
  tile.max_valid = 0;
  for (int r = 0; r < R; r++) {
    const uint32_t valid = rows.valid[first + r];
    tile.valid[r] = valid;
    if (valid < tile.min_valid) tile.min_valid = valid;
    if (valid > tile.max_valid) tile.max_valid = valid;
  }
  if (tile.max_valid == 0) return;

  score<R>(tile, k_page);
  for (int r = 0; r < R; r++) {
    if (tile.valid[r] > 0) softmax(tile, r, rows.max[first + r], rows.sum[first + r]);
  }
  size_t d = 0;
  for (; d + kWide <= rows.head_dim; d += kWide) mix<R, vectors_for(R)>(tile, v_page, d, kLanes);
  for (; d + kLanes <= rows.head_dim; d += kLanes) mix<R, 1>(tile, v_page, d, kLanes);
  if (d < rows.head_dim) mix<R, 1>(tile, v_page, d, rows.head_dim - d);
}

template <typename Element>
void attend(const AttentionRows& rows, const Element* k_page, const Element* v_page) {
  size_t row = 0;
  for (; row + kMaxRows <= rows.rows; row += kMaxRows) attend_tile<kMaxRows>(rows, row, k_page, v_page);
  switch (rows.rows - row) {
    case 3: return attend_tile<3>(rows, row, k_page, v_page);
    case 2: return attend_tile<2>(rows, row, k_page, v_page);
    case 1: return attend_tile<1>(rows, row, k_page, v_page);
  }
}

void store_key_f32(const float* k, size_t head_dim, size_t slot, float* k_page) {
  float* out = k_page + slot / kKeyGroup * head_dim * kKeyGroup + slot % kKeyGroup;
  for (size_t d = 0; d < head_dim; d++) out[d * kKeyGroup] = k[d];
}

void store_key_f16(const float* k, size_t head_dim, size_t slot, uint16_t* k_page) {
  uint16_t* out = k_page + slot / kKeyGroup * head_dim * kKeyGroup + slot % kKeyGroup;
  for (size_t d = 0; d < head_dim; d += kLanes) {
    const size_t left = head_dim - d;
    uint16_t half[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(half),
                     _mm256_cvtps_ph(load_floats(k + d, left), _MM_FROUND_TO_NEAREST_INT));
    for (size_t i = 0; i < kLanes && i < left; i++) out[(d + i) * kKeyGroup] = half[i];
  }
}

}  // namespace

void install_avx2_attention(Kernels& table) {
  table.store_key_f16 = store_key_f16;
  table.store_key_f32 = store_key_f32;
  table.attend_f16 = attend<uint16_t>;
  table.attend_f32 = attend<float>;
}

}  // namespace dllama
