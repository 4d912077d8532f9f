// The specification: every kernel in plain C++, and the level that runs on any CPU. Attention is in
// generic_attention.cpp.
//
// Its packed layout is the canonical rows themselves, kRowGroup to a group. Codecs come from quant/codec.h.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/generic.h"
#include "kernels/kernels.h"
#include "kernels/levels.h"
#include "quant/codec.h"

namespace dllama {
namespace {

constexpr size_t kRowGroup = 8;

// --- packed weights ---

size_t group_bytes(DType type, size_t cols) {
  return kRowGroup * row_bytes(type, cols);
}

void pack(DType type, const void* canonical, size_t rows, size_t cols, void* packed) {
  const size_t used = rows * row_bytes(type, cols);
  const size_t groups = (rows + kRowGroup - 1) / kRowGroup;
  std::memcpy(packed, canonical, used);
  std::memset(static_cast<char*>(packed) + used, 0, groups * group_bytes(type, cols) - used);
}

int block_dot(const BlockQ40& w, const ActivationQ80& x) {
  constexpr size_t kHalf = kBlockSize / 2;
  int sum = 0;
  for (size_t j = 0; j < kHalf; j++) {
    sum += ((w.nibbles[j] & 15) - 8) * x.quants[j] + ((w.nibbles[j] >> 4) - 8) * x.quants[j + kHalf];
  }
  return sum;
}

int block_dot(const BlockQ80& w, const ActivationQ80& x) {
  int sum = 0;
  for (size_t j = 0; j < kBlockSize; j++) sum += w.quants[j] * x.quants[j];
  return sum;
}

// Inside a block the sum is exact; each block's product of sum and scales is then added to the total, block by block.
template <typename Block>
float dot(const Block* w, const ActivationQ80* x, size_t cols) {
  float total = 0.0f;
  for (size_t b = 0; b < cols / kBlockSize; b++) {
    total += static_cast<float>(block_dot(w[b], x[b])) * (f16_to_f32(w[b].scale) * x[b].scale);
  }
  return total;
}

// Sums 32 inputs, then adds that to the total: the error grows with cols / 32 + 32, not with cols.
template <typename Weight>
float dot(const Weight* w, const float* x, size_t cols) {
  float total = 0.0f;
  for (size_t begin = 0; begin < cols; begin += kBlockSize) {
    const size_t end = std::min(begin + kBlockSize, cols);
    float partial = 0.0f;
    for (size_t k = begin; k < end; k++) partial += widen(w[k]) * x[k];
    total += partial;
  }
  return total;
}

template <typename Weight, DType type, typename Input>
void matmul(const void* packed, size_t groups, size_t cols, const Input* x, size_t x_stride, size_t tokens, float* out,
            size_t out_stride) {
  for (size_t row = 0; row < groups * kRowGroup; row++) {
    const auto* bytes = static_cast<const char*>(packed) + row * row_bytes(type, cols);
    const auto* w = reinterpret_cast<const Weight*>(bytes);
    for (size_t t = 0; t < tokens; t++) out[t * out_stride + row] = dot(w, x + t * x_stride, cols);
  }
}

// --- vectors ---

void add(float* x, const float* y, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] += y[i];
}

// Eight running sums, each of every eighth value, four of which join at a time: what vectors of eight do.
float sum_squares(const float* x, size_t n) {
  constexpr size_t kLanes = 8;
  float totals[kLanes] = {};
  for (size_t begin = 0; begin < n; begin += kBlockSize) {
    float squares[kBlockSize] = {};
    for (size_t i = begin; i < std::min(begin + kBlockSize, n); i++) squares[i - begin] = x[i] * x[i];
    for (size_t lane = 0; lane < kLanes; lane++) {
      const float* square = squares + lane;
      totals[lane] += (square[0] + square[kLanes]) + (square[2 * kLanes] + square[3 * kLanes]);
    }
  }
  float sums[4];
  for (size_t lane = 0; lane < 4; lane++) sums[lane] = totals[lane] + totals[lane + 4];
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

void add_scaled(float* x, const float* y, float scale, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] += y[i] * scale;
}

void scale_mul(const float* x, const float* weight, float scale, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void gelu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    const float g = gate[i];
    out[i] = g / (1.0f + std::exp(-g * (kGeluLinear + kGeluCubic * g * g))) * up[i];
  }
}

void scale_and_cap(float* x, float scale, float cap, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = cap > 0.0f ? soft_capped(x[i] * scale, cap) : x[i] * scale;
}

float max(const float* x, size_t n) {
  return *std::max_element(x, x + n);
}

float exp_sum(const float* x, float shift, float scale, float* out, size_t n) {
  float total = 0.0f;
  for (size_t begin = 0; begin < n; begin += kBlockSize) {
    const size_t end = std::min(begin + kBlockSize, n);
    float partial = 0.0f;
    for (size_t i = begin; i < end; i++) {
      out[i] = std::exp((x[i] - shift) * scale);
      partial += out[i];
    }
    total += partial;
  }
  return total;
}

void rotate_half(float* x, const float* cos, const float* sin, size_t half) {
  for (size_t j = 0; j < half; j++) {
    const float first = x[j];
    const float second = x[j + half];
    x[j] = first * cos[j] - second * sin[j];
    x[j + half] = second * cos[j] + first * sin[j];
  }
}

// Sixteen running sums, each of every sixteenth product; then halves join until one is left.
void dots(const float* w, size_t rows, const float* x, size_t tokens, size_t n, float* out, size_t out_stride) {
  for (size_t t = 0; t < tokens; t++) {
    for (size_t r = 0; r < rows; r++) {
      float sums[kDotSums] = {};
      for (size_t k = 0; k < n; k++) sums[k % kDotSums] += w[r * n + k] * x[t * n + k];
      for (size_t half = kDotSums / 2; half > 0; half /= 2) {
        for (size_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
      }
      out[t * out_stride + r] = sums[0];
    }
  }
}

uint64_t read_memory(const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof(sums)) {
    uint64_t line[8];
    std::memcpy(line, p + i, sizeof(line));
    for (size_t lane = 0; lane < 8; lane++) sums[lane] += line[lane];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

void install_generic(Kernels& table) {
  table.isa = "generic";
  table.quantize_q40 = quantize_q40;
  table.quantize_q80 = quantize_q80;
  table.dequantize_q40 = dequantize_q40;
  table.dequantize_q80 = dequantize_q80;
  table.f32_to_f16 = f32_to_f16;
  table.f16_to_f32 = f16_to_f32;
  table.quantize_activation = quantize_activation;
  table.row_group = kRowGroup;
  table.group_bytes = group_bytes;
  table.pack = pack;
  table.matmul_q40 = matmul<BlockQ40, DType::Q40, ActivationQ80>;
  table.matmul_q80 = matmul<BlockQ80, DType::Q80, ActivationQ80>;
  table.matmul_f16 = matmul<uint16_t, DType::F16, float>;
  table.matmul_f32 = matmul<float, DType::F32, float>;
  table.add = add;
  table.add_scaled = add_scaled;
  table.sum_squares = sum_squares;
  table.scale_mul = scale_mul;
  table.silu_mul = silu_mul;
  table.gelu_mul = gelu_mul;
  table.scale_and_cap = scale_and_cap;
  table.max = max;
  table.exp_sum = exp_sum;
  table.rotate_half = rotate_half;
  table.dots = dots;
  table.read_memory = read_memory;
  install_generic_attention(table);
}

}  // namespace dllama
