#include "ops/routing.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace dllama {

namespace {

// out := the largest logits, descending, in place of weights.
void find_largest(const float* logits, size_t num_experts, std::span<ExpertChoice> out) {
  size_t count = 0;
  for (size_t expert = 0; expert < num_experts; ++expert) {
    const float logit = logits[expert];
    if (count == out.size() && !(logit > out.back().weight)) continue;
    size_t place = count < out.size() ? count++ : count - 1;
    for (; place > 0 && logit > out[place - 1].weight; --place) out[place] = out[place - 1];
    out[place] = {static_cast<uint32_t>(expert), logit};
  }
}

// Whole ones, and of each expert that has rows one that is not.
size_t most_tiles(size_t num_experts, size_t max_rows, size_t max_tile_rows) {
  return std::min(num_experts, max_rows) + max_rows / max_tile_rows;
}

}  // namespace

void choose_experts(const float* logits, size_t num_experts, bool norm, std::span<ExpertChoice> out) {
  find_largest(logits, num_experts, out);
  const float largest = out.front().weight;
  float total = 0.0f;
  for (size_t expert = 0; !norm && expert < num_experts; ++expert) total += std::exp(logits[expert] - largest);
  for (ExpertChoice& choice : out) {
    choice.weight = std::exp(choice.weight - largest);
    if (norm) total += choice.weight;
  }
  for (ExpertChoice& choice : out) choice.weight /= total;
  std::sort(out.begin(), out.end(), [](const auto& one, const auto& other) { return one.expert < other.expert; });
}

Routing::Routing(size_t num_experts, size_t max_rows, size_t max_tile_rows)
    : max_tile_rows_(max_tile_rows), next_(num_experts), tokens_(max_rows), weights_(max_rows) {
  tiles_.reserve(most_tiles(num_experts, max_rows, max_tile_rows));
}

size_t Routing::bytes(size_t num_experts, size_t max_rows, size_t max_tile_rows) {
  return num_experts * sizeof(size_t) + max_rows * (sizeof(uint32_t) + sizeof(float)) +
         most_tiles(num_experts, max_rows, max_tile_rows) * sizeof(ExpertTile);
}

void Routing::set(std::span<const ExpertChoice> choices, size_t per_token) {
  std::fill(next_.begin(), next_.end(), 0);
  for (const ExpertChoice& choice : choices) ++next_[choice.expert];
  tiles_.clear();
  size_t begin = 0;
  for (size_t expert = 0; expert < next_.size(); ++expert) {
    const size_t end = begin + std::exchange(next_[expert], begin);
    for (; begin < end; begin = tiles_.back().rows.end) {
      tiles_.push_back({expert, {begin, std::min(begin + max_tile_rows_, end)}});
    }
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    const size_t row = next_[choices[i].expert]++;
    tokens_[row] = static_cast<uint32_t>(i / per_token);
    weights_[row] = choices[i].weight;
  }
}

Range Routing::rows_of(const ExpertTile& tile, Range tokens) const {
  const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(tile.rows.begin);
  const auto last = tokens_.begin() + static_cast<std::ptrdiff_t>(tile.rows.end);
  const auto row = [&](size_t token) {
    return static_cast<size_t>(std::lower_bound(first, last, token) - tokens_.begin());
  };
  return {row(tokens.begin), row(tokens.end)};
}

}  // namespace dllama
