#include "ops/matmul.h"

#include <cstring>

namespace dllama {

size_t ActivationRows::bytes(bool quantized, size_t max_tokens, size_t cols) {
  return max_tokens * (quantized ? cols / kBlockSize * sizeof(ActivationQ80) : cols * sizeof(float));
}

ActivationRows::ActivationRows(bool quantized, size_t max_tokens, size_t cols)
    : quantized_(quantized),
      record_bytes_(quantized ? sizeof(ActivationQ80) : sizeof(float)),
      stride_(quantized ? cols / kBlockSize : cols),
      buffer_(bytes(quantized, max_tokens, cols)) {}

void ActivationRows::store(const Kernels& kernels, size_t token, size_t col, const float* x, size_t n) {
  if (quantized_) {
    auto* blocks = buffer_.as<ActivationQ80>() + token * stride_ + col / kBlockSize;
    kernels.quantize_activation(x, blocks, n / kBlockSize);
  } else {
    std::memcpy(buffer_.as<float>() + token * stride_ + col, x, n * sizeof(float));
  }
}

Matrix make_matrix(const Kernels& kernels, DType type, size_t rows, size_t cols) {
  const size_t groups = (rows + kernels.row_group - 1) / kernels.row_group;
  return {type, rows, cols, groups, kernels.group_bytes(type, cols), nullptr};
}

void matmul(const Kernels& kernels, const Matrix& w, size_t first_group, size_t num_groups, const ActivationRows& x,
            size_t first_token, size_t num_tokens, float* out, size_t out_stride) {
  const std::byte* packed = w.data + first_group * w.group_bytes;
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
