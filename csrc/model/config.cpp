#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/errors.h"

namespace dllama {

namespace {

// Bounds far above any model, so that no product of sizes that describe one thing overflows 64 bits.
constexpr size_t kMaxSize = size_t{1} << 24;   // hidden and FFN sizes, vocabulary, tokens, rows, threads, slots
constexpr size_t kMaxHeads = size_t{1} << 12;  // heads, values of a head, layers
constexpr size_t kMaxPages = size_t{1} << 24;  // of 64 positions: all positions stay below 2^31
constexpr size_t kMaxExperts = size_t{1} << 16;
constexpr size_t kMaxChoices = size_t{1} << 32;  // of experts in a step

void check_shard(const NodeConfig& config, const Shard& shard) {
  require((shard.num_heads > 0) == (shard.num_kv_heads > 0), "a rank owns query and KV heads, or neither");
  require(shard.num_heads <= kMaxHeads && shard.intermediate_size <= kMaxSize && shard.kv_head_begin <= kMaxHeads,
          "a rank's sizes are out of range");
  require(!shard.has_attention() || shard.num_heads % shard.num_kv_heads == 0,
          "a rank's query heads must be a multiple of its KV heads");
  require(shard.num_heads * config.head_dim % kBlockSize == 0, "a rank's query outputs must be a multiple of 32");
  require(shard.intermediate_size > 0 && shard.intermediate_size % kBlockSize == 0,
          "a rank's FFN columns must be a multiple of 32");
  const size_t columns = shard.expert_intermediate_size;
  require(columns <= kMaxSize && columns % kBlockSize == 0 && (columns > 0) == config.has_experts(),
          "a rank's columns of each expert must be a multiple of 32, none without experts");
}

void check_layers(const NodeConfig& config) {
  require(!config.layers.empty(), "a model needs at least one layer");
  require(config.layers.size() <= kMaxHeads, "too many layers");
  const bool has_local = std::ranges::any_of(config.layers, &LayerSpec::has_local_rope);
  const size_t pairs = config.rope_frequencies.size();
  require(config.local_rope_frequencies.size() == (has_local ? pairs : 0),
          "local_rope_frequencies must be as many as rope_frequencies if a layer has them");
  for (const LayerSpec& layer : config.layers) {
    require(layer.qk_norm <= QkNorm::All, "unknown norm of queries and keys");
    require(layer.has_input_norms || layer.has_output_norms, "a layer without input norms needs output norms");
  }
}

void check_numbers(const NodeConfig& config) {
  for (const float number : {config.embedding_multiplier, config.residual_multiplier, config.logits_multiplier}) {
    require(number > 0.0f && std::isfinite(number), "multipliers must be positive numbers");
  }
  for (const float number : {config.attention_multiplier, config.attention_softcap, config.logits_softcap}) {
    require(number >= 0.0f && std::isfinite(number), "attention_multiplier and caps must be 0 or positive numbers");
  }
  require(config.rope_factor > 0.0f && std::isfinite(config.rope_factor), "rope_factor must be a positive number");
}

// Every KV head has an owner, and ranks own them in order.
void check_kv_heads(const std::vector<Shard>& shards) {
  size_t end = 0;  // of those that have one
  for (const Shard& shard : shards) {
    if (!shard.has_attention()) continue;
    const size_t own_end = shard.kv_head_begin + shard.num_kv_heads;
    require(shard.kv_head_begin <= end && own_end >= end, "KV heads of ranks must follow each other");
    end = own_end;
  }
}

}  // namespace

void NodeConfig::validate() const {
  for (const size_t size : {hidden_size, vocab_size, num_threads, max_tokens, max_rows, num_slots}) {
    require(size > 0 && size <= kMaxSize, "sizes must be between 1 and 2^24");
  }
  require(head_dim > 0 && head_dim <= kMaxHeads, "head_dim must be between 1 and 4096");
  require(num_pages <= kMaxPages, "too many KV pages");
  require(hidden_size % kBlockSize == 0, "hidden_size must be a multiple of 32");
  require(head_dim % 2 == 0, "head_dim must be even");
  require(!rope_frequencies.empty() && rope_frequencies.size() <= head_dim / 2,
          "rope_frequencies must have 1 to head_dim / 2 entries");
  require(activation <= Activation::GeluTanh, "unknown activation");
  require(q80_tensors.empty() || weight_type == DType::Q40, "only a Q40 model has Q80 tensors besides");
  require(kv_type != DType::Q40, "kv_type must be F16, F32 or Q80");
  require(wire_type != DType::Q40, "wire_type must be F32, F16 or Q80");
  check_layers(*this);
  check_numbers(*this);
  require(!has_experts() || (num_experts > 0 && num_experts <= kMaxExperts), "num_experts must be 1 to 65536");
  require(!has_experts() || (num_experts_per_tok > 0 && num_experts_per_tok <= num_experts),
          "num_experts_per_tok must be 1 to num_experts");
  require(!has_experts() || max_tokens * num_experts_per_tok <= kMaxChoices,
          "max_tokens * num_experts_per_tok must be at most 2^32");
  require(!shards.empty(), "a group needs at least one shard");
  size_t vocab = 0;
  for (const Shard& shard : shards) {
    check_shard(*this, shard);
    require(shard.vocab_begin == vocab && shard.vocab_end > vocab, "vocabulary slices must follow each other");
    vocab = shard.vocab_end;
  }
  require(vocab == vocab_size, "vocabulary slices must cover vocab_size");
  check_kv_heads(shards);
}

DType NodeConfig::matrix_type(const std::string& name) const {
  if (name.ends_with(".router")) return DType::F32;
  if (q80_tensors.empty()) return weight_type;
  constexpr std::string_view kExperts = ".experts.";
  std::string listed = name;
  if (const size_t found = name.find(kExperts); found != std::string::npos) {
    const size_t number = found + kExperts.size();
    listed.erase(number, name.find('.', number) + 1 - number);
  }
  return q80_tensors.contains(listed) ? DType::Q80 : weight_type;
}

bool NodeConfig::has_experts() const {
  return std::ranges::any_of(layers, &LayerSpec::has_experts);
}

bool NodeConfig::has_output_norms() const {
  return std::ranges::any_of(layers, &LayerSpec::has_output_norms);
}

bool NodeConfig::has_all_heads_norms() const {
  return std::ranges::any_of(layers, [](const LayerSpec& layer) { return layer.qk_norm == QkNorm::All; });
}

size_t NodeConfig::num_heads() const {
  size_t total = 0;
  for (const Shard& shard : shards) total += shard.num_heads;
  return total;
}

size_t NodeConfig::num_kv_heads() const {
  size_t end = 0;
  for (const Shard& shard : shards) end = std::max(end, shard.kv_head_begin + shard.num_kv_heads);
  return end;
}

size_t NodeConfig::shared_kv_heads(size_t rank) const {
  size_t end = 0;  // of those that lower ranks own
  for (size_t r = 0; r < rank; ++r) end = std::max(end, shards[r].kv_head_begin + shards[r].num_kv_heads);
  const Shard& own = shards[rank];
  return std::min(end - std::min(end, own.kv_head_begin), own.num_kv_heads);
}

float NodeConfig::score_scale() const {
  return attention_multiplier > 0.0f ? attention_multiplier : 1.0f / std::sqrt(static_cast<float>(head_dim));
}

}  // namespace dllama
