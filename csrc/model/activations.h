// Every buffer of a forward step, named and sized once. A step only uses the first `num_tokens` rows.
#pragma once

#include <cstddef>
#include <vector>

#include "base/os_memory.h"
#include "base/thread_pool.h"
#include "model/config.h"
#include "ops/attention.h"
#include "ops/matmul.h"
#include "ops/routing.h"

namespace dllama {

// Up to this many tokens, every thread does the serial work between two products (residual, norm, quantization) for all
// tokens itself: about a microsecond each, cheaper than a barrier and its imbalance.
inline constexpr size_t kRedundantTokens = 4;
// Rows of a weight matrix that a thread takes at a time: 64 rows of 2048 Q40 inputs are 74 KB, which stays in L2 while
// all tokens of a prompt chunk stream past it.
inline constexpr size_t kChunkRows = 64;
// Tokens whose gate and up are computed before they are put together, while what both read and give lies in L2. An
// expert multiplies so many together.
inline constexpr size_t kGateTokens = 128;
// Tokens whose router logits are computed together, while their inputs as floats lie in L2.
inline constexpr size_t kRouterTokens = 16;
// Query rows (tokens x query heads of a KV head) that attention handles together, at least one token's. A multiple of
// 6, which kernels take at a time; with 64 values to a head, rows, sums and a page stay in L2.
inline constexpr size_t kTileRows = 48;
// Rows of logits computed at a time when only scores are wanted.
inline constexpr size_t kScoreRows = 32;

// The smallest number of heads whose outputs are whole multiples of `unit` values.
size_t heads_per_unit(size_t head_values, size_t unit);
// Tokens whose attention is computed together: a tile.
size_t tile_tokens(const Shard& shard);

// Segments of the longest sequence that the KV pages can hold.
size_t segments_of_pool(const NodeConfig& config);

// The range of the hidden size that a rank sums up and normalizes: whole blocks, as even as they go; it may be empty.
Range hidden_range(const NodeConfig& config, size_t rank);
// Bytes of a rank's range of one token as it travels, normalized: the sum of its squares, then its columns.
size_t range_record_bytes(const NodeConfig& config, size_t rank);

// Cosines and sines of the angles of each token's rotated pairs. [max_tokens, pairs]
struct RotaryTable {
  Buffer cos, sin;
};

// Sums of squares of a token's queries and keys.
struct HeadSquares {
  float q;
  float k;
};

// What one thread has for itself.
struct ThreadBuffers {
  ThreadBuffers(const Kernels& kernels, const NodeConfig& config, const Shard& shard);

  std::vector<float> residual;  // [kRedundantTokens, hidden_size]
  ActivationRows normed;        // [kRedundantTokens, hidden_size]
  std::vector<float> scratch;   // [hidden_size]
  std::vector<float> sum;       // [hidden_size] over the ranks
  std::vector<float> heads;     // [max_tokens, heads of a chunk x head_dim] keys or values before they are stored
  std::vector<float> gate;      // [max_tokens, kChunkRows]
  std::vector<float> up;        // [max_tokens, kChunkRows]
  AttentionScratch attention;   // [tokens of a tile x query heads of a KV head]
  std::vector<float> attended;  // [tokens of a tile, heads of a unit x head_dim]
  // Only in models with experts.
  std::vector<float> router_inputs;   // [kRouterTokens, hidden_size]
  std::vector<ExpertChoice> choices;  // [kRedundantTokens, num_experts_per_tok]
  Routing routing;                    // of the step's tokens, the same in each thread
  ActivationRows gathered;            // [kGateTokens, hidden_size] inputs of an expert's tokens
};

struct Activations {
  Activations(const Kernels& kernels, const NodeConfig& config, const Shard& shard);
  static size_t bytes(const Kernels& kernels, const NodeConfig& config, const Shard& shard);

  std::vector<size_t> position;  // [max_tokens]
  std::vector<size_t> slot;      // [max_tokens]
  RotaryTable rope, local_rope;  // the latter only if a layer has it
  Buffer residual;               // [max_tokens, hidden_size]
  Buffer update;                 // [max_tokens, hidden_size] what this rank's o_proj or down_proj adds to the residual
  Buffer q;                      // [max_tokens, q_stride] rotated queries
  size_t q_stride;               // this rank's query outputs, padded to whole row groups
  Buffer k;                      // [max_tokens, k_stride] keys, only if all heads of a token are normed together
  size_t k_stride;               // this rank's KV outputs, padded to whole row groups
  Buffer head_squares;           // [rank, max_tokens] HeadSquares, likewise
  Buffer segments;               // [kRedundantTokens, num_heads, segments, head_dim + 2] attention.cpp
  ActivationRows normed;         // [max_tokens, hidden_size] input of q, k, v or gate, up
  ActivationRows attended;       // [max_tokens, this rank's query outputs] input of o_proj
  ActivationRows gated;          // [max_tokens, this rank's FFN columns] input of down_proj
  // Only in models with experts; a row is a token with one of its experts, see Routing.
  Buffer router_logits;               // [max_tokens, num_experts]
  std::vector<ExpertChoice> choices;  // [max_tokens, num_experts_per_tok]
  ActivationRows expert_gated;        // [rows, this rank's columns of an expert] input of its down_proj
  // With other ranks (sync.h): sums of hidden values for and from them in the wire type, and normalized ranges.
  Buffer sums_out;              // [max_tokens, hidden_size]
  std::vector<Buffer> sums_in;  // [rank] the same; none of its own
  std::vector<Buffer> ranges;   // [rank] [max_tokens] records, its own too
  std::vector<ThreadBuffers> threads;
};

}  // namespace dllama
