// The codecs in plain scalar code: the bytes every other implementation is compared with. See codec.h.
#include "quant/codec.h"

#include <bit>
#include <cfloat>
#include <cmath>

namespace dllama {

size_t row_bytes(DType type, size_t cols) {
  switch (type) {
    case DType::F32:
      return cols * sizeof(float);
    case DType::F16:
      return cols * sizeof(uint16_t);
    case DType::Q40:
      return cols / kBlockSize * sizeof(BlockQ40);
    case DType::Q80:
      return cols / kBlockSize * sizeof(BlockQ80);
  }
  return 0;
}
namespace {

constexpr size_t kHalfBlock = kBlockSize / 2;

// Largest magnitude; NaNs are passed over.
float max_magnitude(const float* x, size_t n) {
  float amax = 0.0f;
  for (size_t j = 0; j < n; j++) {
    const float magnitude = std::fabs(x[j]);
    if (magnitude > amax) amax = magnitude;
  }
  return amax;
}

// 1 / d, or 0 where the reciprocal could overflow: such a block's values are lost to the F16 scale anyway.
float reciprocal(float d) {
  return std::fabs(d) < FLT_MIN ? 0.0f : 1.0f / d;
}

uint8_t q40_quant(float x, float id) {
  const float product = x * id;
  const float shifted = product + 8.5f;
  if (!(shifted > 0.0f)) return 0;  // also NaN
  return shifted < 15.0f ? static_cast<uint8_t>(shifted) : 15;
}

// Writes the 32 quants and returns the unrounded scale.
float quantize_block_q80(const float* x, int8_t* quants) {
  const RowScale block = q80_row_scale(x, kBlockSize);
  for (size_t j = 0; j < kBlockSize; j++) quants[j] = q80_quant(x[j], block.inverse);
  return block.scale;
}

void quantize_block_q40(const float* x, BlockQ40& out) {
  const float amax = max_magnitude(x, kBlockSize);
  float m = -amax;
  for (size_t j = 0; j < kBlockSize; j++) {
    if (x[j] == amax) m = amax;
  }
  const float d = m / -8.0f;
  const float id = reciprocal(d);
  out.scale = f32_to_f16(d);
  for (size_t j = 0; j < kHalfBlock; j++) {
    const uint8_t low = q40_quant(x[j], id);
    const uint8_t high = q40_quant(x[j + kHalfBlock], id);
    out.nibbles[j] = static_cast<uint8_t>(low | (high << 4));
  }
}

}  // namespace

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520: halfway between the largest half and the next step
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 a half is a multiple of 2^-24, which is the spacing of floats in [0.5, 1): the addition rounds.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;  // 112 = difference of the exponent biases
  }
  return static_cast<uint16_t>(sign | half);
}

void f32_to_f16(const float* x, uint16_t* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = f32_to_f16(x[i]);
}

void f16_to_f32(const uint16_t* x, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = f16_to_f32(x[i]);
}

RowScale q80_row_scale(const float* x, size_t n) {
  const float d = max_magnitude(x, n) / 127.0f;
  return {d, reciprocal(d)};
}

// The clamp never binds for finite x: |x * inverse| < 127.001. It keeps -128 out of the products whatever x is.
int8_t q80_quant(float x, float inverse) {
  const float product = x * inverse;
  if (!(product > -127.0f)) return -127;  // also NaN
  return product < 127.0f ? static_cast<int8_t>(std::nearbyint(product)) : 127;
}

void quantize_q40(const float* x, BlockQ40* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) quantize_block_q40(x + b * kBlockSize, out[b]);
}

void quantize_q80(const float* x, BlockQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    out[b].scale = f32_to_f16(quantize_block_q80(x + b * kBlockSize, out[b].quants));
  }
}

void quantize_activation(const float* x, ActivationQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    out[b].scale = quantize_block_q80(x + b * kBlockSize, out[b].quants);
    int sums[2] = {0, 0};
    for (size_t j = 0; j < kBlockSize; j++) sums[(j % 4) / 2] += out[b].quants[j];
    out[b].offset[0] = static_cast<int16_t>(-8 * sums[0]);
    out[b].offset[1] = static_cast<int16_t>(-8 * sums[1]);
    out[b].offset_sum = -8 * (sums[0] + sums[1]);
  }
}

void dequantize_q40(const BlockQ40* x, float* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++, out += kBlockSize) {
    const float scale = f16_to_f32(x[b].scale);
    for (size_t j = 0; j < kHalfBlock; j++) {
      out[j] = static_cast<float>((x[b].nibbles[j] & 15) - 8) * scale;
      out[j + kHalfBlock] = static_cast<float>((x[b].nibbles[j] >> 4) - 8) * scale;
    }
  }
}

void dequantize_q80(const BlockQ80* x, float* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++, out += kBlockSize) {
    const float scale = f16_to_f32(x[b].scale);
    for (size_t j = 0; j < kBlockSize; j++) out[j] = static_cast<float>(x[b].quants[j]) * scale;
  }
}

}  // namespace dllama
