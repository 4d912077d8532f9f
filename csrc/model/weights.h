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

// A feed-forward network, or one of a layer's experts.
struct FfnWeights {
  Matrix gate_proj, up_proj;  // column-parallel: this rank's columns x hidden_size
  Matrix down_proj;           // row-parallel: hidden_size x this rank's columns
};

// Pointers are null where the layer has none of it (LayerSpec).
struct LayerWeights {
  float* input_layernorm = nullptr;  // [hidden_size]
  // The next nine only on ranks with heads.
  Matrix q_proj, k_proj, v_proj;  // column-parallel: this rank's heads x hidden_size
  float* q_bias = nullptr;        // [this rank's query outputs]
  float* k_bias = nullptr;        // [this rank's KV outputs]
  float* v_bias = nullptr;
  float* q_norm = nullptr;                    // [head_dim], or of all heads [this rank's query outputs]
  float* k_norm = nullptr;                    // [head_dim], or of all heads [this rank's KV outputs]
  Matrix o_proj;                              // row-parallel: hidden_size x this rank's query outputs
  float* attention_output_norm = nullptr;     // [hidden_size]
  float* post_attention_layernorm = nullptr;  // [hidden_size], before the feed-forward network
  FfnWeights ffn;                             // either this
  float* router = nullptr;                    // or with experts: [num_experts, hidden_size]
  std::vector<FfnWeights> experts;
  float* feedforward_output_norm = nullptr;  // [hidden_size]
};

class Weights {
 public:
  // Lays the tensors out without memory; allocate() reserves it.
  Weights(const Kernels& kernels, const NodeConfig& config, const Shard& shard);

  size_t bytes() const { return bytes_; }
  // Most bytes of the tables that say what its tensors are.
  static size_t table_bytes(const NodeConfig& config);
  void allocate();

  // Names as in the model file ("layers.0.q_proj"), sorted, and the shape of this rank's slice.
  std::vector<std::string> names() const;
  std::vector<size_t> shape(const std::string& name) const;

  // Packs `num_rows` canonical rows, starting at `first_row` (a multiple of the row group), with all threads of `pool`.
  // A vector is one F32 row, a router F32 rows from any. Throws InvalidArgument if name, range or size do not fit.
  void load_rows(ThreadPool& pool, const std::string& name, size_t first_row, size_t num_rows, const std::byte* data,
                 size_t size);

  std::vector<LayerWeights> layers;
  float* norm = nullptr;  // [hidden_size]
  Matrix lm_head;         // column-parallel: this rank's vocabulary x hidden_size

 private:
  struct Slot {
    Matrix* matrix = nullptr;  // either this
    float** vector = nullptr;  // or this
    size_t length = 0;         // of the vector, all its rows together
    size_t offset = 0;         // into the buffer
    size_t rows = 0;           // of a vector that is a matrix of floats as they come; 0: it is none
  };
  void add_matrix(const std::string& name, Matrix& matrix, size_t rows, size_t cols);
  void add_ffn(const std::string& prefix, FfnWeights& ffn, size_t columns);
  void add_gate_and_up(const std::string& prefix, FfnWeights& ffn, size_t columns);
  void add_experts(const std::string& prefix, LayerWeights& layer);
  void add_vector(const std::string& name, float*& vector, size_t length);
  void add_layer(const std::string& prefix, LayerWeights& layer, const LayerSpec& spec);
  void add_attention(const std::string& prefix, LayerWeights& layer, const LayerSpec& spec);
  const Slot& slot(const std::string& name) const;
  void load_floats(const std::string& name, size_t first_row, size_t num_rows, const std::byte* data, size_t size);
  size_t reserve(size_t size);

  const Kernels& kernels_;
  const NodeConfig& config_;
  const Shard& shard_;
  std::map<std::string, Slot> slots_;
  size_t bytes_ = 0;
  Buffer buffer_;
};

}  // namespace dllama
