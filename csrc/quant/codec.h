// The definition of Q40, Q80 and F16, one value or row of blocks at a time, in plain scalar code.
//
// Every kernel level must give exactly these bytes for finite input; NaN and infinity give unspecified quants and never
// an out-of-range access. The floating-point environment is taken to be the default one (nearest even, no flushing).
// Knows nothing of tensors, files or instruction sets.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"

namespace dllama {

// Bytes of `cols` values, whole blocks if the type has blocks, as files hold them.
size_t row_bytes(DType type, size_t cols);

// Rounds to nearest even; 65520 and above become infinity; subnormals are exact; a NaN stays a NaN, made quiet.
uint16_t f32_to_f16(float value);

// Exact for every input; a NaN is made quiet. Inline for the generic kernels, which convert inside their loops.
inline float f16_to_f32(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  // The F16 exponent and significand, moved to their place in a float, are short of 112, the difference of the biases.
  uint32_t wide = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  if (magnitude >= 0x7c00u) wide |= 0x7f800000u;
  if (magnitude > 0x7c00u) wide |= 0x00400000u;
  return std::bit_cast<float>(static_cast<uint32_t>(bits & 0x8000u) << 16 | wide);
}

// Arrays of `n` values, as above.
void f32_to_f16(const float* x, uint16_t* out, size_t n);
void f16_to_f32(const uint16_t* x, float* out, size_t n);

// Reads blocks * kBlockSize floats, writes `blocks` blocks.
//
//   m  = the element of largest magnitude, the positive one on a tie (zeros of either sign count as +0)
//   d  = m / -8, stored as F16(d);   id = 1 / d in F32, or 0 where |d| is below the smallest normal float
//   q  = trunc(x * id + 8.5) clamped to 0..15, product and sum rounded separately
void quantize_q40(const float* x, BlockQ40* out, size_t blocks);

//   d  = amax / 127, stored as F16(d);   id = 1 / d in F32, or 0 where d is below the smallest normal float
//   q  = round-half-even(x * id): always in -127..127
void quantize_q80(const float* x, BlockQ80* out, size_t blocks);

// The quants of quantize_q80 with d itself as scale, and the offsets that blocks.h describes.
void quantize_activation(const float* x, ActivationQ80* out, size_t blocks);

// The parts of the above, for rows of any length that have one scale: d and id, and a quant.
struct RowScale {
  float scale, inverse;
};
RowScale q80_row_scale(const float* x, size_t n);
int8_t q80_quant(float x, float inverse);

// Exact: a 4- or 8-bit integer times an 11-bit significand fits a float.
void dequantize_q40(const BlockQ40* x, float* out, size_t blocks);
void dequantize_q80(const BlockQ80* x, float* out, size_t blocks);

}  // namespace dllama
