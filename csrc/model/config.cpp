#include "model/config.h"

#include "base/errors.h"

namespace dllama {

namespace {

// Bounds far above any model, so that no product of sizes that describe one thing overflows 64 bits.
constexpr size_t kMaxSize = size_t{1} << 24;   // hidden and FFN sizes, vocabulary, tokens, rows, threads, slots
constexpr size_t kMaxHeads = size_t{1} << 12;  // heads, values of a head, layers
constexpr size_t kMaxPages = size_t{1} << 24;  // of 64 positions: all positions stay below 2^31

void check_shard(const NodeConfig& config, const Shard& shard) {
  require((shard.num_heads > 0) == (shard.num_kv_heads > 0), "a rank owns query and KV heads, or neither");
  require(shard.num_heads <= kMaxHeads && shard.intermediate_size <= kMaxSize, "a rank's sizes are out of range");
  require(!shard.has_attention() || shard.num_heads % shard.num_kv_heads == 0,
          "a rank's query heads must be a multiple of its KV heads");
  require(shard.num_heads * config.head_dim % kBlockSize == 0, "a rank's query outputs must be a multiple of 32");
  require(shard.intermediate_size > 0 && shard.intermediate_size % kBlockSize == 0,
          "a rank's FFN columns must be a multiple of 32");
}

}  // namespace

void NodeConfig::validate() const {
  for (const size_t size : {hidden_size, vocab_size, num_threads, max_tokens, max_rows, num_slots}) {
    require(size > 0 && size <= kMaxSize, "sizes must be between 1 and 2^24");
  }
  require(head_dim > 0 && head_dim <= kMaxHeads, "head_dim must be between 1 and 4096");
  require(layers.size() <= kMaxHeads, "too many layers");
  require(num_pages <= kMaxPages, "too many KV pages");
  require(hidden_size % kBlockSize == 0, "hidden_size must be a multiple of 32");
  require(head_dim % 2 == 0, "head_dim must be even");
  require(rope_frequencies.size() == head_dim / 2, "rope_frequencies must have head_dim / 2 entries");
  require(!layers.empty(), "a model needs at least one layer");
  require(kv_type != DType::Q40, "kv_type must be F16, F32 or Q80");
  require(wire_type != DType::Q40, "wire_type must be F32, F16 or Q80");
  require(!shards.empty(), "a group needs at least one shard");
  size_t vocab = 0;
  for (const Shard& shard : shards) {
    check_shard(*this, shard);
    require(shard.vocab_begin == vocab && shard.vocab_end > vocab, "vocabulary slices must follow each other");
    vocab = shard.vocab_end;
  }
  require(vocab == vocab_size, "vocabulary slices must cover vocab_size");
}

}  // namespace dllama
