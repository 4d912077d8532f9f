// Matrix products: which rows, of which type, with which activations. Splitting over threads is the caller's.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/os_memory.h"
#include "kernels/kernels.h"
#include "quant/blocks.h"
#include "quant/codec.h"

namespace dllama {

// Whether a product with weights of this type reads its activations as Q80 blocks (else as floats).
inline bool wants_quantized(DType weights) {
  return weights == DType::Q40 || weights == DType::Q80;
}

// The inputs of a product for up to `max_tokens` tokens, in the form its weights want. [max_tokens, cols]
class ActivationRows {
 public:
  ActivationRows() = default;
  ActivationRows(bool quantized, size_t max_tokens, size_t cols);
  static size_t bytes(bool quantized, size_t max_tokens, size_t cols);

  // Stores x[0..n) as columns [col, col + n) of a token; quantized rows take whole blocks (col and n multiples of 32).
  void store(const Kernels& kernels, size_t token, size_t col, const float* x, size_t n);

  // Asks for the place of columns [col, col + 64) of a token, which will be stored; the token need not be there.
  void prefetch(size_t token, size_t col) const {
    const std::byte* place = buffer_.data() + (token * stride_ + records(col)) * record_bytes_;
    __builtin_prefetch(place, 1);
    __builtin_prefetch(place + 64, 1);
  }

  // Multiplies a token, or columns [col, col + n) of it, by `factor`: its blocks' scales, or its floats.
  void scale(size_t token, float factor);
  void scale(size_t token, size_t col, size_t n, float factor);

  // Copies a token of rows of the same form and as many columns.
  void copy(size_t token, const ActivationRows& from, size_t from_token);

  // out[0..cols) := the values of a token.
  void to_floats(size_t token, float* out) const;

  // Columns [col, col + n) of a token as they travel between nodes: per block its quants and its F32 scale, or floats.
  static size_t wire_bytes(bool quantized, size_t n);
  void to_wire(size_t token, size_t col, size_t n, std::byte* out) const;
  void from_wire(size_t token, size_t col, size_t n, const std::byte* data);

  // Records of one token: ActivationQ80 [cols / kBlockSize] or float [cols].
  const void* row(size_t token) const { return buffer_.data() + token * stride_ * record_bytes_; }
  size_t stride() const { return stride_; }  // records per token
  bool is_quantized() const { return quantized_; }

 private:
  // Records of `n` columns.
  size_t records(size_t n) const { return quantized_ ? n / kBlockSize : n; }
  ActivationQ80* blocks(size_t token, size_t col) const;
  float* floats(size_t token, size_t col) const;

  bool quantized_ = false;
  size_t record_bytes_ = 0;
  size_t stride_ = 0;
  Buffer buffer_;
};

// A weight matrix packed for the kernels in use: `groups` row groups over memory that Weights owns.
//
// Two matrices of one size that are read together may share their memory: runs of `run_groups` groups of the one and of
// the other take turns, so that who reads a run of each reads one stretch of memory.
struct Matrix {
  DType type = DType::F32;
  size_t rows = 0;
  size_t cols = 0;
  size_t groups = 0;       // ceil(rows / row_group)
  size_t group_bytes = 0;  // of one group
  std::byte* data = nullptr;
  size_t run_groups = 0;  // 0: the matrix is alone in its memory
  bool is_second = false;

  // Groups that lie behind each other from this one on, and where they begin.
  size_t groups_from(size_t group) const {
    return std::min(groups - group, run_groups == 0 ? groups : run_groups - group % run_groups);
  }
  std::byte* at(size_t group) const {
    if (run_groups == 0) return data + group * group_bytes;
    const size_t first = group / run_groups * run_groups;  // of its run
    const size_t before = 2 * first + (is_second ? std::min(run_groups, groups - first) : 0);
    return data + (before + group - first) * group_bytes;
  }
};

// A matrix of these sizes without memory yet.
Matrix make_matrix(const Kernels& kernels, DType type, size_t rows, size_t cols);

// out[t * out_stride + (r - first row of `first_group`)] = w[r] . x[first_token + t] for the rows of `num_groups`
// groups, which must lie behind each other. Writes num_groups * row_group floats per token: padding rows of the last
// group come out as zero.
void matmul(const Kernels& kernels, const Matrix& w, size_t first_group, size_t num_groups, const ActivationRows& x,
            size_t first_token, size_t num_tokens, float* out, size_t out_stride);

}  // namespace dllama
