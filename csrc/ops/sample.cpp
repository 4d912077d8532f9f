#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/errors.h"

namespace dllama {

namespace {

constexpr char kNoNumbers[] = "the model gave no usable probabilities: its logits are not finite numbers";

struct Candidate {
  float probability;
  uint32_t token;
};

// Descending probability, then ascending id: a total order, so the sort's algorithm cannot change the draw.
bool before(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
}

std::vector<Candidate> candidates_above(const std::vector<float>& probabilities, float threshold) {
  std::vector<Candidate> found;
  for (uint32_t token = 0; token < probabilities.size(); ++token) {
    if (probabilities[token] >= threshold) found.push_back({probabilities[token], token});
  }
  return found;
}

size_t walk(const std::vector<float>& probabilities, float coin) {
  float cumulative = 0.0f;
  for (size_t token = 0; token < probabilities.size(); ++token) {
    cumulative += probabilities[token];
    if (coin < cumulative) return token;
  }
  return probabilities.size() - 1;  // rounding left the sum below the coin
}

// The first `count` candidates in order, the others somewhere behind them: a whole vocabulary is never sorted.
void sort_prefix(std::vector<Candidate>& candidates, size_t sorted, size_t count) {
  const auto begin = candidates.begin();
  std::partial_sort(begin + static_cast<std::ptrdiff_t>(sorted), begin + static_cast<std::ptrdiff_t>(count),
                    candidates.end(), before);
}

// Keeps the first candidates, in order, at most `limit`, up to the one at which their sum exceeds top_p.
void keep_likeliest(std::vector<Candidate>& candidates, size_t limit, float top_p) {
  constexpr size_t kFirstPrefix = 64;
  float cumulative = 0.0f;
  size_t sorted = 0;
  size_t kept = 0;
  while (kept < limit && cumulative <= top_p) {
    if (kept == sorted) {
      const size_t wanted = std::min(limit, std::max(kFirstPrefix, 4 * sorted));
      sort_prefix(candidates, sorted, wanted);
      sorted = wanted;
    }
    cumulative += candidates[kept++].probability;
  }
  candidates.resize(kept);
}

size_t draw(const std::vector<Candidate>& sorted, float coin) {
  float total = 0.0f;
  for (const auto& candidate : sorted) total += candidate.probability;
  const float target = coin * total;
  float cumulative = 0.0f;
  for (const auto& candidate : sorted) {
    cumulative += candidate.probability;
    if (target < cumulative) return candidate.token;
  }
  return sorted.back().token;
}

}  // namespace

size_t argmax(const Kernels& kernels, const float* logits, size_t n) {
  const float largest = kernels.max(logits, n);
  require(std::isfinite(largest), kNoNumbers);
  return static_cast<size_t>(std::find(logits, logits + n, largest) - logits);
}

double log_sum_exp(const Kernels& kernels, const float* logits, size_t n) {
  const float largest = kernels.max(logits, n);
  float chunk[1024];
  double total = 0.0;  // partial sums in double: a score must not lose digits over 128k terms
  for (size_t i = 0; i < n; i += std::size(chunk)) {
    total += kernels.exp_sum(logits + i, largest, 1.0f, chunk, std::min(std::size(chunk), n - i));
  }
  return largest + std::log(total);
}

size_t sample(const Kernels& kernels, const float* logits, size_t n, const SamplingFilters& filters, float coin) {
  std::vector<float> probabilities(n);
  const float largest = kernels.max(logits, n);
  const float total = kernels.exp_sum(logits, largest, 1.0f / filters.temperature, probabilities.data(), n);
  require(std::isfinite(total), kNoNumbers);
  for (float& p : probabilities) p /= total;

  const bool has_top_p = filters.top_p > 0.0f && filters.top_p < 1.0f;
  const bool has_top_k = filters.top_k > 0 && filters.top_k < n;
  if (!has_top_p && !has_top_k && filters.min_p <= 0.0f) return walk(probabilities, coin);

  float threshold = filters.min_p > 0.0f ? filters.min_p / total : 0.0f;  // the largest probability is 1 / total
  if (has_top_p && n > 1) threshold = std::max(threshold, (1.0f - filters.top_p) / static_cast<float>(n - 1));
  auto candidates = candidates_above(probabilities, threshold);
  if (candidates.empty()) return argmax(kernels, logits, n);
  const size_t limit = has_top_k ? std::min(filters.top_k, candidates.size()) : candidates.size();
  keep_likeliest(candidates, limit, has_top_p ? filters.top_p : std::numeric_limits<float>::infinity());
  return draw(candidates, coin);
}

}  // namespace dllama
