// Eight floats as AVX2 has them. Included through simd.h.
//
// Internal linkage throughout: each ISA file compiles its own copy, and the linker can hand none to code for older
// CPUs.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace dllama {
namespace {

constexpr size_t kLanes = 8;
using F32x8 = __m256;
using F32xN = F32x8;
constexpr int kRegisters = 16;  // of such vectors

// Lanes 0..n-1 set, for n < 8.
KERNEL_INLINE __m256i first_lanes(size_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

KERNEL_INLINE F32x8 zeros() {
  return _mm256_setzero_ps();
}
KERNEL_INLINE F32x8 all(float value) {
  return _mm256_set1_ps(value);
}
KERNEL_INLINE F32x8 all_of(const float* value) {
  return _mm256_broadcast_ss(value);
}
KERNEL_INLINE F32x8 load(const float* p) {
  return _mm256_loadu_ps(p);
}
KERNEL_INLINE void store(float* p, F32x8 v) {
  _mm256_storeu_ps(p, v);
}

KERNEL_INLINE F32x8 load(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

KERNEL_INLINE void store(uint16_t* p, F32x8 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

// Rounds to nearest even; what int8 cannot hold becomes its largest or smallest.
KERNEL_INLINE void store(int8_t* p, F32x8 v) {
  const __m256i wide_i32x8 = _mm256_cvtps_epi32(v);
  const __m128i half_i16x8 =
      _mm_packs_epi32(_mm256_castsi256_si128(wide_i32x8), _mm256_extracti128_si256(wide_i32x8, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half_i16x8, half_i16x8));
}

// The first `n` < 8 elements, then zeros.
KERNEL_INLINE F32x8 load_first(const float* p, size_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
KERNEL_INLINE void store_first(float* p, F32x8 v, size_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

KERNEL_INLINE F32x8 add(F32x8 a, F32x8 b) {
  return _mm256_add_ps(a, b);
}
KERNEL_INLINE F32x8 sub(F32x8 a, F32x8 b) {
  return _mm256_sub_ps(a, b);
}
KERNEL_INLINE F32x8 mul(F32x8 a, F32x8 b) {
  return _mm256_mul_ps(a, b);
}
KERNEL_INLINE F32x8 div(F32x8 a, F32x8 b) {
  return _mm256_div_ps(a, b);
}
KERNEL_INLINE F32x8 max(F32x8 a, F32x8 b) {
  return _mm256_max_ps(a, b);
}
KERNEL_INLINE F32x8 mul_add(F32x8 a, F32x8 b, F32x8 c) {
  return _mm256_fmadd_ps(a, b, c);
}  // a * b + c, fused
KERNEL_INLINE F32x8 neg_mul_add(F32x8 a, F32x8 b, F32x8 c) {
  return _mm256_fnmadd_ps(a, b, c);
}  // c - a * b, fused

KERNEL_INLINE F32x8 round_even(F32x8 v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// v * 2^n for whole n and normal results, by adding to the exponents.
KERNEL_INLINE F32x8 scale_by_power(F32x8 v, F32x8 n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
}

// a < b ? yes : no
KERNEL_INLINE F32x8 select_less(F32x8 a, F32x8 b, F32x8 yes, F32x8 no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

// The first n < 8 lanes of v, `other` in the rest.
KERNEL_INLINE F32x8 keep_first(F32x8 v, size_t n, F32x8 other) {
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(first_lanes(n)));
}

KERNEL_INLINE float first_lane(F32x8 v) {
  return _mm256_cvtss_f32(v);
}

KERNEL_INLINE float sum_lanes(F32x8 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

KERNEL_INLINE float max_lanes(F32x8 v) {
  __m128 max = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  max = _mm_max_ps(max, _mm_movehl_ps(max, max));
  return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// Rounds to nearest even; what int16 cannot hold becomes its largest or smallest.
KERNEL_INLINE void store(int16_t* p, F32x8 v) {
  const __m256i wide_i32x8 = _mm256_cvtps_epi32(v);
  const __m128i half_i16x8 =
      _mm_packs_epi32(_mm256_castsi256_si128(wide_i32x8), _mm256_extracti128_si256(wide_i32x8, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half_i16x8);
}

// --- products of pairs of whole numbers, a pair and its sum to each lane ---

using I32xN = int32_t __attribute__((vector_size(32)));  // gcc 12 takes more registers for sums of type __m256i
using PairsxN = __m256i;                                 // of int16

KERNEL_INLINE I32xN int_zeros() {
  return I32xN{};
}
KERNEL_INLINE PairsxN load_pairs(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
KERNEL_INLINE PairsxN all_pairs_of(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return _mm256_set1_epi32(pair);
}
KERNEL_INLINE I32xN mul_add_pairs(PairsxN a, PairsxN b, I32xN c) {
  return reinterpret_cast<I32xN>(_mm256_madd_epi16(a, b)) + c;
}
KERNEL_INLINE F32x8 to_floats(I32xN v) {
  return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(v));
}

// Asks for the cache line at p, into L2.
KERNEL_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace
}  // namespace dllama
