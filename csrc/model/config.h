// What the core must know of a model and of the node it runs on. Python fills it in, the same for every rank but for
// the number of threads. Fields that a model's page has too are explained there: dllama/config.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "quant/blocks.h"

namespace dllama {

// What the feed-forward network applies to its gate.
enum class Activation : uint8_t { Silu = 0, GeluTanh = 1 };

// RMSNorm of queries and keys before the rotation: of each head, or of all heads of a token together.
enum class QkNorm : uint8_t { None = 0, Head = 1, All = 2 };

// The features of one layer.
struct LayerSpec {
  QkNorm qk_norm = QkNorm::None;
  bool has_qkv_bias = false;
  bool has_input_norms = true;    // attention and FFN read the residual through a norm; without it has_output_norms
  bool has_output_norms = false;  // what they add to the residual is normed first, summed over ranks
  size_t window = 0;              // positions that a token attends to, its own included; 0: all before it
  bool has_local_rope = false;    // rotates by local_rope_frequencies
  bool has_experts = false;
};

// What one rank owns. Query heads come as many for each KV head; several ranks may own the same KV head with query
// heads of their own. A rank without heads takes no part in attention.
struct Shard {
  size_t num_heads = 0;
  size_t num_kv_heads = 0;
  size_t intermediate_size = 0;
  size_t vocab_begin = 0;
  size_t vocab_end = 0;
  size_t kv_head_begin = 0;             // the first of its KV heads, counted over the model
  size_t expert_intermediate_size = 0;  // of each expert
  size_t vocab_size() const { return vocab_end - vocab_begin; }
  bool has_attention() const { return num_heads != 0; }
  size_t group_size() const { return has_attention() ? num_heads / num_kv_heads : 1; }  // query heads per KV head
};

struct NodeConfig {
  size_t hidden_size = 0;
  size_t head_dim = 0;
  size_t vocab_size = 0;
  float rms_norm_eps = 0.0f;
  // [pairs] angle per position of the pairs (j, j + pairs) of a head, scaling applied; values behind the last pair are
  // not rotated.
  std::vector<float> rope_frequencies;
  float rope_factor = 1.0f;                   // multiplies cosines and sines of these
  std::vector<float> local_rope_frequencies;  // [pairs] of layers with has_local_rope; empty if there is none
  std::vector<LayerSpec> layers;
  Activation activation = Activation::Silu;
  size_t num_experts = 0;
  size_t num_experts_per_tok = 0;
  bool norm_topk_prob = true;
  float embedding_multiplier = 1.0f;
  float attention_multiplier = 0.0f;  // 0: 1 / sqrt(head_dim)
  float residual_multiplier = 1.0f;
  float logits_multiplier = 1.0f;
  float attention_softcap = 0.0f;  // 0: none
  float logits_softcap = 0.0f;
  DType weight_type = DType::Q40;
  std::set<std::string> q80_tensors;  // matrices that are Q80 where the others are Q40; of experts without their number
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

  // Number type of a matrix by its name in the model file.
  DType matrix_type(const std::string& name) const;
  bool has_experts() const;
  bool has_output_norms() const;     // of any layer: then every rank needs the whole sum, and exchanges are direct
  bool has_all_heads_norms() const;  // of any layer
  // Heads of the model, and how many of a rank's first KV heads lower ranks own too.
  size_t num_heads() const;
  size_t num_kv_heads() const;
  size_t shared_kv_heads(size_t rank) const;
  // What queries are multiplied with before their products with keys.
  float score_scale() const;
};

}  // namespace dllama
