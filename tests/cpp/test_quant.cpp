// The codecs' definition: known values, the corners of each format, and what they promise about errors.
//
// That every kernel level gives the same bytes is checked in test_kernels.cpp.
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "quant/codec.h"
#include "quant/ggml.h"

using namespace dllama;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();

using Values = std::vector<float>;

BlockQ40 q40_of(const Values& x) {
  BlockQ40 block;
  quantize_q40(x.data(), &block, 1);
  return block;
}

BlockQ80 q80_of(const Values& x) {
  BlockQ80 block;
  quantize_q80(x.data(), &block, 1);
  return block;
}

int q40_quant(const BlockQ40& block, size_t j) {
  return j < 16 ? block.nibbles[j] & 15 : block.nibbles[j - 16] >> 4;
}

}  // namespace

TEST(f16_known_values) {
  const std::pair<float, uint16_t> known[] = {
      {0.0f, 0x0000},        {-0.0f, 0x8000},      {1.0f, 0x3c00},     {-2.0f, 0xc000},        {65504.0f, 0x7bff},
      {65519.99f, 0x7bff},   {65520.0f, 0x7c00},   {-1e30f, 0xfc00},   {kInfinity, 0x7c00},    {-kInfinity, 0xfc00},
      {0x1p-14f, 0x0400},    {0x1p-24f, 0x0001},   {0x1p-25f, 0x0000}, {0x1.8p-25f, 0x0001},   {0x1.002p+0f, 0x3c00},
      {0x1.006p+0f, 0x3c02}, {0x1.8p-24f, 0x0002}, {FLT_MIN, 0x0000},  {0x1.ffcp-15f, 0x0400}, {FLT_TRUE_MIN, 0x0000},
  };
  for (const auto& [value, bits] : known) {
    check::Scope scope("value", value);
    CHECK_EQ(f32_to_f16(value), bits);
  }
  CHECK(std::isnan(f16_to_f32(f32_to_f16(kNaN))));
}

TEST(f16_every_pattern_survives_the_round_trip) {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    const bool is_nan = (bits & 0x7fff) > 0x7c00;
    CHECK_EQ(std::isnan(value), is_nan);
    CHECK_EQ(f32_to_f16(value), is_nan ? bits | 0x0200 : bits);  // NaNs come back quiet
  }
}

TEST(f16_rounds_to_nearest_even_between_all_neighbours) {
  for (uint32_t bits = 0; bits < 0x7bff; bits++) {
    const float low = f16_to_f32(static_cast<uint16_t>(bits));
    const float high = f16_to_f32(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;  // exact
    CHECK_EQ(f32_to_f16(middle), bits + (bits & 1));
    CHECK_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), bits);
    CHECK_EQ(f32_to_f16(std::nextafter(middle, kInfinity)), bits + 1);
  }
}

TEST(q40_scale_comes_from_the_largest_magnitude) {
  Values x(32, 0.0f);
  x[3] = -4.0f;
  x[20] = 2.0f;
  BlockQ40 block = q40_of(x);
  CHECK_EQ(f16_to_f32(block.scale), 0.5f);
  CHECK_EQ(q40_quant(block, 3), 0);
  CHECK_EQ(q40_quant(block, 20), 12);
  CHECK_EQ(q40_quant(block, 0), 8);

  x[20] = 4.0f;  // a tie: the positive one
  block = q40_of(x);
  CHECK_EQ(f16_to_f32(block.scale), -0.5f);
  CHECK_EQ(q40_quant(block, 20), 0);
  CHECK_EQ(q40_quant(block, 3), 15);  // 16 is clamped
}

TEST(q40_rounds_by_truncation_after_adding_a_half) {
  Values x(32, 0.0f);
  x[0] = -8.0f;  // d = 1
  x[1] = 0.5f;
  x[2] = -0.5f;
  x[3] = -0.500001f;
  x[4] = 6.5f;
  x[5] = 7.9f;
  const BlockQ40 block = q40_of(x);
  const int expected[] = {0, 9, 8, 7, 15, 15};
  for (size_t j = 0; j < 6; j++) CHECK_EQ(q40_quant(block, j), expected[j]);
}

TEST(q40_takes_the_reciprocal_before_rounding_the_scale) {
  // d = 1.0004882 is the F16 1.0 once rounded; 5.5 / 1.0 + 8.5 would be 14, 5.5 / d + 8.5 is just below.
  Values x(32, 0.0f);
  x[0] = -8.0f * 0x1.002p+0f;
  x[1] = 5.5f;
  const BlockQ40 block = q40_of(x);
  CHECK_EQ(block.scale, 0x3c00);
  CHECK_EQ(q40_quant(block, 1), 13);
}

TEST(zeros_have_defined_bytes) {
  for (float zero : {0.0f, -0.0f}) {
    const BlockQ40 q40 = q40_of(Values(32, zero));
    CHECK_EQ(q40.scale, 0x8000);
    for (uint8_t nibbles : q40.nibbles) CHECK_EQ(nibbles, 0x88);
    const BlockQ80 q80 = q80_of(Values(32, zero));
    CHECK_EQ(q80.scale, 0);
    for (int8_t quant : q80.quants) CHECK_EQ(quant, 0);
  }
}

TEST(blocks_too_small_for_a_reciprocal_become_zero) {
  for (float tiny : {FLT_TRUE_MIN, FLT_MIN, FLT_MIN * 7.0f}) {
    for (int j = 0; j < 32; j++) CHECK_EQ(q40_quant(q40_of(Values(32, tiny)), j), 8);
    for (int8_t quant : q80_of(Values(32, tiny)).quants) CHECK_EQ(quant, 0);
  }
  CHECK_EQ(q80_of(Values(32, FLT_MIN * 128.0f)).quants[0], 127);  // the scale is normal again
}

TEST(q80_rounds_half_to_even) {
  Values x(32, 0.0f);
  x[0] = -127.0f;  // d = 1
  for (size_t j = 1; j < 32; j++) x[j] = static_cast<float>(j) - 16.5f;
  const BlockQ80 block = q80_of(x);
  CHECK_EQ(f16_to_f32(block.scale), 1.0f);
  CHECK_EQ(block.quants[0], -127);
  for (size_t j = 1; j < 32; j++) CHECK_EQ(static_cast<float>(block.quants[j]), std::nearbyint(x[j]));
  CHECK_EQ(block.quants[16], 0);  // -0.5
  CHECK_EQ(block.quants[17], 0);  // 0.5
  CHECK_EQ(block.quants[18], 2);  // 1.5
}

TEST(extremes_stay_in_range) {
  for (float value : {FLT_MAX, -FLT_MAX, kInfinity, -kInfinity, kNaN}) {
    check::Scope scope("value", value);
    Values x(32, 1.0f);
    x[7] = value;
    ActivationQ80 activation;
    quantize_activation(x.data(), &activation, 1);
    for (int8_t quant : activation.quants) CHECK(quant >= -127);
    q40_of(x);
  }
  CHECK_EQ(q80_of(Values(32, FLT_MAX)).quants[0], 127);
  CHECK_EQ(q40_of(Values(32, FLT_MAX)).scale, 0xfc00);
}

TEST(activation_carries_the_unrounded_scale_and_the_offsets) {
  Values x(32);
  for (size_t j = 0; j < 32; j++) x[j] = static_cast<float>((j * 37 + 11) % 61) - 29.7f;
  ActivationQ80 activation;
  quantize_activation(x.data(), &activation, 1);
  const BlockQ80 block = q80_of(x);
  int sums[2] = {0, 0};
  for (size_t j = 0; j < 32; j++) {
    CHECK_EQ(activation.quants[j], block.quants[j]);
    sums[j % 4 >= 2] += block.quants[j];
  }
  CHECK_EQ(activation.offset[0], -8 * sums[0]);
  CHECK_EQ(activation.offset[1], -8 * sums[1]);
  CHECK_EQ(activation.offset_sum, -8 * (sums[0] + sums[1]));
  CHECK_EQ(f32_to_f16(activation.scale), block.scale);

  quantize_activation(Values(32, -5.0f).data(), &activation, 1);  // the largest offset: 16 * 127 * 8
  CHECK_EQ(activation.offset[0], 16256);
  CHECK_EQ(activation.offset[1], 16256);
  CHECK_EQ(activation.offset_sum, 32512);
}

// Rows of 32 are the blocks of activations; others have one scale too.
TEST(rows_have_one_scale) {
  for (size_t n : {1, 2, 32, 80}) {
    Values x(n);
    for (size_t j = 0; j < n; j++) x[j] = static_cast<float>((j * 37 + 11) % 61) - 29.7f;
    const RowScale row = q80_row_scale(x.data(), n);
    for (float value : x)
      CHECK_NEAR(static_cast<float>(q80_quant(value, row.inverse)) * row.scale, value, row.scale * 0.5001f);
    if (n != 32) continue;
    ActivationQ80 activation;
    quantize_activation(x.data(), &activation, 1);
    CHECK_EQ(activation.scale, row.scale);
    for (size_t j = 0; j < n; j++) CHECK_EQ(activation.quants[j], q80_quant(x[j], row.inverse));
  }
}

// Q40: the quant is off by at most half a step (a whole one where 16 was clamped to 15), Q80: by half a step; the scale
// adds a relative 2^-11 of the largest value. Slack of 1.001 for the F32 roundings on the way.
TEST(errors_are_bounded_by_the_step) {
  uint32_t state = 7;
  for (int round = 0; round < 1000; round++) {
    Values x(32);
    float amax = 0;
    for (float& value : x) {
      state = state * 1664525u + 1013904223u;
      value = (static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * static_cast<float>(1 + round % 17);
      amax = std::fmax(amax, std::fabs(value));
    }
    Values back(32);
    const BlockQ40 q40 = q40_of(x);
    dequantize_q40(&q40, back.data(), 1);
    for (size_t j = 0; j < 32; j++) CHECK_NEAR(back[j], x[j], amax * (1.0f / 8 + 0x1p-11f) * 1.001f);
    const BlockQ80 q80 = q80_of(x);
    dequantize_q80(&q80, back.data(), 1);
    for (size_t j = 0; j < 32; j++) CHECK_NEAR(back[j], x[j], amax * (0.5f / 127 + 0x1p-11f) * 1.001f);
  }
}

namespace {

struct Byte {
  size_t at;
  uint8_t value;
};

// One value of a block whose bytes are zeros but for these.
struct GgmlValue {
  GgmlType type;
  std::vector<Byte> bytes;
  size_t index;
  float value;
};

const GgmlValue kGgmlValues[] = {
    // d = 2, m = -1; 2 * 10 - 1 and 2 * 5 - 1
    {GgmlType::Q4_1, {{1, 0x40}, {3, 0xbc}, {4, 0x5a}}, 0, 19.0f},
    {GgmlType::Q4_1, {{1, 0x40}, {3, 0xbc}, {4, 0x5a}}, 16, 9.0f},
    // d = 1 from here on; a fifth bit, and none
    {GgmlType::Q5_0, {{1, 0x3c}, {2, 0x01}, {6, 0x03}}, 0, 3.0f},
    {GgmlType::Q5_0, {{1, 0x3c}, {2, 0x01}, {6, 0x03}}, 16, -16.0f},
    {GgmlType::Q5_1, {{1, 0x3c}, {3, 0x3c}, {7, 0x80}, {23, 0xf0}}, 31, 32.0f},
    // group 9: scale 5, minimum 3
    {GgmlType::Q2K, {{81, 0x3c}, {83, 0x3c}, {9, 0x35}, {67, 0x02}}, 147, 7.0f},
    // group 13: scale 50 - 32; with and without the third bit
    {GgmlType::Q3K, {{109, 0x3c}, {101, 0x20}, {105, 0xc0}, {81, 0x30}, {17, 0x40}}, 209, 54.0f},
    {GgmlType::Q3K, {{109, 0x3c}, {101, 0x20}, {105, 0xc0}, {81, 0x30}}, 209, -18.0f},
    // group 5: scale 23, minimum 35; group 1: scale 40, minimum 2
    {GgmlType::Q4K, {{1, 0x3c}, {3, 0x3c}, {13, 0x37}, {5, 0x40}, {9, 0x80}, {111, 0x90}}, 191, 172.0f},
    {GgmlType::Q4K, {{1, 0x3c}, {3, 0x3c}, {5, 40}, {9, 2}, {17, 0x30}}, 33, 118.0f},
    {GgmlType::Q5K, {{1, 0x3c}, {3, 0x3c}, {13, 0x37}, {5, 0x40}, {9, 0x80}, {47, 0x20}, {143, 0x90}}, 191, 540.0f},
    // group 11: scale -2, quant 45 - 32
    {GgmlType::Q6K, {{209, 0x3c}, {203, 0xfe}, {114, 0x0d}, {178, 0x08}}, 178, -26.0f},
};

}  // namespace

TEST(ggml_known_values) {
  for (const GgmlValue& known : kGgmlValues) {
    check::Scope scope("type", static_cast<int>(known.type));
    const GgmlBlock block = ggml_block(known.type);
    std::vector<uint8_t> bytes(1 + 2 * block.bytes);  // at an odd address, as the second of two
    uint8_t* second = bytes.data() + 1 + block.bytes;
    for (const Byte& byte : known.bytes) second[byte.at] = byte.value;
    Values values(2 * block.values);
    dequantize_ggml(known.type, bytes.data() + 1, values.data(), 2);
    CHECK_EQ(values[block.values + known.index], known.value);
  }
}

TEST(ggml_any_bytes_are_decoded) {
  for (const GgmlType type : {GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q2K, GgmlType::Q3K,
                              GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K}) {
    const GgmlBlock block = ggml_block(type);
    for (uint32_t byte = 0; byte < 256; byte++) {
      const std::vector<uint8_t> bytes(block.bytes, static_cast<uint8_t>(byte));
      Values values(block.values);
      dequantize_ggml(type, bytes.data(), values.data(), 1);
      CHECK_EQ(std::isfinite(values[0]), std::isfinite(f16_to_f32(static_cast<uint16_t>(byte << 8 | byte))));
    }
  }
  CHECK_EQ(ggml_block(static_cast<GgmlType>(4)).values, size_t{0});
}

CHECK_MAIN()
