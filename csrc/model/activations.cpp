#include "model/activations.h"

#include <algorithm>
#include <numeric>

#include "net/wire.h"

namespace dllama {

namespace {

size_t padded(const Kernels& kernels, size_t rows) {
  return num_parts(rows, kernels.row_group) * kernels.row_group;
}

// Values of the heads that a thread projects at a time.
size_t chunk_values(const Kernels& kernels, const NodeConfig& config) {
  return heads_per_unit(config.head_dim, kernels.row_group) * config.head_dim;
}

size_t unit_values(const NodeConfig& config, const Shard& shard) {
  const size_t values = shard.group_size() * config.head_dim;
  return heads_per_unit(values, kBlockSize) * values;
}

size_t segments_bytes(const NodeConfig& config, const Shard& shard) {
  return kRedundantTokens * shard.num_heads * segments_of_pool(config) * (config.head_dim + 2) * sizeof(float);
}

RotaryTable rotary_table(const NodeConfig& config, size_t pairs) {
  const size_t bytes = config.max_tokens * pairs * sizeof(float);
  return {Buffer(bytes), Buffer(bytes)};
}

// Keys that wait for the norm of all heads.
size_t kept_key_bytes(const Kernels& kernels, const NodeConfig& config, const Shard& shard) {
  if (!config.has_all_heads_norms()) return 0;
  return config.max_tokens * padded(kernels, shard.num_kv_heads * config.head_dim) * sizeof(float);
}

size_t head_squares_bytes(const NodeConfig& config) {
  return config.has_all_heads_norms() ? config.shards.size() * config.max_tokens * sizeof(HeadSquares) : 0;
}

// Sums of all tokens of the largest step, in the wire type.
size_t sums_bytes(const NodeConfig& config) {
  return config.max_tokens * wire_bytes(config.wire_type, config.hidden_size);
}

size_t num_experts(const NodeConfig& config) {
  return config.has_experts() ? config.num_experts : 0;
}

// Tokens of the largest step, each once for each of its experts.
size_t expert_rows(const NodeConfig& config) {
  return config.has_experts() ? config.max_tokens * config.num_experts_per_tok : 0;
}

// Tokens of an expert that are multiplied together.
size_t gathered_tokens(const NodeConfig& config) {
  return config.has_experts() ? std::min(kGateTokens, config.max_tokens) : 0;
}

// What experts take, with that of all threads.
size_t experts_bytes(const NodeConfig& config, const Shard& shard) {
  if (!config.has_experts()) return 0;
  const bool quantized = wants_quantized(config.weight_type);
  const size_t rows = expert_rows(config);
  const size_t per_thread = kRouterTokens * config.hidden_size * sizeof(float) +
                            kRedundantTokens * config.num_experts_per_tok * sizeof(ExpertChoice) +
                            Routing::bytes(config.num_experts, rows, kGateTokens) +
                            ActivationRows::bytes(quantized, gathered_tokens(config), config.hidden_size);
  return config.max_tokens * config.num_experts * sizeof(float) + rows * sizeof(ExpertChoice) +
         ActivationRows::bytes(quantized, rows, shard.expert_intermediate_size) + config.num_threads * per_thread;
}

}  // namespace

Range hidden_range(const NodeConfig& config, size_t rank) {
  const Range blocks = split(config.hidden_size / kBlockSize, config.shards.size(), rank);
  return {blocks.begin * kBlockSize, blocks.end * kBlockSize};
}

size_t range_record_bytes(const NodeConfig& config, size_t rank) {
  const bool quantized = wants_quantized(config.weight_type);
  return sizeof(float) + ActivationRows::wire_bytes(quantized, hidden_range(config, rank).size());
}

size_t heads_per_unit(size_t head_values, size_t unit) {
  return unit / std::gcd(head_values, unit);
}

size_t segments_of_pool(const NodeConfig& config) {
  return num_parts(config.num_pages, kSegmentPages);
}

size_t tile_tokens(const Shard& shard) {
  return std::max<size_t>(1, kTileRows / shard.group_size());
}

ThreadBuffers::ThreadBuffers(const Kernels& kernels, const NodeConfig& config, const Shard& shard)
    : residual(kRedundantTokens * config.hidden_size),
      normed(wants_quantized(config.weight_type), kRedundantTokens, config.hidden_size),
      scratch(config.hidden_size),
      sum(config.hidden_size),
      heads(config.max_tokens * chunk_values(kernels, config)),
      gate(config.max_tokens * kChunkRows),
      up(config.max_tokens * kChunkRows),
      attention(tile_tokens(shard) * shard.group_size(), config.head_dim),
      attended(tile_tokens(shard) * unit_values(config, shard)),
      router_inputs(config.has_experts() ? kRouterTokens * config.hidden_size : 0),
      choices(config.has_experts() ? kRedundantTokens * config.num_experts_per_tok : 0),
      routing(num_experts(config), expert_rows(config), kGateTokens),
      gathered(wants_quantized(config.weight_type), gathered_tokens(config), config.hidden_size) {}

Activations::Activations(const Kernels& kernels, const NodeConfig& config, const Shard& shard)
    : position(config.max_tokens),
      slot(config.max_tokens),
      rope(rotary_table(config, config.rope_frequencies.size())),
      local_rope(rotary_table(config, config.local_rope_frequencies.size())),
      residual(config.max_tokens * config.hidden_size * sizeof(float)),
      update(config.max_tokens * config.hidden_size * sizeof(float)),
      q(config.max_tokens * padded(kernels, shard.num_heads * config.head_dim) * sizeof(float)),
      q_stride(padded(kernels, shard.num_heads * config.head_dim)),
      k(kept_key_bytes(kernels, config, shard)),
      k_stride(padded(kernels, shard.num_kv_heads * config.head_dim)),
      head_squares(head_squares_bytes(config)),
      segments(segments_bytes(config, shard)),
      normed(wants_quantized(config.weight_type), config.max_tokens, config.hidden_size),
      attended(wants_quantized(config.weight_type), config.max_tokens, shard.num_heads * config.head_dim),
      gated(wants_quantized(config.weight_type), config.max_tokens, shard.intermediate_size),
      router_logits(config.max_tokens * num_experts(config) * sizeof(float)),
      choices(expert_rows(config)),
      expert_gated(wants_quantized(config.weight_type), expert_rows(config), shard.expert_intermediate_size) {
  if (config.shards.size() > 1) {
    sums_out = Buffer(sums_bytes(config));
    for (const Shard& peer : config.shards) {
      sums_in.emplace_back(&peer == &shard ? 0 : sums_bytes(config));
      ranges.emplace_back(config.max_tokens * range_record_bytes(config, ranges.size()));
    }
  }
  for (size_t thread = 0; thread < config.num_threads; ++thread) threads.emplace_back(kernels, config, shard);
}

size_t Activations::bytes(const Kernels& kernels, const NodeConfig& config, const Shard& shard) {
  const bool quantized = wants_quantized(config.weight_type);
  const size_t tokens = config.max_tokens;
  const size_t q_size = shard.num_heads * config.head_dim;
  const size_t pairs = config.rope_frequencies.size() + config.local_rope_frequencies.size();
  const size_t per_token = 2 * pairs + 2 * config.hidden_size + padded(kernels, q_size);
  const size_t per_thread = chunk_values(kernels, config) + 2 * kChunkRows;
  size_t total = tokens * (per_token + config.num_threads * per_thread) * sizeof(float);
  total += segments_bytes(config, shard) + kept_key_bytes(kernels, config, shard) + head_squares_bytes(config);
  for (const size_t cols : {config.hidden_size, q_size, shard.intermediate_size}) {
    total += ActivationRows::bytes(quantized, tokens, cols);
  }
  total += experts_bytes(config, shard);
  const size_t ranks = config.shards.size();
  for (size_t rank = 0; ranks > 1 && rank < ranks; ++rank) {
    total += sums_bytes(config) + tokens * range_record_bytes(config, rank);
  }
  return total;
}

}  // namespace dllama
