// What the three AVX2 files share: partial loads and stores, sums across lanes, and exp. For those files alone: every
// function has internal linkage, so the linker can never hand an AVX2 copy to code for older CPUs.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Parts of loops that hold sums in registers: out of line they would pass them through memory.
#define KERNEL_INLINE inline __attribute__((always_inline))

namespace dllama {
namespace {

constexpr size_t kLanes = 8;

// Lanes 0..n-1 set, for n < 8.
KERNEL_INLINE __m256i first_lanes(size_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The next 8 floats, or the last `left` and zeros. Partial vectors take the same path as whole ones, so an element's
// bits do not depend on where a range was cut.
KERNEL_INLINE __m256 load_floats(const float* x, size_t left) {
  return left >= kLanes ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(left));
}

KERNEL_INLINE void store_floats(float* x, __m256 values, size_t left) {
  if (left >= kLanes) {
    _mm256_storeu_ps(x, values);
  } else {
    _mm256_maskstore_ps(x, first_lanes(left), values);
  }
}

KERNEL_INLINE float sum_lanes(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

KERNEL_INLINE float max_lanes(__m256 v) {
  __m128 max = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  max = _mm_max_ps(max, _mm_movehl_ps(max, max));
  return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// exp with a relative error below 2^-23; 0 where the result is below the smallest normal float, infinity above the
// largest. x = n ln 2 + r with |r| <= ln(2)/2, and exp(r) = 1 + r + r^2 q(r): q is a minimax fit of degree 4, off by
// at most 2^-28 of exp(r). 2^n is added to the exponent, which is right whenever the result is normal.
KERNEL_INLINE __m256 exp_f32x8(__m256 x) {
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e43p-1f), x);    // ln 2, upper part
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-0x1.05c61p-29f), r);         // and the rest of it
  __m256 q = _mm256_set1_ps(0x1.6a23dp-10f);
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.123a2p-7f));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.5558f2p-5f));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.555492p-3f));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.fffffcp-2f));
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 fraction = _mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r);
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  __m256 result = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(_mm256_add_ps(one, fraction)), exponent));
  const __m256 too_small = _mm256_cmp_ps(x, _mm256_set1_ps(-87.336540f), _CMP_LT_OQ);  // ln 2^-126
  const __m256 too_large = _mm256_cmp_ps(x, _mm256_set1_ps(88.722832f), _CMP_GT_OQ);   // ln of the largest float
  result = _mm256_andnot_ps(too_small, result);
  return _mm256_blendv_ps(result, _mm256_set1_ps(__builtin_inff()), too_large);
}

}  // namespace
}  // namespace dllama
