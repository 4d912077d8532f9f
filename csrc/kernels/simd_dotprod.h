// Products of packed Q40 and Q80 weights by NEON's dot-product instructions, in the layout that the neon level packs.
// For files compiled with +dotprod.
#pragma once

#include "kernels/simd.h"
#include "kernels/simd_matmul.h"

namespace dllama {
namespace {

// One block of the activations of T tokens; [.][0] holds pieces 0..3, [.][1] pieces 4..7.
template <int T>
struct Inputs {
  int8x16_t v[T][2];
};

template <int T>
KERNEL_INLINE Inputs<T> load_inputs(const ActivationQ80* const (&x)[T]) {
  Inputs<T> inputs;
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    inputs.v[t][0] = vld1q_s8(x[t]->quants);
    inputs.v[t][1] = vld1q_s8(x[t]->quants + 16);
  }
  return inputs;
}

// int32 sums of rows 0..3 and 4..7.
struct Sums {
  int32x4_t low, high;
};

// Keeps gcc from holding all nibble vectors of a block at once, which would spill the totals, and from finishing one
// token after the other, which would make every instruction wait for the one before.
template <int T>
KERNEL_INLINE void pin(Sums (&sums)[T]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) __asm__("" : "+w"(sums[t].low), "+w"(sums[t].high));
}

// Adds the products of piece kPieceIdx of 8 rows with every token. The lane of an instruction is part of its encoding.
template <int kPieceIdx, int T>
KERNEL_INLINE void add_piece(int8x16_t rows_0_to_3, int8x16_t rows_4_to_7, const Inputs<T>& x, Sums (&sums)[T]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    sums[t].low = vdotq_laneq_s32(sums[t].low, rows_0_to_3, x.v[t][kPieceIdx / 4], kPieceIdx % 4);
    sums[t].high = vdotq_laneq_s32(sums[t].high, rows_4_to_7, x.v[t][kPieceIdx / 4], kPieceIdx % 4);
  }
  pin(sums);
}

// 8 rows x 32 inputs of nibbles in two's complement; see Quantized for what a Format has.
struct DotQ40 {
  static constexpr size_t kUnit = kUnitQ40;

  // A nibble in the upper half of a byte is 16 times its value, for the price of a shift or a mask; the conversion to
  // float takes the 16 back. The sums stay below 16 * 32512, exact as floats.
  template <int kVector, int T>
  static KERNEL_INLINE void add_nibbles(const uint8_t* unit, const Inputs<T>& x, Sums (&sums)[T]) {
    const auto* w = reinterpret_cast<const int8_t*>(unit + kScaleBytes + kVector * 32);
    const int8x16_t first_i8x16 = vld1q_s8(w), second_i8x16 = vld1q_s8(w + 16);
    add_piece<kVector>(vshlq_n_s8(first_i8x16, 4), vshlq_n_s8(second_i8x16, 4), x, sums);
    const int8x16_t upper = vreinterpretq_s8_u8(vdupq_n_u8(0xf0));
    add_piece<kVector + 4>(vandq_s8(first_i8x16, upper), vandq_s8(second_i8x16, upper), x, sums);
  }

  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&out)[T]) {
    const Inputs<T> inputs = load_inputs(x);
    Sums sums[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums[t] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    add_nibbles<0>(unit, inputs, sums);
    add_nibbles<1>(unit, inputs, sums);
    add_nibbles<2>(unit, inputs, sums);
    add_nibbles<3>(unit, inputs, sums);
    to_floats(sums, out);
  }

  template <int T>
  static KERNEL_INLINE void to_floats(const Sums (&sums)[T], F32x8 (&out)[T]) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) out[t] = {vcvtq_n_f32_s32(sums[t].low, 4), vcvtq_n_f32_s32(sums[t].high, 4)};
  }
};

// 8 rows x 32 inputs of signed bytes.
struct DotQ80 {
  static constexpr size_t kUnit = kUnitQ80;

  template <int kVector, int T>
  static KERNEL_INLINE void add_bytes(const uint8_t* unit, const Inputs<T>& x, Sums (&sums)[T]) {
    const auto* w = reinterpret_cast<const int8_t*>(unit + kScaleBytes + kVector * 32);
    add_piece<kVector>(vld1q_s8(w), vld1q_s8(w + 16), x, sums);
  }

  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&out)[T]) {
    const Inputs<T> inputs = load_inputs(x);
    Sums sums[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums[t] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    add_bytes<0>(unit, inputs, sums);
    add_bytes<1>(unit, inputs, sums);
    add_bytes<2>(unit, inputs, sums);
    add_bytes<3>(unit, inputs, sums);
    add_bytes<4>(unit, inputs, sums);
    add_bytes<5>(unit, inputs, sums);
    add_bytes<6>(unit, inputs, sums);
    add_bytes<7>(unit, inputs, sums);
    to_floats(sums, out);
  }

  template <int T>
  static KERNEL_INLINE void to_floats(const Sums (&sums)[T], F32x8 (&out)[T]) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) out[t] = {vcvtq_f32_s32(sums[t].low), vcvtq_f32_s32(sums[t].high)};
  }
};

}  // namespace
}  // namespace dllama
