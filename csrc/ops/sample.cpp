#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace dllama {

namespace {

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

// Cuts a sorted list after the candidate at which the sum exceeds top_p.
void cut_top_p(std::vector<Candidate>& sorted, float top_p) {
  float cumulative = 0.0f;
  for (size_t i = 0; i < sorted.size(); ++i) {
    cumulative += sorted[i].probability;
    if (cumulative > top_p) return sorted.resize(i + 1);
  }
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
  const float* found = std::find(logits, logits + n, largest);
  return found == logits + n ? 0 : static_cast<size_t>(found - logits);  // not found: all NaN
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
  for (float& p : probabilities) p /= total;

  const bool has_top_p = filters.top_p > 0.0f && filters.top_p < 1.0f;
  const bool has_top_k = filters.top_k > 0 && filters.top_k < n;
  if (!has_top_p && !has_top_k && filters.min_p <= 0.0f) return walk(probabilities, coin);

  float threshold = filters.min_p > 0.0f ? filters.min_p / total : 0.0f;  // the largest probability is 1 / total
  if (has_top_p && n > 1) threshold = std::max(threshold, (1.0f - filters.top_p) / static_cast<float>(n - 1));
  auto sorted = candidates_above(probabilities, threshold);
  if (sorted.empty()) return argmax(kernels, logits, n);
  std::sort(sorted.begin(), sorted.end(), before);
  if (has_top_k && sorted.size() > filters.top_k) sorted.resize(filters.top_k);
  if (has_top_p) cut_top_p(sorted, filters.top_p);
  return draw(sorted, coin);
}

}  // namespace dllama
