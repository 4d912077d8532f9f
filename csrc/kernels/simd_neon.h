// Eight floats as two NEON registers; baseline armv8-a, which converts from and to F16 but has no arithmetic on it.
// Included through simd.h.
//
// Internal linkage throughout: each ISA file compiles its own copy, and the linker can hand none to code for older
// CPUs.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace dllama {
namespace {

constexpr size_t kLanes = 8;
struct F32x8 {
  float32x4_t low, high;
};
using F32xN = F32x8;
constexpr int kRegisters = 16;  // of such vectors

KERNEL_INLINE F32x8 zeros() {
  return {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
}
KERNEL_INLINE F32x8 all(float value) {
  return {vdupq_n_f32(value), vdupq_n_f32(value)};
}
KERNEL_INLINE F32x8 all_of(const float* value) {
  return all(*value);
}
KERNEL_INLINE F32x8 load(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4)};
}

KERNEL_INLINE void store(float* p, F32x8 v) {
  vst1q_f32(p, v.low);
  vst1q_f32(p + 4, v.high);
}

KERNEL_INLINE F32x8 load(const uint16_t* p) {
  const float16x8_t half_f16x8 = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(half_f16x8)), vcvt_high_f32_f16(half_f16x8)};
}

KERNEL_INLINE void store(uint16_t* p, F32x8 v) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.low), v.high)));
}

// Rounds to nearest even; what int8 cannot hold becomes its largest or smallest.
KERNEL_INLINE void store(int8_t* p, F32x8 v) {
  const int16x8_t wide_i16x8 = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(v.low)), vcvtnq_s32_f32(v.high));
  vst1_s8(p, vqmovn_s16(wide_i16x8));
}

// The first `n` < 8 elements, then zeros.
KERNEL_INLINE F32x8 load_first(const float* p, size_t n) {
  float padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(float));
  return load(padded);
}

KERNEL_INLINE void store_first(float* p, F32x8 v, size_t n) {
  float padded[kLanes];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(float));
}

KERNEL_INLINE F32x8 add(F32x8 a, F32x8 b) {
  return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
KERNEL_INLINE F32x8 sub(F32x8 a, F32x8 b) {
  return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
KERNEL_INLINE F32x8 mul(F32x8 a, F32x8 b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
KERNEL_INLINE F32x8 div(F32x8 a, F32x8 b) {
  return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}
// The form that passes NaNs over.
KERNEL_INLINE F32x8 max(F32x8 a, F32x8 b) {
  return {vmaxnmq_f32(a.low, b.low), vmaxnmq_f32(a.high, b.high)};
}

// a * b + c, fused
KERNEL_INLINE F32x8 mul_add(F32x8 a, F32x8 b, F32x8 c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}

// c - a * b, fused
KERNEL_INLINE F32x8 neg_mul_add(F32x8 a, F32x8 b, F32x8 c) {
  return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}

KERNEL_INLINE F32x8 round_even(F32x8 v) {
  return {vrndnq_f32(v.low), vrndnq_f32(v.high)};
}

KERNEL_INLINE float32x4_t scale_by_power(float32x4_t v, float32x4_t n) {
  const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), exponent));
}

// v * 2^n for whole n and normal results, by adding to the exponents.
KERNEL_INLINE F32x8 scale_by_power(F32x8 v, F32x8 n) {
  return {scale_by_power(v.low, n.low), scale_by_power(v.high, n.high)};
}

// a < b ? yes : no
KERNEL_INLINE F32x8 select_less(F32x8 a, F32x8 b, F32x8 yes, F32x8 no) {
  return {vbslq_f32(vcltq_f32(a.low, b.low), yes.low, no.low), vbslq_f32(vcltq_f32(a.high, b.high), yes.high, no.high)};
}

// The first n < 8 lanes of v, `other` in the rest.
KERNEL_INLINE F32x8 keep_first(F32x8 v, size_t n, F32x8 other) {
  const uint32_t lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7};
  const uint32x4_t count = vdupq_n_u32(static_cast<uint32_t>(n));
  return {vbslq_f32(vcltq_u32(vld1q_u32(lanes), count), v.low, other.low),
          vbslq_f32(vcltq_u32(vld1q_u32(lanes + 4), count), v.high, other.high)};
}

KERNEL_INLINE float first_lane(F32x8 v) {
  return vgetq_lane_f32(v.low, 0);
}
KERNEL_INLINE float sum_lanes(F32x8 v) {
  const float32x4_t sum = vaddq_f32(v.low, v.high);  // joined as AVX2 does it, for equal bits
  const float32x2_t pair = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
KERNEL_INLINE float max_lanes(F32x8 v) {
  return vmaxnmvq_f32(vmaxnmq_f32(v.low, v.high));
}

// Rounds to nearest even; what int16 cannot hold becomes its largest or smallest.
KERNEL_INLINE void store(int16_t* p, F32x8 v) {
  vst1q_s16(p, vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(v.low)), vcvtnq_s32_f32(v.high)));
}

// --- products of pairs of whole numbers, a pair and its sum to each lane ---

struct I32xN {
  int32x4_t low, high;
};
struct PairsxN {
  int16x8_t first, second;  // of each pair
};

KERNEL_INLINE I32xN int_zeros() {
  return {vdupq_n_s32(0), vdupq_n_s32(0)};
}
KERNEL_INLINE PairsxN load_pairs(const int8_t* p) {
  const int8x8x2_t pairs_i8x8 = vld2_s8(p);
  return {vmovl_s8(pairs_i8x8.val[0]), vmovl_s8(pairs_i8x8.val[1])};
}
KERNEL_INLINE PairsxN all_pairs_of(const int16_t* p) {
  return {vdupq_n_s16(p[0]), vdupq_n_s16(p[1])};
}
KERNEL_INLINE I32xN mul_add_pairs(PairsxN a, PairsxN b, I32xN c) {
  const int32x4_t low = vmlal_s16(c.low, vget_low_s16(a.first), vget_low_s16(b.first));
  const int32x4_t high = vmlal_high_s16(c.high, a.first, b.first);
  return {vmlal_s16(low, vget_low_s16(a.second), vget_low_s16(b.second)), vmlal_high_s16(high, a.second, b.second)};
}
KERNEL_INLINE F32x8 to_floats(I32xN v) {
  return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)};
}

// Asks for the cache line at p, into L2.
KERNEL_INLINE void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

}  // namespace
}  // namespace dllama
