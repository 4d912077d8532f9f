// Every kernel of every level this machine can run, against the definition in double precision or in quant/codec.h.
//
// Beyond the numbers: results whose bits must not depend on the number of tokens, on how rows and ranges are cut or on
// alignment are compared bit for bit, and guard values show that nothing outside the stated ranges is written.
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "quant/codec.h"

using namespace dllama;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 0x1p-24;  // relative error of one F32 rounding
constexpr float kGuard = -12345.5f;

using Floats = std::vector<float>;

class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed * 2654435761u + 1) {}

  uint32_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 17;
    return state_ ^= state_ << 5;
  }

  // In (-1, 1).
  float value() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }

  Floats values(size_t n, float scale = 1.0f) {
    Floats x(n);
    for (float& v : x) v = value() * scale;
    return x;
  }

 private:
  uint32_t state_;
};

// An array with guard elements on both sides, `shift` elements off its natural alignment.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t n, size_t shift = 0)
      : n_(n), shift_(shift), bytes_((n + shift + 2 * kPad) * sizeof(T), 0xA5) {}

  T* data() { return reinterpret_cast<T*>(bytes_.data()) + kPad + shift_; }
  T& operator[](size_t i) { return data()[i]; }
  std::vector<T> copy() { return std::vector<T>(data(), data() + n_); }

  bool intact() const {
    const size_t begin = (kPad + shift_) * sizeof(T);
    const size_t end = begin + n_ * sizeof(T);
    for (size_t i = 0; i < bytes_.size(); i++) {
      if ((i < begin || i >= end) && bytes_[i] != 0xA5) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kPad = 16;
  size_t n_, shift_;
  std::vector<uint8_t> bytes_;
};

template <typename T>
Guarded<T> guarded(const std::vector<T>& values, size_t shift = 0) {
  Guarded<T> result(values.size(), shift);
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

// --- codecs ---

// Blocks of every kind the codecs could disagree on.
Floats codec_input() {
  Random random(1);
  Floats x;
  for (float scale : {1.0f, 1e-3f, 1e4f, 1e-38f, 1e-40f, 3e38f, 0.0f, -0.0f, 0x1p-20f}) {
    for (int i = 0; i < 5 * 32; i++) x.push_back(random.value() * scale);
  }
  for (int block = 0; block < 64; block++) {  // ties: multiples of half a step, with the extreme at either sign
    const float step = std::ldexp(1.0f, block - 40);
    for (int i = 0; i < 32; i++)
      x.push_back(static_cast<float>(static_cast<int>(random.bits() % 33) - 16) * 0.5f * step);
  }
  for (int block = 0; block < 64; block++) {  // halves of Q80 steps
    for (int i = 0; i < 31; i++) x.push_back(static_cast<float>(random.bits() % 255) - 127.0f + 0.5f);
    x.push_back(block % 2 == 0 ? 127.0f : -127.0f);
  }
  for (float special : {FLT_MAX, -FLT_MAX, FLT_MIN, FLT_TRUE_MIN, FLT_MIN * 8.0f, FLT_MIN * 127.0f}) {
    for (int i = 0; i < 32; i++) x.push_back(i % 3 == 0 ? special : (i % 3 == 1 ? -special : random.value() * special));
  }
  return x;
}

template <typename Block, typename Quantize>
void expect_same_blocks(Quantize quantize, Quantize expected) {
  const Floats x = codec_input();
  for (size_t blocks : {size_t{0}, size_t{1}, size_t{3}, x.size() / kBlockSize}) {
    Guarded<float> input = guarded(x, 1);
    Guarded<Block> out(blocks), reference(blocks);
    quantize(input.data(), out.data(), blocks);
    expected(input.data(), reference.data(), blocks);
    for (size_t b = 0; b < blocks; b++) {
      check::Scope scope("block", b, "of", blocks);
      CHECK(std::memcmp(&out[b], &reference[b], sizeof(Block)) == 0);
    }
    CHECK(out.intact());
  }
}

void test_quantizers(const Kernels& k) {
  expect_same_blocks<BlockQ40>(k.quantize_q40, static_cast<decltype(k.quantize_q40)>(quantize_q40));
  expect_same_blocks<BlockQ80>(k.quantize_q80, static_cast<decltype(k.quantize_q80)>(quantize_q80));
  expect_same_blocks<ActivationQ80>(k.quantize_activation,
                                    static_cast<decltype(k.quantize_activation)>(quantize_activation));
}

void test_quantizers_take_anything(const Kernels& k) {
  for (float value : {kInfinity, -kInfinity, kNaN}) {
    Floats x(64, 1.0f);
    x[5] = value;
    std::fill(x.begin() + 32, x.end(), value);
    Guarded<BlockQ40> q40(2);
    Guarded<BlockQ80> q80(2);
    Guarded<ActivationQ80> activation(2);
    k.quantize_q40(x.data(), q40.data(), 2);
    k.quantize_q80(x.data(), q80.data(), 2);
    k.quantize_activation(x.data(), activation.data(), 2);
    CHECK(q40.intact() && q80.intact() && activation.intact());
    for (size_t b = 0; b < 2; b++) {
      for (int8_t quant : activation[b].quants) CHECK(quant >= -127);
    }
  }
}

void test_dequantizers(const Kernels& k) {
  Random random(2);
  constexpr size_t kBlocks = 300;
  std::vector<BlockQ40> q40(kBlocks);
  std::vector<BlockQ80> q80(kBlocks);
  for (size_t b = 0; b < kBlocks; b++) {
    q40[b].scale = q80[b].scale = static_cast<uint16_t>(random.bits() % 0x7c00 | (random.bits() & 0x8000));
    for (uint8_t& nibbles : q40[b].nibbles) nibbles = static_cast<uint8_t>(random.bits());
    for (int8_t& quant : q80[b].quants) quant = static_cast<int8_t>(random.bits());
  }
  Guarded<float> out(kBlocks * kBlockSize, 1), reference(kBlocks * kBlockSize);
  k.dequantize_q40(q40.data(), out.data(), kBlocks);
  dequantize_q40(q40.data(), reference.data(), kBlocks);
  CHECK(check::same_bits(out.copy(), reference.copy()) && out.intact());
  k.dequantize_q80(q80.data(), out.data(), kBlocks);
  dequantize_q80(q80.data(), reference.data(), kBlocks);
  CHECK(check::same_bits(out.copy(), reference.copy()) && out.intact());
}

void test_f16(const Kernels& k) {
  std::vector<uint16_t> halves(0x10000);
  for (size_t i = 0; i < halves.size(); i++) halves[i] = static_cast<uint16_t>(i);
  Guarded<float> wide(halves.size());
  Guarded<uint16_t> back(halves.size());
  k.f16_to_f32(halves.data(), wide.data(), halves.size());
  k.f32_to_f16(wide.data(), back.data(), halves.size());
  for (size_t i = 0; i < halves.size(); i++) {
    CHECK_EQ(std::bit_cast<uint32_t>(wide[i]), std::bit_cast<uint32_t>(f16_to_f32(halves[i])));
    CHECK_EQ(back[i], f32_to_f16(wide[i]));
  }

  Random random(3);
  Floats x(5000);
  for (size_t i = 0; i < x.size(); i++) {  // half of them in the range where F16 is neither 0 nor infinite
    x[i] = std::bit_cast<float>(i % 2 ? random.bits() : random.bits() % 0x10000000 + 0x33000000);
  }
  for (size_t n : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 5000}) {
    check::Scope scope("n", n);
    Guarded<uint16_t> half(n, 1);
    k.f32_to_f16(x.data(), half.data(), n);
    for (size_t i = 0; i < n; i++) CHECK_EQ(half[i], f32_to_f16(x[i]));
    CHECK(half.intact());
    Guarded<float> out(n, 1);
    k.f16_to_f32(half.data(), out.data(), n);
    for (size_t i = 0; i < n; i++) {
      CHECK_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(f16_to_f32(half[i])));
    }
    CHECK(out.intact());
  }
}

// --- products ---

struct Matrix {
  DType type;
  size_t rows, cols;
  std::vector<uint8_t> canonical;
  std::vector<float> values;  // [rows, cols]: what the canonical rows mean
};

template <typename Block>
Block random_block(Random& random) {
  Block block;
  for (size_t i = 0; i < sizeof(block); i++)
    reinterpret_cast<uint8_t*>(&block)[i] = static_cast<uint8_t>(random.bits());
  block.scale = f32_to_f16(random.value());
  return block;
}

Matrix random_matrix(DType type, size_t rows, size_t cols, uint32_t seed) {
  Random random(seed);
  Matrix m{type, rows, cols, {}, std::vector<float>(rows * cols)};
  const auto append = [&m](const void* data, size_t bytes) {
    const auto* p = static_cast<const uint8_t*>(data);
    m.canonical.insert(m.canonical.end(), p, p + bytes);
  };
  if (type == DType::F32 || type == DType::F16) {
    for (float& value : m.values) {
      value = random.value();
      const uint16_t half = f32_to_f16(value);
      if (type == DType::F16) value = f16_to_f32(half);
      type == DType::F16 ? append(&half, sizeof(half)) : append(&value, sizeof(value));
    }
    return m;
  }
  for (size_t b = 0; b < rows * cols / kBlockSize; b++) {
    float* out = m.values.data() + b * kBlockSize;
    if (type == DType::Q40) {
      const auto block = random_block<BlockQ40>(random);
      append(&block, sizeof(block));
      dequantize_q40(&block, out, 1);
    } else {
      const auto block = random_block<BlockQ80>(random);
      append(&block, sizeof(block));
      dequantize_q80(&block, out, 1);
    }
  }
  return m;
}

struct Activations {
  size_t tokens, cols;
  Floats floats;                         // [tokens, cols]
  std::vector<ActivationQ80> quantized;  // [tokens, cols / 32], where cols is a multiple of 32
};

Activations random_activations(size_t tokens, size_t cols, uint32_t seed) {
  Activations x{tokens, cols, Random(seed).values(tokens * cols), {}};
  if (cols % kBlockSize == 0) {
    x.quantized.resize(tokens * cols / kBlockSize);
    quantize_activation(x.floats.data(), x.quantized.data(), x.quantized.size());
  }
  return x;
}

bool is_quantized(DType type) {
  return type == DType::Q40 || type == DType::Q80;
}

double activation(const Activations& x, DType type, size_t t, size_t i) {
  if (!is_quantized(type)) return x.floats[t * x.cols + i];
  const ActivationQ80& block = x.quantized[(t * x.cols + i) / kBlockSize];
  return static_cast<double>(block.quants[i % kBlockSize]) * static_cast<double>(block.scale);
}

std::vector<uint8_t> pack(const Kernels& k, const Matrix& m) {
  const size_t groups = (m.rows + k.row_group - 1) / k.row_group;
  Guarded<uint8_t> packed(groups * k.group_bytes(m.type, m.cols));
  k.pack(m.type, m.canonical.data(), m.rows, m.cols, packed.data());
  CHECK(packed.intact());
  return packed.copy();
}

// Calls the product of the matrix's type. `first` is the first token of x.
void multiply(const Kernels& k, DType type, const uint8_t* packed, size_t groups, const Activations& x, size_t first,
              size_t tokens, float* out, size_t out_stride) {
  const size_t blocks = x.cols / kBlockSize;
  const ActivationQ80* quantized = x.quantized.data() + first * blocks;
  const float* floats = x.floats.data() + first * x.cols;
  switch (type) {
    case DType::Q40:
      return k.matmul_q40(packed, groups, x.cols, quantized, blocks, tokens, out, out_stride);
    case DType::Q80:
      return k.matmul_q80(packed, groups, x.cols, quantized, blocks, tokens, out, out_stride);
    case DType::F16:
      return k.matmul_f16(packed, groups, x.cols, floats, x.cols, tokens, out, out_stride);
    case DType::F32:
      return k.matmul_f32(packed, groups, x.cols, floats, x.cols, tokens, out, out_stride);
  }
}

// Roundings a term passes through, at most, in the order of summation that kernels.h allows: quantized: two for the
// product of the scales and one per block; floats: one product, 32 in the partial sum, one per partial sum.
double allowed_error(DType type, size_t cols) {
  const double partials = static_cast<double>((cols + kBlockSize - 1) / kBlockSize);
  return (partials + (is_quantized(type) ? 3 : 34)) * kUnit;
}

void check_product(const Kernels& k, const Matrix& m, size_t tokens) {
  check::Scope scope("type", static_cast<int>(m.type), "rows", m.rows, "cols", m.cols, "tokens", tokens);
  const std::vector<uint8_t> packed = pack(k, m);
  const size_t groups = (m.rows + k.row_group - 1) / k.row_group;
  const size_t padded_rows = groups * k.row_group;
  const size_t stride = padded_rows + 3;
  const Activations x = random_activations(tokens, m.cols, 5);
  Guarded<float> out(tokens * stride);
  std::fill_n(out.data(), tokens * stride, kGuard);
  multiply(k, m.type, packed.data(), groups, x, 0, tokens, out.data(), stride);
  CHECK(out.intact());
  for (size_t t = 0; t < tokens; t++) {
    for (size_t r = 0; r < m.rows; r++) {
      double sum = 0, magnitude = 0;
      for (size_t i = 0; i < m.cols; i++) {
        const double term = static_cast<double>(m.values[r * m.cols + i]) * activation(x, m.type, t, i);
        sum += term;
        magnitude += std::abs(term);
      }
      CHECK_NEAR(out[t * stride + r], sum, allowed_error(m.type, m.cols) * magnitude);
    }
    for (size_t r = m.rows; r < padded_rows; r++) CHECK_EQ(out[t * stride + r], 0.0f);
    for (size_t r = padded_rows; r < stride; r++) CHECK_EQ(out[t * stride + r], kGuard);
  }

  // The same bits for each token and each group alone.
  for (size_t t = 0; t < tokens; t++) {
    for (size_t g = 0; g < groups; g++) {
      Guarded<float> alone(k.row_group);
      const uint8_t* group = packed.data() + g * k.group_bytes(m.type, m.cols);
      multiply(k, m.type, group, 1, x, t, 1, alone.data(), 0);
      CHECK(std::memcmp(alone.data(), &out[t * stride + g * k.row_group], k.row_group * sizeof(float)) == 0);
      CHECK(alone.intact());
    }
  }
}

void test_products(const Kernels& k) {
  for (DType type : {DType::Q40, DType::Q80, DType::F16, DType::F32}) {
    for (size_t blocks : {1, 3, 5, 17}) {
      for (size_t rows : {1, 8, 13, 40}) {
        const Matrix m = random_matrix(type, rows, blocks * kBlockSize, 4);
        for (size_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13}) {
          if (rows * blocks > 100 && tokens % 4 != 1) continue;  // the large ones only once per kind of remainder
          check_product(k, m, tokens);
        }
      }
    }
  }
}

void test_float_products_of_any_width(const Kernels& k) {
  for (DType type : {DType::F16, DType::F32}) {
    for (size_t cols : {1, 2, 7, 31, 33, 50, 100}) {
      const Matrix m = random_matrix(type, 11, cols, 6);
      for (size_t tokens : {1, 2, 3, 4, 5, 9}) check_product(k, m, tokens);
    }
  }
}

void test_products_of_no_tokens(const Kernels& k) {
  for (DType type : {DType::Q40, DType::Q80, DType::F16, DType::F32}) {
    const Matrix m = random_matrix(type, k.row_group, 32, 6);
    Guarded<float> out(0);
    multiply(k, type, pack(k, m).data(), 1, random_activations(0, 32, 1), 0, 0, out.data(), k.row_group);
    CHECK(out.intact());
  }
}

// Many rows and tokens at once, so that panels and tiles all have borders inside; sampled against tokens alone.
void test_panels(const Kernels& k) {
  const size_t rows = 328, cols = 1024, tokens = 11;
  for (DType type : {DType::Q40, DType::F32}) {
    const Matrix m = random_matrix(type, rows, cols, 7);
    const std::vector<uint8_t> packed = pack(k, m);
    const Activations x = random_activations(tokens, cols, 8);
    Floats out(rows * tokens), alone(rows);
    multiply(k, type, packed.data(), rows / k.row_group, x, 0, tokens, out.data(), rows);
    for (size_t t : {0, 4, 10}) {
      multiply(k, type, packed.data(), rows / k.row_group, x, t, 1, alone.data(), rows);
      CHECK(std::memcmp(alone.data(), out.data() + t * rows, rows * sizeof(float)) == 0);
    }
  }
}

// Levels above generic sum in one order: the bits of products do not depend on which of them a CPU has.
void test_products_like_the_best_level(const Kernels& k) {
  const Kernels& best = kernels_for(supported_isas().front());
  if (std::string("generic") == k.isa || std::string("generic") == best.isa) return;
  const size_t rows = 48;
  for (DType type : {DType::Q40, DType::Q80, DType::F16, DType::F32}) {
    const Matrix m = random_matrix(type, rows, 160, 18);
    for (size_t tokens : {1, 2, 3, 4, 5, 7, 12}) {
      check::Scope scope("type", static_cast<int>(type), "tokens", tokens);
      const Activations x = random_activations(tokens, m.cols, 19);
      Floats out(rows * tokens), expected(rows * tokens);
      multiply(k, type, pack(k, m).data(), rows / k.row_group, x, 0, tokens, out.data(), rows);
      multiply(best, type, pack(best, m).data(), rows / best.row_group, x, 0, tokens, expected.data(), rows);
      CHECK(check::same_bits(out, expected));
    }
  }
}

// Largest sums a block can have; scale 1, so the result is the exact integer. Weights of -128 are what a hostile file
// may hold.
void test_products_at_the_extremes(const Kernels& k) {
  struct Case {
    DType type;
    int weight;
    float x;
    float expected;
  };
  const Case cases[] = {{DType::Q40, 0x00, 127, -32512},  {DType::Q40, 0x00, -127, 32512},
                        {DType::Q40, 0xff, -127, -28448}, {DType::Q40, 0xff, 127, 28448},
                        {DType::Q80, 127, 127, 516128},   {DType::Q80, -128, 127, -520192},
                        {DType::Q80, -128, -127, 520192}};
  for (const Case& c : cases) {
    check::Scope scope("type", static_cast<int>(c.type), "weight", c.weight, "x", c.x);
    for (size_t tokens : {1, 2, 3, 4, 5}) {
      const size_t block_size = c.type == DType::Q40 ? sizeof(BlockQ40) : sizeof(BlockQ80);
      const size_t rows = k.row_group;
      Matrix m{c.type, rows, kBlockSize, std::vector<uint8_t>(rows * block_size, static_cast<uint8_t>(c.weight)), {}};
      for (size_t r = 0; r < m.rows; r++) {
        const uint16_t one = 0x3c00;
        std::memcpy(m.canonical.data() + r * block_size, &one, sizeof(one));
      }
      Activations x{tokens, kBlockSize, Floats(tokens * kBlockSize, c.x), std::vector<ActivationQ80>(tokens)};
      quantize_activation(x.floats.data(), x.quantized.data(), tokens);
      Floats out(m.rows * tokens);
      multiply(k, c.type, pack(k, m).data(), m.rows / k.row_group, x, 0, tokens, out.data(), m.rows);
      for (float value : out) CHECK_EQ(value, c.expected);
    }
  }
}

void test_products_take_anything(const Kernels& k) {
  for (uint16_t scale : {0x7c00, 0xfc00, 0x7e00, 0x0001, 0x83ff}) {  // infinities, NaN, subnormals
    for (DType type : {DType::Q40, DType::Q80, DType::F16}) {
      Matrix m = random_matrix(type, k.row_group, 64, 9);
      for (size_t i = 0; i < m.canonical.size(); i += 2) std::memcpy(m.canonical.data() + i, &scale, 2);
      Activations x = random_activations(5, 64, 9);
      x.floats[3] = kNaN;
      x.floats[70] = kInfinity;
      quantize_activation(x.floats.data(), x.quantized.data(), x.quantized.size());
      x.quantized[1].scale = kNaN;
      Guarded<float> out(5 * k.row_group);
      multiply(k, type, pack(k, m).data(), 1, x, 0, 5, out.data(), k.row_group);
      CHECK(out.intact());
    }
  }
}

// --- vectors ---

constexpr size_t kLengths[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 100, 1000};

void test_add_and_scale(const Kernels& k) {
  Random random(10);
  for (size_t n : kLengths) {
    check::Scope scope("n", n);
    const Floats x = random.values(n), y = random.values(n);
    Guarded<float> sum = guarded(x, 1), weighted = guarded(x, 2), scaled(n, 3);
    k.add(sum.data(), y.data(), n);
    k.add_scaled(weighted.data(), y.data(), 0.3f, n);
    k.scale_mul(x.data(), y.data(), 1.7f, scaled.data(), n);
    for (size_t i = 0; i < n; i++) {
      CHECK_EQ(sum[i], x[i] + y[i]);
      CHECK_EQ(weighted[i], x[i] + y[i] * 0.3f);
      CHECK_NEAR(scaled[i], static_cast<double>(x[i]) * 1.7f * y[i], 2.01 * kUnit * std::abs(1.7 * x[i] * y[i]));
    }
    CHECK(sum.intact() && weighted.intact() && scaled.intact());
  }
}

void test_sum_squares_and_max(const Kernels& k) {
  Random random(11);
  for (size_t n : kLengths) {
    check::Scope scope("n", n);
    const Floats x = random.values(n);
    double expected = 0;
    for (float value : x) expected += static_cast<double>(value) * value;
    const float sum = k.sum_squares(x.data(), n);
    // A rounding for the square, up to 32 in a partial sum, one per partial sum, 3 across lanes.
    CHECK_NEAR(sum, expected, (36.0 + static_cast<double>(n) / 32) * kUnit * expected);
    CHECK_EQ(sum, kernels_for("generic").sum_squares(x.data(), n));
    for (size_t shift = 1; shift < 8; shift++) {
      Guarded<float> moved = guarded(x, shift);
      CHECK_EQ(k.sum_squares(moved.data(), n), sum);
    }
    for (size_t at = 0; at < n; at += 1 + n / 20) {
      Floats peak(n, -7.0f);
      peak[at] = -3.0f;
      CHECK_EQ(k.max(peak.data(), n), -3.0f);
    }
  }
  CHECK_EQ(k.max(Floats(9, -kInfinity).data(), 9), -kInfinity);
}

// The choice of experts rests on it: all levels agree on every bit, whatever is computed beside it.
void test_dots(const Kernels& k) {
  Random random(23);
  for (const size_t n : {kDotSums, 2 * kDotSums, size_t{2048}}) {
    for (const auto& [rows, tokens] : {std::pair<size_t, size_t>{1, 1}, {3, 2}, {4, 4}, {9, 5}, {8, 16}}) {
      check::Scope scope("n", n, "rows", rows, "tokens", tokens);
      const size_t stride = rows + 3;
      Guarded<float> w = guarded(random.values(rows * n), 1), x = guarded(random.values(tokens * n), 3);
      Guarded<float> out(tokens * stride);
      for (size_t i = 0; i < tokens * stride; i++) out[i] = kGuard;
      k.dots(w.data(), rows, x.data(), tokens, n, out.data(), stride);
      for (size_t t = 0; t < tokens; t++) {
        for (size_t r = rows; r < stride; r++) CHECK_EQ(out[t * stride + r], kGuard);
        for (size_t r = 0; r < rows; r++) {
          double expected = 0, magnitude = 0;
          for (size_t i = 0; i < n; i++) {
            const double product = static_cast<double>(w[r * n + i]) * x[t * n + i];
            expected += product;
            magnitude += std::abs(product);
          }
          // A rounding for the product, n / 16 in a running sum, 4 where these join.
          CHECK_NEAR(out[t * stride + r], expected, (5.0 + static_cast<double>(n) / 16) * kUnit * magnitude);
          float alone = 0.0f;
          kernels_for("generic").dots(w.data() + r * n, 1, x.data() + t * n, 1, n, &alone, 1);
          CHECK_EQ(out[t * stride + r], alone);
        }
      }
      CHECK(out.intact());
    }
  }
  Floats none(1, kGuard);
  k.dots(none.data(), 0, none.data(), 1, kDotSums, none.data(), 1);
  k.dots(none.data(), 1, none.data(), 0, kDotSums, none.data(), 1);
  CHECK_EQ(none[0], kGuard);
}

void test_exp(const Kernels& k) {
  Floats x;
  for (double value = -87.3; value < 88.7; value += 0.0137) x.push_back(static_cast<float>(value));
  for (float value = 1e-30f; value < 1.0f; value *= 3) x.insert(x.end(), {value, -value});
  Floats out(x.size());
  k.exp_sum(x.data(), 0.0f, 1.0f, out.data(), x.size());
  // 2 units in the last place: half for the final rounding, the rest for argument reduction and polynomial.
  for (size_t i = 0; i < x.size(); i++) {
    const double expected = std::exp(static_cast<double>(x[i]));
    check::Scope scope("x", x[i]);
    CHECK_NEAR(out[i], expected, 2 * 2 * kUnit * expected);
  }
  const Floats small{-kInfinity, -1e30f, -1000.0f, -104.0f, -88.0f, 0.0f, 89.0f, 1e30f};
  Floats results(small.size());
  k.exp_sum(small.data(), 0.0f, 1.0f, results.data(), small.size());
  for (size_t i = 0; i < 4; i++) CHECK_EQ(results[i], 0.0f);
  CHECK(results[4] >= 0.0f && results[4] <= FLT_MIN);  // levels may flush what is not a normal number
  CHECK_EQ(results[5], 1.0f);
  CHECK_EQ(results[6], kInfinity);
  CHECK_EQ(results[7], kInfinity);
}

void test_exp_sum(const Kernels& k) {
  Random random(12);
  for (size_t n : kLengths) {
    check::Scope scope("n", n);
    const Floats x = random.values(n, 8.0f);
    Guarded<float> out(n, 1);
    const float sum = k.exp_sum(x.data(), 5.0f, 0.7f, out.data(), n);
    double expected = 0;
    for (size_t i = 0; i < n; i++) {
      const double e = std::exp((static_cast<double>(x[i]) - 5.0) * static_cast<double>(0.7f));
      expected += e;
      // Two roundings of an argument of up to 9.1 and the 2 units of exp itself.
      CHECK_NEAR(out[i], e, (2 * 9.1 + 4.1) * kUnit * e);
    }
    CHECK(out.intact());
    CHECK_NEAR(sum, expected, (60.0 + static_cast<double>(n) / 32) * kUnit * expected);

    for (size_t shift : {1, 3}) {  // in place, at another alignment, and cut in two
      Guarded<float> moved = guarded(x, shift);
      CHECK_EQ(k.exp_sum(moved.data(), 5.0f, 0.7f, moved.data(), n), sum);
      CHECK(check::same_bits(moved.copy(), out.copy()) && moved.intact());
      Guarded<float> parts = guarded(x, shift);
      k.exp_sum(parts.data(), 5.0f, 0.7f, parts.data(), n / 3);
      k.exp_sum(parts.data() + n / 3, 5.0f, 0.7f, parts.data() + n / 3, n - n / 3);
      CHECK(check::same_bits(parts.copy(), out.copy()));
    }
  }
}

void test_silu_mul(const Kernels& k) {
  Random random(13);
  for (size_t n : kLengths) {
    check::Scope scope("n", n);
    const Floats gate = random.values(n, 20.0f), up = random.values(n);
    Guarded<float> out(n, 1);
    k.silu_mul(gate.data(), up.data(), out.data(), n);
    for (size_t i = 0; i < n; i++) {
      const double expected = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
      CHECK_NEAR(out[i], expected, 8 * kUnit * std::abs(expected));  // 4 of exp, then +, /, * and slack
    }
    CHECK(out.intact());
    Guarded<float> parts(n, 2);
    k.silu_mul(gate.data(), up.data(), parts.data(), n / 3);
    k.silu_mul(gate.data() + n / 3, up.data() + n / 3, parts.data() + n / 3, n - n / 3);
    CHECK(check::same_bits(parts.copy(), out.copy()));
  }
  const Floats gate{1000.0f, -1000.0f, 0.0f, 88.0f, -88.0f, 3e38f, -3e38f, -95.0f};
  Floats out(gate.size());
  k.silu_mul(gate.data(), Floats(gate.size(), 1.0f).data(), out.data(), gate.size());
  const Floats expected{1000.0f, 0.0f, 0.0f, 88.0f, 0.0f, 3e38f, 0.0f, 0.0f};
  for (size_t i = 0; i < gate.size(); i++) CHECK_NEAR(out[i], expected[i], 1e-35);
}

void test_gelu_mul(const Kernels& k) {
  Random random(20);
  for (size_t n : kLengths) {
    check::Scope scope("n", n);
    const Floats gate = random.values(n, 8.0f), up = random.values(n);
    Guarded<float> out(n, 1);
    k.gelu_mul(gate.data(), up.data(), out.data(), n);
    for (size_t i = 0; i < n; i++) {
      const double g = gate[i], inner = 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
      const double expected = g / (1 + std::exp(-inner)) * up[i];
      // 8 as for silu, and what 4 roundings of the exponent and those of its two constants move.
      CHECK_NEAR(out[i], expected, (8 + 6 * std::abs(inner)) * kUnit * std::abs(expected) + 1e-37);
    }
    CHECK(out.intact());
    Guarded<float> parts(n, 2);
    k.gelu_mul(gate.data(), up.data(), parts.data(), n / 3);
    k.gelu_mul(gate.data() + n / 3, up.data() + n / 3, parts.data() + n / 3, n - n / 3);
    CHECK(check::same_bits(parts.copy(), out.copy()));
  }
  const Floats gate{1000.0f, -1000.0f, 0.0f, 3e38f, -3e38f, 1e13f, -1e13f};
  Floats out(gate.size());
  k.gelu_mul(gate.data(), Floats(gate.size(), 1.0f).data(), out.data(), gate.size());
  for (size_t i = 0; i < gate.size(); i++) CHECK_NEAR(out[i], std::max(gate[i], 0.0f), 1e-35);
}

void test_scale_and_cap(const Kernels& k) {
  Random random(21);
  for (size_t n : kLengths) {
    for (float size : {1e-20f, 1e-3f, 1.0f, 100.0f, 1e30f}) {
      check::Scope scope("n", n, "size", size);
      const Floats x = random.values(n, size);
      Guarded<float> scaled = guarded(x, 1), capped = guarded(x, 2);
      k.scale_and_cap(scaled.data(), 0.3f, 0.0f, n);
      k.scale_and_cap(capped.data(), 0.3f, 30.0f, n);
      for (size_t i = 0; i < n; i++) {
        CHECK_EQ(scaled[i], x[i] * 0.3f);
        const double expected = 30 * std::tanh(static_cast<double>(x[i] * 0.3f) / 30);
        CHECK_NEAR(capped[i], expected, 10 * kUnit * std::abs(expected));
      }
      CHECK(scaled.intact() && capped.intact());
      Guarded<float> parts = guarded(x, 3);
      k.scale_and_cap(parts.data(), 0.3f, 30.0f, n / 3);
      k.scale_and_cap(parts.data() + n / 3, 0.3f, 30.0f, n - n / 3);
      CHECK(check::same_bits(parts.copy(), capped.copy()));
    }
  }
  Floats ends{kInfinity, -kInfinity, 3e38f, -3e38f, 0.0f};
  k.scale_and_cap(ends.data(), 1.0f, 50.0f, ends.size());
  CHECK(ends == (Floats{50.0f, -50.0f, 50.0f, -50.0f, 0.0f}));
  Floats damaged(19, NAN);
  k.scale_and_cap(damaged.data(), 1.0f, 50.0f, damaged.size());
  for (const float value : damaged) CHECK(std::isnan(value));
}

void test_rotate_half(const Kernels& k) {
  Random random(14);
  for (size_t half : {1, 3, 8, 13, 32, 40, 48, 64}) {
    const Floats x = random.values(2 * half), c = random.values(half), s = random.values(half);
    Guarded<float> out = guarded(x, 1);
    k.rotate_half(out.data(), c.data(), s.data(), half);
    for (size_t j = 0; j < half; j++) {
      const double a = x[j], b = x[j + half];
      CHECK_NEAR(out[j], a * c[j] - b * s[j], 3 * kUnit * (std::abs(a * c[j]) + std::abs(b * s[j])));
      CHECK_NEAR(out[j + half], b * c[j] + a * s[j], 3 * kUnit * (std::abs(b * c[j]) + std::abs(a * s[j])));
    }
    CHECK(out.intact());
  }
}

void test_read_memory(const Kernels& k) {
  std::vector<uint64_t> data(8 * 37 + 1);
  Random random(15);
  for (uint64_t& word : data) word = uint64_t{random.bits()} << 32 | random.bits();
  for (size_t lines : {0, 1, 3, 4, 5, 37}) {
    uint64_t expected = 0;
    for (size_t i = 0; i < lines * 8; i++) expected += data[i + 1];
    CHECK_EQ(k.read_memory(data.data() + 1, lines * 64), expected);
  }
}

// --- attention ---

struct AttentionCase {
  size_t rows, head_dim, pages;
  Floats q;                    // [rows, head_dim]
  Floats k, v;                 // [pages * kPageSize, head_dim]
  std::vector<uint32_t> seen;  // [rows] positions up to the last that the row sees, over all pages
  size_t window = 0;           // how many of them it sees; 0: all
  float softcap = 0.0f;
  size_t first_seen(size_t row) const { return window == 0 || seen[row] < window ? 0 : seen[row] - window; }
};

AttentionCase attention_case(size_t rows, size_t head_dim, size_t pages, uint32_t seed) {
  Random random(seed);
  AttentionCase c{rows,
                  head_dim,
                  pages,
                  random.values(rows * head_dim),
                  random.values(pages * kPageSize * head_dim),
                  random.values(pages * kPageSize * head_dim),
                  {}};
  // What pages and queries of all types can hold, so that one expectation serves them: whole numbers up to 127, or to
  // kMaxQueryQuant, times a power of two.
  for (size_t i = 0; i < c.q.size(); i++) {
    const float unit = std::exp2(std::round(std::log2(2.0f / std::sqrt(static_cast<float>(head_dim))))) / 4096;
    c.q[i] = (i % head_dim == 0 ? std::copysign(kMaxQueryQuant, c.q[i]) : std::round(c.q[i] * kMaxQueryQuant)) * unit;
  }
  for (Floats* rows_of : {&c.k, &c.v}) {
    const float unit = rows_of == &c.k ? 0x1p-5f : 0x1p-7f;
    for (size_t i = 0; i < rows_of->size(); i++) {
      float& value = (*rows_of)[i];
      value = (i % head_dim == 0 ? std::copysign(127.0f, value) : std::round(value * 127.0f)) * unit;
    }
  }
  for (size_t row = 0; row < rows; row++) {
    c.seen.push_back(row % 5 == 4 ? 1 + random.bits() % (pages * kPageSize)
                                  : static_cast<uint32_t>(pages * kPageSize - (random.bits() + row / 2) % 11));
  }
  return c;
}

struct AttentionState {
  Floats max, sum, acc;
};

AttentionState fresh_state(size_t rows, size_t head_dim) {
  return {Floats(rows, -kInfinity), Floats(rows, 0.0f), Floats(rows * head_dim, 0.0f)};
}

template <typename Element>
struct PageKernels;

template <>
struct PageKernels<uint16_t> {
  static void store_key(const Kernels& k, const float* key, size_t head_dim, size_t slot, uint16_t* page) {
    k.store_key_f16(key, head_dim, slot, page);
  }
  static void attend(const Kernels& k, const AttentionRows& rows, const uint16_t* key_page,
                     const uint16_t* value_page) {
    k.attend_f16(rows, key_page, value_page);
  }
  static void store_value(const Kernels& k, const float* value, size_t head_dim, size_t slot, uint16_t* page) {
    k.f32_to_f16(value, page + slot * head_dim, head_dim);
  }
  static constexpr size_t kScales = 0;  // elements behind those of the positions
  static constexpr uint16_t kHole = 0x7e00;
};

template <>
struct PageKernels<float> {
  static void store_key(const Kernels& k, const float* key, size_t head_dim, size_t slot, float* page) {
    k.store_key_f32(key, head_dim, slot, page);
  }
  static void attend(const Kernels& k, const AttentionRows& rows, const float* key_page, const float* value_page) {
    k.attend_f32(rows, key_page, value_page);
  }
  static void store_value(const Kernels&, const float* value, size_t head_dim, size_t slot, float* page) {
    std::copy_n(value, head_dim, page + slot * head_dim);
  }
  static constexpr size_t kScales = 0;
  static constexpr float kHole = std::numeric_limits<float>::quiet_NaN();
};

template <>
struct PageKernels<int8_t> {
  static void store_key(const Kernels& k, const float* key, size_t head_dim, size_t slot, int8_t* page) {
    k.store_key_q80(key, head_dim, slot, page);
  }
  static void attend(const Kernels& k, const AttentionRows& rows, const int8_t* key_page, const int8_t* value_page) {
    std::vector<int16_t> quants(rows.rows * rows.head_dim);
    Floats scales(rows.rows);
    for (size_t row = 0; row < rows.rows; row++) {
      scales[row] = k.quantize_query(rows.q + row * rows.head_dim, rows.head_dim, quants.data() + row * rows.head_dim);
    }
    AttentionRows quantized = rows;
    quantized.q = nullptr;
    quantized.q_quants = quants.data();
    quantized.q_scales = scales.data();
    k.attend_q80(quantized, key_page, value_page);
  }
  static void store_value(const Kernels& k, const float* value, size_t head_dim, size_t slot, int8_t* page) {
    k.store_value_q80(value, head_dim, slot, page);
  }
  static constexpr size_t kScales = kPageSize * sizeof(float);
  static constexpr int8_t kHole = -1;  // four of them are a NaN
};

// Attends rows [first, first + count) to all pages. Positions that no row of the case sees hold NaN.
template <typename Element>
AttentionState attend(const Kernels& k, const AttentionCase& c, size_t first, size_t count) {
  using Page = PageKernels<Element>;
  AttentionState state = fresh_state(count, c.head_dim);
  const size_t written =
      *std::max_element(c.seen.begin() + static_cast<long>(first), c.seen.begin() + static_cast<long>(first + count));
  for (size_t page = 0; page < c.pages; page++) {
    std::vector<Element> keys(kPageSize * c.head_dim + Page::kScales, Page::kHole), values = keys;
    for (size_t slot = 0; slot < kPageSize; slot++) {
      const size_t position = page * kPageSize + slot;
      if (position >= written) break;
      Page::store_key(k, c.k.data() + position * c.head_dim, c.head_dim, slot, keys.data());
      Page::store_value(k, c.v.data() + position * c.head_dim, c.head_dim, slot, values.data());
    }
    std::vector<uint32_t> valid(count), hidden(count);
    for (size_t row = 0; row < count; row++) {
      const size_t before = page * kPageSize;
      const size_t end = std::clamp<size_t>(c.seen[first + row], before, before + kPageSize);
      const size_t begin = std::clamp<size_t>(c.first_seen(first + row), before, end);
      valid[row] = static_cast<uint32_t>(begin < end ? end - before : 0);
      hidden[row] = static_cast<uint32_t>(begin < end ? begin - before : 0);
    }
    AttentionRows rows{c.q.data() + first * c.head_dim,
                       valid.data(),
                       state.max.data(),
                       state.sum.data(),
                       state.acc.data(),
                       count,
                       c.head_dim};
    if (c.window != 0) rows.hidden = hidden.data();
    rows.softcap = c.softcap;
    Page::attend(k, rows, keys.data(), values.data());
  }
  return state;
}

// With e the error of a score, a weight is off by e, plus the rounding of its argument, 4 units of exp and one of a
// scale; the sums over positions and the rescaling add a unit each. Numerator and denominator both have that error; |v|
// <= 1. Q80 rounds each weight to half a step of its page's largest.
void check_attention_row(const AttentionCase& c, const AttentionState& state, size_t row, bool is_q80) {
  const float* q = c.q.data() + row * c.head_dim;
  std::vector<double> scores(c.seen[row], -kInfinity);
  double max = -kInfinity, lowest = kInfinity, magnitude = 0;
  for (size_t p = c.first_seen(row); p < scores.size(); p++) {
    double terms = 0;
    scores[p] = 0;
    for (size_t d = 0; d < c.head_dim; d++) {
      const double term = static_cast<double>(q[d]) * static_cast<double>(c.k[p * c.head_dim + d]);
      scores[p] += term;
      terms += std::abs(term);
    }
    if (c.softcap > 0) scores[p] = c.softcap * std::tanh(scores[p] / c.softcap);
    max = std::max(max, scores[p]);
    lowest = std::min(lowest, scores[p]);
    magnitude = std::max(magnitude, terms);
  }
  // One for a scale; 10 of a capped score.
  const double score_error = static_cast<double>(c.head_dim + 1) * magnitude + 10 * static_cast<double>(c.softcap);
  const double weight_error = score_error + (max - lowest) + 5;
  const double tolerance = 2 * (weight_error + static_cast<double>(kPageSize + 2 * c.pages)) * kUnit;
  double sum = 0, steps = 0;
  for (double& score : scores) sum += score = std::exp(score - max);
  for (size_t p = 0; is_q80 && p < scores.size(); p += kPageSize) {
    const size_t end = std::min(p + kPageSize, scores.size());
    steps += static_cast<double>(end - p) * *std::max_element(&scores[p], &scores[end - 1] + 1);
  }
  const double rounding = steps / sum * 0.5 / kMaxWeightQuant;
  for (size_t d = 0; d < c.head_dim; d++) {
    double expected = 0;
    for (size_t p = 0; p < scores.size(); p++)
      expected += scores[p] / sum * static_cast<double>(c.v[p * c.head_dim + d]);
    CHECK_NEAR(state.acc[row * c.head_dim + d] / state.sum[row], expected, tolerance + rounding);
  }
  CHECK_NEAR(state.max[row], max, score_error * kUnit);
}

template <typename Element>
void check_attention(const Kernels& k, size_t rows, size_t head_dim, size_t pages, size_t window = 0,
                     float softcap = 0.0f) {
  check::Scope scope("rows", rows, "head_dim", head_dim, "pages", pages, "bytes", sizeof(Element), "window", window);
  AttentionCase c = attention_case(rows, head_dim, pages, static_cast<uint32_t>(rows * 1000 + head_dim));
  c.window = window;
  c.softcap = softcap;
  const AttentionState all = attend<Element>(k, c, 0, rows);
  for (size_t row = 0; row < rows; row++) {
    check_attention_row(c, all, row, sizeof(Element) == 1);
    // The same bits alone, where what only the others may see is NaN.
    const AttentionState alone = attend<Element>(k, c, row, 1);
    CHECK(std::memcmp(&alone.max[0], &all.max[row], sizeof(float)) == 0);
    CHECK(std::memcmp(&alone.sum[0], &all.sum[row], sizeof(float)) == 0);
    CHECK(std::memcmp(alone.acc.data(), all.acc.data() + row * head_dim, head_dim * sizeof(float)) == 0);
  }
}

void test_attention(const Kernels& k) {
  for (size_t head_dim : {2, 6, 16, 64, 80, 96, 128}) {
    for (size_t rows : {1, 2, 3, 4, 5, 6, 8, 9}) {
      if (head_dim > 64 && rows > 5) continue;
      check_attention<uint16_t>(k, rows, head_dim, 1 + rows % 3);
      check_attention<float>(k, rows, head_dim, 1 + rows % 3);
      check_attention<int8_t>(k, rows, head_dim, 1 + rows % 3);
    }
  }
}

// Windows that end within a page, at its border and before it; caps that hardly bend scores and that do.
void test_attention_with_windows_and_caps(const Kernels& k) {
  for (size_t window : {1, 5, 64, 100}) {
    for (float softcap : {0.0f, 0.5f, 20.0f}) {
      for (size_t rows : {1, 6, 9}) {
        check_attention<uint16_t>(k, rows, 16, 3, window, softcap);
        check_attention<float>(k, rows, 20, 3, window, softcap);
        check_attention<int8_t>(k, rows, 16, 3, window, softcap);
      }
    }
  }
}

// A row that sees nothing of a page keeps its bits, whatever its neighbours see and whatever the page holds.
void test_attention_leaves_blind_rows(const Kernels& k) {
  constexpr size_t kDim = 20, kRows = 5;
  const Floats q = Random(16).values(kRows * kDim);
  std::vector<float> page(kPageSize * kDim, kNaN);
  for (uint32_t others : {0, 3}) {
    std::fill(page.begin(), page.end(), others > 0 ? 1.0f : kNaN);
    const std::vector<uint32_t> valid{others, 0, others, 0, 0};
    Guarded<float> max = guarded(Floats(kRows, 1.5f)), sum = guarded(Floats(kRows, -0.0f));
    Guarded<float> acc = guarded(Floats(kRows * kDim, -0.0f));
    k.attend_f32({q.data(), valid.data(), max.data(), sum.data(), acc.data(), kRows, kDim}, page.data(), page.data());
    CHECK(max.intact() && sum.intact() && acc.intact());
    for (size_t row : {1, 3, 4}) {
      CHECK_EQ(max[row], 1.5f);
      CHECK(std::signbit(sum[row]) && sum[row] == 0.0f);
      for (size_t d = 0; d < kDim; d++) CHECK(std::signbit(acc[row * kDim + d]));
    }
  }
}

void test_store_key(const Kernels& k) {
  for (size_t head_dim : {2, 6, 64, 100}) {
    const Floats key = Random(17).values(head_dim);
    for (size_t slot : {0, 7, 8, 63}) {
      check::Scope scope("head_dim", head_dim, "slot", slot);
      Guarded<uint16_t> half = guarded(std::vector<uint16_t>(kPageSize * head_dim, 7));
      Guarded<float> full = guarded(Floats(kPageSize * head_dim, kGuard));
      k.store_key_f16(key.data(), head_dim, slot, half.data());
      k.store_key_f32(key.data(), head_dim, slot, full.data());
      for (size_t position = 0; position < kPageSize; position++) {
        for (size_t d = 0; d < head_dim; d++) {
          const size_t at = position / kKeyGroup * head_dim * kKeyGroup + d * kKeyGroup + position % kKeyGroup;
          CHECK_EQ(half[at], position == slot ? f32_to_f16(key[d]) : 7);
          CHECK_EQ(full[at], position == slot ? key[d] : kGuard);
        }
      }
      CHECK(half.intact() && full.intact());
    }
  }
}

// One position of Q80 pages: the quants of codec.h, and nothing else written.
void test_store_q80(const Kernels& k) {
  for (size_t head_dim : {2, 6, 64, 100}) {
    for (float size : {1.0f, 1e30f, 1e-30f, 1e-40f, 0.0f}) {
      check::Scope scope("head_dim", head_dim, "size", size);
      const Floats row = Random(18).values(head_dim, size);
      const RowScale row_scale = q80_row_scale(row.data(), head_dim);
      for (size_t slot : {0, 15, 16, 63}) {
        const size_t bytes = kPageSize * (head_dim + sizeof(float));
        std::vector<int8_t> expected_keys(bytes, 7), expected_values(bytes, 7);
        for (size_t d = 0; d < head_dim; d++) {
          const size_t pair = slot / kKeyGroup * head_dim / 2 + d / 2;
          expected_keys[(pair * kKeyGroup + slot % kKeyGroup) * 2 + d % 2] = q80_quant(row[d], row_scale.inverse);
          expected_values[(slot / 2 * head_dim + d) * 2 + slot % 2] = q80_quant(row[d], row_scale.inverse);
        }
        for (std::vector<int8_t>* page : {&expected_keys, &expected_values}) {
          std::memcpy(page->data() + kPageSize * head_dim + slot * sizeof(float), &row_scale.scale, sizeof(float));
        }
        Guarded<int8_t> keys = guarded(std::vector<int8_t>(bytes, 7)), values = keys;
        k.store_key_q80(row.data(), head_dim, slot, keys.data());
        k.store_value_q80(row.data(), head_dim, slot, values.data());
        CHECK(keys.copy() == expected_keys);
        CHECK(values.copy() == expected_values);
        CHECK(keys.intact() && values.intact());
      }
    }
  }
}

void test_quantize_query(const Kernels& k) {
  for (size_t head_dim : {2, 6, 64, 100}) {
    for (float size : {1.0f, 1e30f, 1e-30f, 1e-40f, 0.0f}) {
      check::Scope scope("head_dim", head_dim, "size", size);
      const Floats row = Random(19).values(head_dim, size);
      Guarded<int16_t> quants(head_dim), expected(head_dim);
      const float scale = k.quantize_query(row.data(), head_dim, quants.data());
      CHECK_EQ(scale, kernels_for("generic").quantize_query(row.data(), head_dim, expected.data()));
      CHECK(quants.copy() == expected.copy());
      CHECK(quants.intact());
      for (size_t d = 0; d < head_dim; d++) {
        const float slack = size < FLT_MIN ? size : scale * 0.5001f;
        CHECK_NEAR(static_cast<float>(quants[d]) * scale, row[d], slack);
      }
    }
  }
}

// --- dispatch ---

void test_dispatch() {
  const std::vector<std::string> isas = supported_isas();
  CHECK_EQ(isas.back(), "generic");
  for (const std::string& isa : isas) CHECK_EQ(kernels_for(isa).isa, isa);
  CHECK_THROWS(kernels_for("sse9"), UnsupportedIsa, "unknown instruction set 'sse9'");
  CHECK_THROWS(kernels_for("sse9"), UnsupportedIsa, "generic");
#if defined(__x86_64__)
  CHECK_THROWS(kernels_for("neon"), UnsupportedIsa, "not built for this architecture");
#elif defined(__aarch64__)
  CHECK_THROWS(kernels_for("avx2"), UnsupportedIsa, "not built for this architecture");
  for (const char* isa : {"dotprod", "i8mm"}) {
    if (std::find(isas.begin(), isas.end(), isa) != isas.end()) continue;
    CHECK_THROWS(kernels_for(isa), UnsupportedIsa, "not supported by this CPU");
  }
#endif
}

struct KernelTest {
  const char* name;
  void (*body)(const Kernels&);
};

constexpr KernelTest kTests[] = {
    {"quantizers", test_quantizers},
    {"quantizers_take_anything", test_quantizers_take_anything},
    {"dequantizers", test_dequantizers},
    {"f16", test_f16},
    {"products", test_products},
    {"float_products_of_any_width", test_float_products_of_any_width},
    {"products_of_no_tokens", test_products_of_no_tokens},
    {"panels", test_panels},
    {"products_like_the_best_level", test_products_like_the_best_level},
    {"products_at_the_extremes", test_products_at_the_extremes},
    {"products_take_anything", test_products_take_anything},
    {"add_and_scale", test_add_and_scale},
    {"sum_squares_and_max", test_sum_squares_and_max},
    {"dots", test_dots},
    {"exp", test_exp},
    {"exp_sum", test_exp_sum},
    {"silu_mul", test_silu_mul},
    {"gelu_mul", test_gelu_mul},
    {"scale_and_cap", test_scale_and_cap},
    {"rotate_half", test_rotate_half},
    {"read_memory", test_read_memory},
    {"attention", test_attention},
    {"attention_with_windows_and_caps", test_attention_with_windows_and_caps},
    {"attention_leaves_blind_rows", test_attention_leaves_blind_rows},
    {"store_key", test_store_key},
    {"store_q80", test_store_q80},
    {"quantize_query", test_quantize_query},
};

}  // namespace

int main(int argc, char** argv) {
  check::add_test("dispatch", test_dispatch);
  for (const std::string& isa : supported_isas()) {
    for (const KernelTest& test : kTests) {
      check::add_test(isa + "/" + test.name, [isa, body = test.body] { body(kernels_for(isa)); });
    }
  }
  return check::run_all(argc, argv);
}
