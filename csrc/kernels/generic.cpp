// The specification: every kernel in plain C++, and the level that runs on any CPU.
//
// Its packed layout is the canonical rows themselves, kRowGroup to a group. Codecs come from quant/codec.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kernels.h"
#include "kernels/levels.h"
#include "quant/codec.h"

namespace dllama {
namespace {

constexpr size_t kRowGroup = 8;

float widen(float value) {
  return value;
}
float widen(uint16_t value) {
  return f16_to_f32(value);
}
float widen(int8_t value) {
  return static_cast<float>(value);
}

void narrow(float value, float& out) {
  out = value;
}
void narrow(float value, uint16_t& out) {
  out = f32_to_f16(value);
}

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

void scale_mul(const float* x, const float* weight, float scale, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
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

// --- attention ---

size_t key_index(size_t position, size_t d, size_t head_dim) {
  return (position / kKeyGroup * head_dim + d) * kKeyGroup + position % kKeyGroup;
}

template <typename Element>
void store_key(const float* k, size_t head_dim, size_t slot, Element* k_page) {
  for (size_t d = 0; d < head_dim; d++) narrow(k[d], k_page[key_index(slot, d, head_dim)]);
}

// What the elements of a position are multiplied with.
template <typename Element>
float scale_at(const Element*, size_t, size_t) {
  return 1.0f;
}
float scale_at(const int8_t* page, size_t head_dim, size_t position) {
  float scale;
  std::memcpy(&scale, page + kPageSize * head_dim + position * sizeof(scale), sizeof(scale));
  return scale;
}

void set_scale(float scale, size_t head_dim, size_t position, int8_t* page) {
  std::memcpy(page + kPageSize * head_dim + position * sizeof(scale), &scale, sizeof(scale));
}

void store_key_q80(const float* k, size_t head_dim, size_t slot, int8_t* k_page) {
  int8_t* quants = k_page + key_index(slot, 0, head_dim);
  set_scale(quantize_row_q80(k, head_dim, quants, kKeyGroup), head_dim, slot, k_page);
}

void store_value_q80(const float* v, size_t head_dim, size_t slot, int8_t* v_page) {
  set_scale(quantize_row_q80(v, head_dim, v_page + slot * head_dim), head_dim, slot, v_page);
}

template <typename Element>
void attend_row(const AttentionRows& rows, size_t row, const Element* k_page, const Element* v_page) {
  const size_t valid = rows.valid[row];
  const size_t head_dim = rows.head_dim;
  const float* q = rows.q + row * head_dim;
  float* acc = rows.acc + row * head_dim;

  float weights[kPageSize];  // scores, then their exponentials
  float page_max = -std::numeric_limits<float>::infinity();
  for (size_t p = 0; p < valid; p++) {
    float score = 0.0f;
    for (size_t d = 0; d < head_dim; d++) score += q[d] * widen(k_page[key_index(p, d, head_dim)]);
    weights[p] = score * scale_at(k_page, head_dim, p);
    page_max = std::max(page_max, weights[p]);
  }
  const float new_max = std::max(rows.max[row], page_max);
  const float rescale = std::exp(rows.max[row] - new_max);  // 0 on the first page: exp(-inf)
  float page_sum = 0.0f;
  for (size_t p = 0; p < valid; p++) {
    weights[p] = std::exp(weights[p] - new_max);
    page_sum += weights[p];
    weights[p] *= scale_at(v_page, head_dim, p);
  }
  rows.max[row] = new_max;
  rows.sum[row] = rows.sum[row] * rescale + page_sum;
  for (size_t d = 0; d < head_dim; d++) {
    float mixed = 0.0f;
    for (size_t p = 0; p < valid; p++) mixed += weights[p] * widen(v_page[p * head_dim + d]);
    acc[d] = acc[d] * rescale + mixed;
  }
}

template <typename Element>
void attend(const AttentionRows& rows, const Element* k_page, const Element* v_page) {
  for (size_t row = 0; row < rows.rows; row++) {
    if (rows.valid[row] > 0) attend_row(rows, row, k_page, v_page);
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
  table.sum_squares = sum_squares;
  table.scale_mul = scale_mul;
  table.silu_mul = silu_mul;
  table.max = max;
  table.exp_sum = exp_sum;
  table.rotate_half = rotate_half;
  table.store_key_f16 = store_key<uint16_t>;
  table.store_key_f32 = store_key<float>;
  table.store_key_q80 = store_key_q80;
  table.store_value_q80 = store_value_q80;
  table.attend_f16 = attend<uint16_t>;
  table.attend_f32 = attend<float>;
  table.attend_q80 = attend<int8_t>;
  table.read_memory = read_memory;
}

}  // namespace dllama
