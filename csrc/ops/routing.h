// Which experts multiply which tokens. Knows neither threads nor weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"

namespace dllama {

// An expert of a token, and how much its output counts.
struct ExpertChoice {
  uint32_t expert = 0;
  float weight = 0.0f;
};

// out := the experts of one token, ascending: those with the largest of logits[num_experts], of equals the first.
// Their weights are softmax's over all experts, or with `norm` over those chosen. out.size() is 1..num_experts; NaNs
// give unspecified weights and experts, as many as are asked for and each once.
void choose_experts(const float* logits, size_t num_experts, bool norm, std::span<ExpertChoice> out);

// Tokens of one expert that are multiplied together: some of its rows.
struct ExpertTile {
  size_t expert;
  Range rows;
};

// The choices of all tokens of a step, by expert: a row is a token with one of its experts. An expert's rows lie behind
// each other, their tokens ascending, and experts follow each other.
class Routing {
 public:
  Routing() = default;
  Routing(size_t num_experts, size_t max_rows, size_t max_tile_rows);
  static size_t bytes(size_t num_experts, size_t max_rows, size_t max_tile_rows);

  // `choices` are [tokens, per_token], at most max_rows of them.
  void set(std::span<const ExpertChoice> choices, size_t per_token);

  const std::vector<ExpertTile>& tiles() const { return tiles_; }
  size_t token(size_t row) const { return tokens_[row]; }
  float weight(size_t row) const { return weights_[row]; }
  // The rows of a tile whose tokens are in `tokens`.
  Range rows_of(const ExpertTile& tile, Range tokens) const;

 private:
  size_t max_tile_rows_ = 0;
  std::vector<size_t> next_;      // [num_experts] row for the expert's next token
  std::vector<uint32_t> tokens_;  // [max_rows]
  std::vector<float> weights_;    // [max_rows]
  std::vector<ExpertTile> tiles_;
};

}  // namespace dllama
