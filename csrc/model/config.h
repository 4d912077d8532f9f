// What the core must know of a model and of the node it runs on. Python fills it in, the same for every rank but for
// the number of threads.
#pragma once

#include <cstddef>
#include <vector>

#include "quant/blocks.h"

namespace dllama {

// The features of one layer.
struct LayerSpec {
  bool has_qk_norm = false;  // RMSNorm of each query and key head before the rotation
};

// What one rank owns. Query heads come as many for each KV head; several ranks may own the same KV head with query
// heads of their own. A rank without heads takes no part in attention.
struct Shard {
  size_t num_heads = 0;
  size_t num_kv_heads = 0;
  size_t intermediate_size = 0;
  size_t vocab_begin = 0;
  size_t vocab_end = 0;
  size_t vocab_size() const { return vocab_end - vocab_begin; }
  bool has_attention() const { return num_heads != 0; }
  size_t group_size() const { return has_attention() ? num_heads / num_kv_heads : 1; }  // query heads per KV head
};

struct NodeConfig {
  size_t hidden_size = 0;
  size_t head_dim = 0;
  size_t vocab_size = 0;
  float rms_norm_eps = 0.0f;
  std::vector<float> rope_frequencies;  // [head_dim / 2] angle per position, scaling applied
  std::vector<LayerSpec> layers;
  DType weight_type = DType::Q40;
  DType kv_type = DType::F16;
  DType wire_type = DType::Q80;
  std::vector<Shard> shards;  // by rank
  size_t num_threads = 1;
  size_t max_tokens = 512;  // in one step
  size_t max_rows = 1;      // whose logits or candidates one step may want
  size_t num_pages = 0;     // of the KV cache
  size_t num_slots = 1;     // sequences that can have pages at once

  // Throws InvalidArgument if the sizes do not fit together, saying which.
  void validate() const;
};

}  // namespace dllama
