// What is computed element by element, for vectors of any width: an element's bits depend on neither the width nor
// where a range was cut, as a partial vector goes through the same arithmetic as a whole one.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/simd_math.h"

namespace dllama {
namespace {

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

void add_scaled(float* x, const float* y, float scale, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    store(x + i, add(load(x + i, n - i), mul(load(y + i, n - i), all(scale))), n - i);
  }
}

void scale_mul(const float* x, const float* weight, float scale, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    store(out + i, mul(mul(load(x + i, n - i), all(scale)), load(weight + i, n - i)), n - i);
  }
}

// For large negative gates exp is infinite and the quotient -0; for large positive ones it is the gate.
void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F32xN g = load(gate + i, n - i);
    const F32xN silu = div(g, add(all(1.0f), exp(sub(zeros(), g))));
    store(out + i, mul(silu, load(up + i, n - i)), n - i);
  }
}

// For large gates as silu_mul.
void gelu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F32xN g = load(gate + i, n - i);
    const F32xN inner = mul(g, mul_add(mul(g, g), all(kGeluCubic), all(kGeluLinear)));
    const F32xN gelu = div(g, add(all(1.0f), exp(sub(zeros(), inner))));
    store(out + i, mul(gelu, load(up + i, n - i)), n - i);
  }
}

void scale_and_cap(float* x, float scale, float cap, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F32xN scaled = mul(load(x + i, n - i), all(scale));
    store(x + i, cap > 0.0f ? soft_capped(scaled, all(cap), all(2.0f / cap)) : scaled, n - i);
  }
}

void rotate_half(float* x, const float* cos, const float* sin, size_t half) {
  for (size_t j = 0; j < half; j += kLanes) {
    const size_t left = half - j;
    const F32xN first = load(x + j, left);
    const F32xN second = load(x + half + j, left);
    const F32xN c = load(cos + j, left);
    const F32xN s = load(sin + j, left);
    store(x + j, neg_mul_add(second, s, mul(first, c)), left);
    store(x + half + j, mul_add(first, s, mul(second, c)), left);
  }
}

KERNEL_INLINE void install_elementwise(Kernels& table) {
  table.f32_to_f16 = f32_to_f16;
  table.f16_to_f32 = f16_to_f32;
  table.add = add;
  table.add_scaled = add_scaled;
  table.scale_mul = scale_mul;
  table.silu_mul = silu_mul;
  table.gelu_mul = gelu_mul;
  table.scale_and_cap = scale_and_cap;
  table.rotate_half = rotate_half;
}

}  // namespace
}  // namespace dllama
