#include "model/config.h"

#include "base/errors.h"

namespace dllama {

namespace {

void check_shard(const NodeConfig& config, const Shard& shard) {
  require(shard.num_heads > 0 && shard.num_kv_heads > 0, "every rank needs at least one head");
  require(shard.num_heads % shard.num_kv_heads == 0, "a rank's query heads must be a multiple of its KV heads");
  require(shard.num_heads * config.head_dim % kBlockSize == 0, "a rank's query outputs must be a multiple of 32");
  require(shard.intermediate_size > 0 && shard.intermediate_size % kBlockSize == 0,
          "a rank's FFN columns must be a multiple of 32");
}

}  // namespace

void NodeConfig::validate() const {
  // Bounds far above any model, so that no product of two sizes overflows.
  constexpr size_t kLimit = size_t{1} << 28;
  for (const size_t size : {hidden_size, head_dim, vocab_size, num_threads, max_tokens, num_slots}) {
    require(size > 0 && size < kLimit, "sizes must be between 1 and 2^28");
  }
  require(num_pages < kLimit, "too many KV pages");
  require(hidden_size % kBlockSize == 0, "hidden_size must be a multiple of 32");
  require(head_dim % 2 == 0, "head_dim must be even");
  require(rope_frequencies.size() == head_dim / 2, "rope_frequencies must have head_dim / 2 entries");
  require(!layers.empty(), "a model needs at least one layer");
  require(kv_type == DType::F16 || kv_type == DType::F32, "kv_type must be F16 or F32");
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
