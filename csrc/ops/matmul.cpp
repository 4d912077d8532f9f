#include "ops/matmul.h"

#include <cstring>

#include "base/thread_pool.h"

namespace dllama {

namespace {

constexpr size_t kWireBlock = kBlockSize + sizeof(float);

// The offsets that belong to a block's quants: sums of pairs, eight bytes at a time. Each byte is made unsigned by
// adding 128, which leaves 2048 too much in each sum of 16.
void set_offset(ActivationQ80& block) {
  constexpr uint64_t kBias = 0x8080808080808080, kEven = 0x00ff00ff00ff00ff;
  uint64_t pairs = 0;  // four sums of 16 bits
  for (size_t i = 0; i < kBlockSize; i += sizeof(uint64_t)) {
    uint64_t bytes;
    std::memcpy(&bytes, block.quants + i, sizeof(bytes));
    bytes ^= kBias;
    pairs += (bytes & kEven) + (bytes >> 8 & kEven);
  }
  const auto sum = [&](int pair) {
    return static_cast<int>(pairs >> 16 * pair & 0xffff) + static_cast<int>(pairs >> 16 * (pair + 2) & 0xffff) - 2048;
  };
  block.offset[0] = static_cast<int16_t>(-8 * sum(0));
  block.offset[1] = static_cast<int16_t>(-8 * sum(1));
  block.offset_sum = block.offset[0] + block.offset[1];
}

}  // namespace

ActivationQ80* ActivationRows::blocks(size_t token, size_t col) const {
  return reinterpret_cast<ActivationQ80*>(buffer_.data()) + token * stride_ + col / kBlockSize;
}

float* ActivationRows::floats(size_t token, size_t col) const {
  return reinterpret_cast<float*>(buffer_.data()) + token * stride_ + col;
}

size_t ActivationRows::bytes(bool quantized, size_t max_tokens, size_t cols) {
  return max_tokens * (quantized ? cols / kBlockSize * sizeof(ActivationQ80) : cols * sizeof(float));
}

ActivationRows::ActivationRows(bool quantized, size_t max_tokens, size_t cols)
    : quantized_(quantized),
      record_bytes_(quantized ? sizeof(ActivationQ80) : sizeof(float)),
      stride_(quantized ? cols / kBlockSize : cols),
      buffer_(bytes(quantized, max_tokens, cols)) {}

void ActivationRows::store(const Kernels& kernels, size_t token, size_t col, const float* x, size_t n) {
  if (quantized_) return kernels.quantize_activation(x, blocks(token, col), n / kBlockSize);
  if (n != 0) std::memcpy(floats(token, col), x, n * sizeof(float));
}

void ActivationRows::scale(size_t token, float factor) {
  scale(token, 0, quantized_ ? stride_ * kBlockSize : stride_, factor);
}

void ActivationRows::scale(size_t token, size_t col, size_t n, float factor) {
  if (quantized_) {
    ActivationQ80* row = blocks(token, col);
    for (size_t b = 0; b < records(n); ++b) row[b].scale *= factor;
  } else {
    float* row = floats(token, col);
    for (size_t i = 0; i < n; ++i) row[i] *= factor;
  }
}

void ActivationRows::copy(size_t token, const ActivationRows& from, size_t from_token) {
  std::memcpy(buffer_.data() + token * stride_ * record_bytes_, from.row(from_token), stride_ * record_bytes_);
}

void ActivationRows::to_floats(size_t token, float* out) const {
  if (!quantized_) {
    std::memcpy(out, floats(token, 0), stride_ * sizeof(float));
    return;
  }
  const ActivationQ80* block = blocks(token, 0);
  for (size_t b = 0; b < stride_; ++b, ++block, out += kBlockSize) {
    for (size_t i = 0; i < kBlockSize; ++i) out[i] = static_cast<float>(block->quants[i]) * block->scale;
  }
}

size_t ActivationRows::wire_bytes(bool quantized, size_t n) {
  return quantized ? n / kBlockSize * kWireBlock : n * sizeof(float);
}

void ActivationRows::to_wire(size_t token, size_t col, size_t n, std::byte* out) const {
  if (!quantized_) {
    if (n != 0) std::memcpy(out, floats(token, col), n * sizeof(float));
    return;
  }
  const ActivationQ80* block = blocks(token, col);
  for (size_t b = 0; b < n / kBlockSize; ++b, ++block, out += kWireBlock) {
    std::memcpy(out, block->quants, kBlockSize);
    std::memcpy(out + kBlockSize, &block->scale, sizeof(float));
  }
}

void ActivationRows::from_wire(size_t token, size_t col, size_t n, const std::byte* data) {
  if (!quantized_) {
    if (n != 0) std::memcpy(floats(token, col), data, n * sizeof(float));
    return;
  }
  ActivationQ80* block = blocks(token, col);
  for (size_t b = 0; b < n / kBlockSize; ++b, ++block, data += kWireBlock) {
    std::memcpy(block->quants, data, kBlockSize);
    std::memcpy(&block->scale, data + kBlockSize, sizeof(float));
    set_offset(*block);
  }
}

Matrix make_matrix(const Kernels& kernels, DType type, size_t rows, size_t cols) {
  const size_t groups = num_parts(rows, kernels.row_group);
  return {type, rows, cols, groups, kernels.group_bytes(type, cols), nullptr};
}

void matmul(const Kernels& kernels, const Matrix& w, size_t first_group, size_t num_groups, const ActivationRows& x,
            size_t first_token, size_t num_tokens, float* out, size_t out_stride) {
  const std::byte* packed = w.at(first_group);
  const void* rows = x.row(first_token);
  const auto* blocks = static_cast<const ActivationQ80*>(rows);
  const auto* floats = static_cast<const float*>(rows);
  switch (w.type) {
    case DType::Q40:
      return kernels.matmul_q40(packed, num_groups, w.cols, blocks, x.stride(), num_tokens, out, out_stride);
    case DType::Q80:
      return kernels.matmul_q80(packed, num_groups, w.cols, blocks, x.stride(), num_tokens, out, out_stride);
    case DType::F16:
      return kernels.matmul_f16(packed, num_groups, w.cols, floats, x.stride(), num_tokens, out, out_stride);
    case DType::F32:
      return kernels.matmul_f32(packed, num_groups, w.cols, floats, x.stride(), num_tokens, out, out_stride);
  }
}

}  // namespace dllama
