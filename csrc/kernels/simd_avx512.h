// Sixteen floats as AVX-512 has them. Included through simd.h.
//
// Internal linkage throughout, as in simd_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace dllama {
namespace {

constexpr size_t kLanes = 16;
using F32xN = __m512;
constexpr int kRegisters = 32;  // of such vectors

// Lanes 0..n-1 set, for n < 16.
KERNEL_INLINE __mmask16 first_lanes(size_t n) {
  return static_cast<__mmask16>((1u << n) - 1);
}

KERNEL_INLINE F32xN zeros() {
  return _mm512_setzero_ps();
}
KERNEL_INLINE F32xN all(float value) {
  return _mm512_set1_ps(value);
}
KERNEL_INLINE F32xN all_of(const float* value) {
  return _mm512_set1_ps(*value);
}
KERNEL_INLINE F32xN load(const float* p) {
  return _mm512_loadu_ps(p);
}
KERNEL_INLINE void store(float* p, F32xN v) {
  _mm512_storeu_ps(p, v);
}

KERNEL_INLINE F32xN load(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

KERNEL_INLINE void store(uint16_t* p, F32xN v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

// Rounds to nearest even; what int8 cannot hold becomes its largest or smallest.
KERNEL_INLINE void store(int8_t* p, F32xN v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}

// The first `n` < 16 elements, then zeros.
KERNEL_INLINE F32xN load_first(const float* p, size_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
KERNEL_INLINE void store_first(float* p, F32xN v, size_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

KERNEL_INLINE F32xN add(F32xN a, F32xN b) {
  return _mm512_add_ps(a, b);
}
KERNEL_INLINE F32xN sub(F32xN a, F32xN b) {
  return _mm512_sub_ps(a, b);
}
KERNEL_INLINE F32xN mul(F32xN a, F32xN b) {
  return _mm512_mul_ps(a, b);
}
KERNEL_INLINE F32xN div(F32xN a, F32xN b) {
  return _mm512_div_ps(a, b);
}
KERNEL_INLINE F32xN max(F32xN a, F32xN b) {
  return _mm512_max_ps(a, b);
}
KERNEL_INLINE F32xN mul_add(F32xN a, F32xN b, F32xN c) {
  return _mm512_fmadd_ps(a, b, c);
}  // a * b + c, fused
KERNEL_INLINE F32xN neg_mul_add(F32xN a, F32xN b, F32xN c) {
  return _mm512_fnmadd_ps(a, b, c);
}  // c - a * b, fused

KERNEL_INLINE F32xN round_even(F32xN v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// v * 2^n for whole n and normal results.
KERNEL_INLINE F32xN scale_by_power(F32xN v, F32xN n) {
  return _mm512_scalef_ps(v, n);
}

// a < b ? yes : no
KERNEL_INLINE F32xN select_less(F32xN a, F32xN b, F32xN yes, F32xN no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}

// The first n < 16 lanes of v, `other` in the rest.
KERNEL_INLINE F32xN keep_first(F32xN v, size_t n, F32xN other) {
  return _mm512_mask_blend_ps(first_lanes(n), other, v);
}

KERNEL_INLINE float first_lane(F32xN v) {
  return _mm512_cvtss_f32(v);
}
// By halves, as AVX2 goes on: what reduce_add sums first is up to the compiler.
KERNEL_INLINE float sum_lanes(F32xN v) {
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), upper);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
KERNEL_INLINE float max_lanes(F32xN v) {
  return _mm512_reduce_max_ps(v);
}

// Rounds to nearest even; what int16 cannot hold becomes its largest or smallest.
KERNEL_INLINE void store(int16_t* p, F32xN v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}

// --- products of pairs of whole numbers, a pair and its sum to each lane ---

using I32xN = int32_t __attribute__((vector_size(64)));  // gcc 12 takes more registers for sums of type __m512i
using PairsxN = __m512i;                                 // of int16

KERNEL_INLINE I32xN int_zeros() {
  return I32xN{};
}
KERNEL_INLINE PairsxN load_pairs(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
KERNEL_INLINE PairsxN all_pairs_of(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
KERNEL_INLINE I32xN mul_add_pairs(PairsxN a, PairsxN b, I32xN c) {
  return reinterpret_cast<I32xN>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(c), a, b));
}
KERNEL_INLINE F32xN to_floats(I32xN v) {
  return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v));
}

// Asks for the cache line at p, into L2.
KERNEL_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace
}  // namespace dllama
