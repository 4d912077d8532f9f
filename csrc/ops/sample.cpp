#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/errors.h"
#include "ops/candidates.h"

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

// The first `count` candidates in order, the others somewhere behind them: a whole vocabulary is never sorted.
void sort_prefix(std::vector<Candidate>& candidates, size_t sorted, size_t count) {
  const auto begin = candidates.begin();
  std::partial_sort(begin + static_cast<std::ptrdiff_t>(sorted), begin + static_cast<std::ptrdiff_t>(count),
                    candidates.end(), before);
}

// Keeps the first candidates, in order, at most `limit`, up to the one at which their sum exceeds top_p. Whether it was
// one of these that ended them.
bool keep_likeliest(std::vector<Candidate>& candidates, size_t limit, float top_p) {
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
  const bool has_more = kept < candidates.size();
  candidates.resize(kept);
  return has_more || cumulative > top_p;
}

bool has_top_p(const SamplingFilters& filters) {
  return filters.top_p > 0.0f && filters.top_p < 1.0f;
}

bool has_top_k(const SamplingFilters& filters, size_t n) {
  return filters.top_k > 0 && filters.top_k < n;
}

// Less likely tokens cannot be drawn; the largest probability is 1 / total.
float least_probability(const SamplingFilters& filters, float total, size_t n) {
  const float min_p = filters.min_p > 0.0f ? filters.min_p / total : 0.0f;
  return has_top_p(filters) && n > 1 ? std::max(min_p, (1.0f - filters.top_p) / static_cast<float>(n - 1)) : min_p;
}

float top_p_limit(const SamplingFilters& filters) {
  return has_top_p(filters) ? filters.top_p : std::numeric_limits<float>::infinity();
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
  return log_of(exp_sum(kernels, logits, n, 1.0f));
}

size_t sample(const Kernels& kernels, const float* logits, size_t n, const SamplingFilters& filters, float coin) {
  std::vector<float> probabilities(n);
  const float largest = kernels.max(logits, n);
  const float total = kernels.exp_sum(logits, largest, 1.0f / filters.temperature, probabilities.data(), n);
  require(std::isfinite(total), kNoNumbers);
  for (float& p : probabilities) p /= total;
  if (!has_top_p(filters) && !has_top_k(filters, n) && filters.min_p <= 0.0f) return walk(probabilities, coin);

  auto candidates = candidates_above(probabilities, least_probability(filters, total, n));
  if (candidates.empty()) return argmax(kernels, logits, n);
  const size_t limit = has_top_k(filters, n) ? std::min(filters.top_k, candidates.size()) : candidates.size();
  keep_likeliest(candidates, limit, top_p_limit(filters));
  return draw(candidates, coin);
}

std::optional<int32_t> sample_best(const Kernels& kernels, std::span<const float> logits, std::span<const int32_t> ids,
                                   double total, size_t n, const SamplingFilters& filters, float coin) {
  const auto sum = static_cast<float>(total);
  require(std::isfinite(sum) && std::isfinite(logits[0]), kNoNumbers);
  std::vector<float> probabilities(logits.size());
  kernels.exp_sum(logits.data(), logits[0], 1.0f / filters.temperature, probabilities.data(), logits.size());
  for (float& p : probabilities) p /= sum;

  // Beyond what is given, others may be as likely as the last of it, and then stand before it by their ids.
  const bool is_all = logits.size() == n;
  const float least = least_probability(filters, sum, n);
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool is_certain = is_all || probabilities[i] > probabilities.back();
    if (is_certain && probabilities[i] >= least)
      candidates.push_back({probabilities[i], static_cast<uint32_t>(ids[i])});
  }
  const bool has_all = is_all || probabilities.back() < least;
  if (candidates.empty()) return has_all ? std::optional(ids[0]) : std::nullopt;
  const size_t limit = has_top_k(filters, n) ? std::min(filters.top_k, candidates.size()) : candidates.size();
  const bool has_top = has_top_k(filters, n) && limit == filters.top_k;
  if (!keep_likeliest(candidates, limit, top_p_limit(filters)) && !has_top && !has_all) return std::nullopt;
  return static_cast<int32_t>(draw(candidates, coin));
}

}  // namespace dllama
