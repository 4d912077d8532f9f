// Sums and maxima of vectors of floats, for any eight floats: in an order that depends on the length alone.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/simd_elementwise.h"
#include "kernels/simd_math.h"

namespace dllama {
namespace {

// Values that join a total together; errors grow with the number of these, not of values.
constexpr size_t kSumSize = 32;
constexpr size_t kSumVectors = kSumSize / kLanes;

KERNEL_INLINE F32x8 sum_of(const F32x8 (&v)[kSumVectors]) {
  return add(add(v[0], v[1]), add(v[2], v[3]));
}

float sum_squares(const float* x, size_t n) {
  F32x8 total = zeros();
  for (size_t i = 0; i < n; i += kSumSize) {
    F32x8 squares[kSumVectors];
    for (size_t j = 0; j < kSumVectors; j++) {
      const size_t at = i + j * kLanes;
      const F32x8 v = at < n ? load(x + at, n - at) : zeros();
      squares[j] = mul(v, v);
    }
    total = add(total, sum_of(squares));
  }
  return sum_lanes(total);
}

float max(const float* x, size_t n) {
  F32x8 result = all(x[0]);
  for (size_t i = 0; i < n; i += kLanes) {
    const F32x8 v = load(x + i, n - i);
    result = max(result, n - i >= kLanes ? v : keep_first(v, n - i, result));
  }
  return max_lanes(result);
}

float exp_sum(const float* x, float shift, float scale, float* out, size_t n) {
  F32x8 total = zeros();
  for (size_t i = 0; i < n; i += kSumSize) {
    F32x8 parts[kSumVectors];
    for (size_t j = 0; j < kSumVectors; j++) {
      const size_t at = i + j * kLanes;
      parts[j] = zeros();
      if (at >= n) continue;
      const size_t left = n - at;
      const F32x8 e = exp(mul(sub(load(x + at, left), all(shift)), all(scale)));
      store(out + at, e, left);
      parts[j] = left >= kLanes ? e : keep_first(e, left, zeros());
    }
    total = add(total, sum_of(parts));
  }
  return sum_lanes(total);
}

KERNEL_INLINE void install_vectors(Kernels& table) {
  install_elementwise(table);
  table.sum_squares = sum_squares;
  table.max = max;
  table.exp_sum = exp_sum;
}

}  // namespace
}  // namespace dllama
