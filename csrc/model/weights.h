// This rank's slices of the model, packed for its kernels: where they lie, and how they are filled.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "base/os_memory.h"
#include "base/thread_pool.h"
#include "model/config.h"
#include "ops/matmul.h"

namespace dllama {

// One of a layer's experts.
struct ExpertWeights {
  Matrix gate_proj, up_proj;  // column-parallel: this rank's columns x hidden_size
  Matrix down_proj;           // row-parallel: hidden_size x this rank's columns
};

struct LayerWeights {
  float* input_layernorm = nullptr;  // [hidden_size]
  // The next six only on ranks with heads.
  Matrix q_proj, k_proj, v_proj;              // column-parallel: this rank's heads x hidden_size
  float* q_norm = nullptr;                    // [head_dim], only with has_qk_norm
  float* k_norm = nullptr;                    // [head_dim]
  Matrix o_proj;                              // row-parallel: hidden_size x this rank's query outputs
  float* post_attention_layernorm = nullptr;  // [hidden_size]
  // With experts.
  float* router = nullptr;  // [num_experts, hidden_size]
  std::vector<ExpertWeights> experts;
  // Without.
  Matrix gate_proj, up_proj;                  // column-parallel: this rank's FFN columns x hidden_size
  Matrix down_proj;                           // row-parallel: hidden_size x this rank's FFN columns
};

class Weights {
 public:
  // Lays the tensors out without memory; allocate() reserves it.
  Weights(const Kernels& kernels, const NodeConfig& config, const Shard& shard);

  size_t bytes() const { return bytes_; }
  void allocate();

  // Names as in the model file ("layers.0.q_proj"), sorted, and the shape of this rank's slice.
  std::vector<std::string> names() const;
  std::vector<size_t> shape(const std::string& name) const;

  // Packs `num_rows` canonical rows, starting at `first_row` (a multiple of the row group), with all threads of `pool`.
  // A norm is one F32 row. Throws InvalidArgument if name, range or size do not fit.
  void load_rows(ThreadPool& pool, const std::string& name, size_t first_row, size_t num_rows, const std::byte* data,
                 size_t size);

  std::vector<LayerWeights> layers;
  float* norm = nullptr;  // [hidden_size]
  Matrix lm_head;         // column-parallel: this rank's vocabulary x hidden_size

 private:
  struct Slot {
    Matrix* matrix = nullptr;  // either this
    float** vector = nullptr;  // or this
    size_t length = 0;         // of the vector
    size_t offset = 0;         // into the buffer
    size_t rows = 0;           // of a vector that is a matrix of F32, row by row
  };
  void add_matrix(const std::string& name, Matrix& matrix, size_t rows, size_t cols);
  void add_ffn(const std::string& prefix, Matrix& gate, Matrix& up, Matrix& down, size_t columns);
  void add_experts(const std::string& prefix, LayerWeights& layer);
  void add_vector(const std::string& name, float*& vector, size_t length);
  void add_layer(const std::string& prefix, LayerWeights& layer, const LayerSpec& spec);
  const Slot& slot(const std::string& name) const;
  size_t reserve(size_t size);

  const Kernels& kernels_;
  const NodeConfig& config_;
  const Shard& shard_;
  std::map<std::string, Slot> slots_;
  size_t bytes_ = 0;
  Buffer buffer_;
};

}  // namespace dllama
