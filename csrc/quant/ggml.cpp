#include "quant/ggml.h"

#include <cstring>

#include "quant/codec.h"

namespace dllama {

namespace {

constexpr size_t kSmall = 32;   // values in a block of the older types
constexpr size_t kLarge = 256;  // and of those with scales of scales, in groups of 16 or 32

float half(const uint8_t* in) {
  uint16_t bits;
  std::memcpy(&bits, in, sizeof bits);
  return f16_to_f32(bits);
}

// Bit j of four bytes.
uint32_t bit(const uint8_t* in, size_t j) {
  return in[j / 8] >> (j % 8) & 1u;
}

void q4_1(const uint8_t* in, float* out) {
  const float d = half(in), m = half(in + 2);
  const uint8_t* nibbles = in + 4;
  for (size_t j = 0; j < kSmall / 2; j++) {
    out[j] = d * static_cast<float>(nibbles[j] & 15) + m;
    out[j + kSmall / 2] = d * static_cast<float>(nibbles[j] >> 4) + m;
  }
}

// The four low bits of each value, and the fifth.
void five_bits(const uint8_t* high, const uint8_t* nibbles, int32_t* quants) {
  for (size_t j = 0; j < kSmall / 2; j++) {
    quants[j] = static_cast<int32_t>((nibbles[j] & 15u) | bit(high, j) << 4);
    quants[j + kSmall / 2] = static_cast<int32_t>(nibbles[j] >> 4 | bit(high, j + kSmall / 2) << 4);
  }
}

void q5_0(const uint8_t* in, float* out) {
  int32_t quants[kSmall];
  five_bits(in + 2, in + 6, quants);
  const float d = half(in);
  for (size_t j = 0; j < kSmall; j++) out[j] = d * static_cast<float>(quants[j] - 16);
}

void q5_1(const uint8_t* in, float* out) {
  int32_t quants[kSmall];
  five_bits(in + 4, in + 8, quants);
  const float d = half(in), m = half(in + 2);
  for (size_t j = 0; j < kSmall; j++) out[j] = d * static_cast<float>(quants[j]) + m;
}

// 16 groups of 16; of each 32 bytes of quants the lowest two bits are the first 32 values, and so on.
void q2_k(const uint8_t* in, float* out) {
  const uint8_t *scales = in, *quants = in + 16;
  const float d = half(in + 80), m = half(in + 82);
  for (size_t group = 0; group < 16; group++, out += 16) {
    const uint8_t* bytes = quants + group / 8 * 32 + group % 2 * 16;
    const size_t shift = group / 2 % 4 * 2;
    const float scale = d * static_cast<float>(scales[group] & 15),
                minimum = m * static_cast<float>(scales[group] >> 4);
    for (size_t j = 0; j < 16; j++) out[j] = scale * static_cast<float>(bytes[j] >> shift & 3) - minimum;
  }
}

// Scales of 6 bits: four in the nibbles of 8 bytes, two in the 4 bytes behind them.
int32_t q3_scale(const uint8_t* scales, size_t group) {
  const uint32_t low = scales[group % 8] >> group / 8 * 4 & 15u;
  const uint32_t high = scales[8 + group % 4] >> group / 4 * 2 & 3u;
  return static_cast<int32_t>(low | high << 4) - 32;
}

// As q2_k, with a third bit, which takes 4 off where it is 0.
void q3_k(const uint8_t* in, float* out) {
  const uint8_t *high = in, *quants = in + 32, *scales = in + 96;
  const float d = half(in + 108);
  for (size_t group = 0; group < 16; group++, out += 16) {
    const uint8_t *bytes = quants + group / 8 * 32 + group % 2 * 16, *thirds = high + group % 2 * 16;
    const size_t shift = group / 2 % 4 * 2, third = group / 2;
    const float scale = d * static_cast<float>(q3_scale(scales, group));
    for (size_t j = 0; j < 16; j++) {
      out[j] = scale * static_cast<float>((bytes[j] >> shift & 3) + (thirds[j] >> third & 1) * 4 - 4);
    }
  }
}

struct ScaleAndMinimum {
  float scale, minimum;
};

// Of group 0 to 7 of Q4_K and Q5_K: 6 bits each. The first four lie alone in a byte, whose two upper bits are those of
// the other four; their lower bits share a byte.
ScaleAndMinimum q4_scale(const uint8_t* in, size_t group) {
  const uint8_t* packed = in + 4;
  const float d = half(in), m = half(in + 2);
  if (group < 4) return {d * static_cast<float>(packed[group] & 63), m * static_cast<float>(packed[group + 4] & 63)};
  const int scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
  const int minimum = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
  return {d * static_cast<float>(scale), m * static_cast<float>(minimum)};
}

void q4_k(const uint8_t* in, float* out) {
  for (size_t group = 0; group < 8; group++, out += 32) {
    const ScaleAndMinimum by = q4_scale(in, group);
    const uint8_t* nibbles = in + 16 + group / 2 * 32;
    const size_t shift = group % 2 * 4;
    for (size_t j = 0; j < 32; j++) out[j] = by.scale * static_cast<float>(nibbles[j] >> shift & 15) - by.minimum;
  }
}

void q5_k(const uint8_t* in, float* out) {
  const uint8_t* high = in + 16;
  for (size_t group = 0; group < 8; group++, out += 32) {
    const ScaleAndMinimum by = q4_scale(in, group);
    const uint8_t* nibbles = in + 48 + group / 2 * 32;
    const size_t shift = group % 2 * 4;
    for (size_t j = 0; j < 32; j++) {
      const int quant = (nibbles[j] >> shift & 15) | (high[j] >> group & 1) << 4;
      out[j] = by.scale * static_cast<float>(quant) - by.minimum;
    }
  }
}

// 16 groups of 16, in two halves of 64 bytes of nibbles and 32 bytes of pairs of bits.
void q6_k(const uint8_t* in, float* out) {
  const auto* scales = reinterpret_cast<const int8_t*>(in + 192);
  const float d = half(in + 208);
  for (size_t group = 0; group < 16; group++, out += 16) {
    const size_t quarter = group / 2 % 4, at = group % 2 * 16;
    const uint8_t* nibbles = in + group / 8 * 64 + quarter % 2 * 32 + at;
    const uint8_t* pairs = in + 128 + group / 8 * 32 + at;
    const float scale = d * static_cast<float>(scales[group]);
    for (size_t j = 0; j < 16; j++) {
      const int quant = (nibbles[j] >> quarter / 2 * 4 & 15) | (pairs[j] >> quarter * 2 & 3) << 4;
      out[j] = scale * static_cast<float>(quant - 32);
    }
  }
}

template <void decode(const uint8_t*, float*)>
void all(GgmlBlock block, const void* in, float* out, size_t blocks) {
  const auto* bytes = static_cast<const uint8_t*>(in);
  for (size_t i = 0; i < blocks; i++) decode(bytes + i * block.bytes, out + i * block.values);
}

}  // namespace

GgmlBlock ggml_block(GgmlType type) {
  switch (type) {
    case GgmlType::Q4_1:
      return {kSmall, 20};
    case GgmlType::Q5_0:
      return {kSmall, 22};
    case GgmlType::Q5_1:
      return {kSmall, 24};
    case GgmlType::Q2K:
      return {kLarge, 84};
    case GgmlType::Q3K:
      return {kLarge, 110};
    case GgmlType::Q4K:
      return {kLarge, 144};
    case GgmlType::Q5K:
      return {kLarge, 176};
    case GgmlType::Q6K:
      return {kLarge, 210};
  }
  return {};
}

void dequantize_ggml(GgmlType type, const void* in, float* out, size_t blocks) {
  const GgmlBlock block = ggml_block(type);
  switch (type) {
    case GgmlType::Q4_1:
      return all<q4_1>(block, in, out, blocks);
    case GgmlType::Q5_0:
      return all<q5_0>(block, in, out, blocks);
    case GgmlType::Q5_1:
      return all<q5_1>(block, in, out, blocks);
    case GgmlType::Q2K:
      return all<q2_k>(block, in, out, blocks);
    case GgmlType::Q3K:
      return all<q3_k>(block, in, out, blocks);
    case GgmlType::Q4K:
      return all<q4_k>(block, in, out, blocks);
    case GgmlType::Q5K:
      return all<q5_k>(block, in, out, blocks);
    case GgmlType::Q6K:
      return all<q6_k>(block, in, out, blocks);
  }
}

}  // namespace dllama
