// Operations on vectors of floats, and F16 arrays, for any eight floats.
//
// Sums are taken in an order that depends on the length alone, and a partial vector goes through the same
// arithmetic as a whole one, so an element's bits do not depend on where a range was cut.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/simd_math.h"

namespace dllama {
namespace {

// Values that join a total together; errors grow with the number of these, not of values.
constexpr size_t kSumSize = 32;
constexpr size_t kSumVectors = kSumSize / kLanes;

void f32_to_f16(const float* x, uint16_t* out, size_t n) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  if (i == n) return;
  uint16_t padded[kLanes];
  store(padded, load_first(x + i, n - i));
  std::memcpy(out + i, padded, (n - i) * sizeof(uint16_t));
}

void f16_to_f32(const uint16_t* x, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) store(out + i, load(x + i, n - i), n - i);
}

void add(float* x, const float* y, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) store(x + i, add(load(x + i, n - i), load(y + i, n - i)), n - i);
}

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

void scale_mul(const float* x, const float* weight, float scale, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    store(out + i, mul(mul(load(x + i, n - i), all(scale)), load(weight + i, n - i)), n - i);
  }
}

// For large negative gates exp is infinite and the quotient -0; for large positive ones it is the gate.
void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F32x8 g = load(gate + i, n - i);
    const F32x8 silu = div(g, add(all(1.0f), exp(sub(zeros(), g))));
    store(out + i, mul(silu, load(up + i, n - i)), n - i);
  }
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

void rotate_half(float* x, const float* cos, const float* sin, size_t half) {
  for (size_t j = 0; j < half; j += kLanes) {
    const size_t left = half - j;
    const F32x8 first = load(x + j, left);
    const F32x8 second = load(x + half + j, left);
    const F32x8 c = load(cos + j, left);
    const F32x8 s = load(sin + j, left);
    store(x + j, neg_mul_add(second, s, mul(first, c)), left);
    store(x + half + j, mul_add(first, s, mul(second, c)), left);
  }
}

KERNEL_INLINE void install_vectors(Kernels& table) {
  table.f32_to_f16 = f32_to_f16;
  table.f16_to_f32 = f16_to_f32;
  table.add = add;
  table.sum_squares = sum_squares;
  table.scale_mul = scale_mul;
  table.silu_mul = silu_mul;
  table.max = max;
  table.exp_sum = exp_sum;
  table.rotate_half = rotate_half;
}

}  // namespace
}  // namespace dllama
