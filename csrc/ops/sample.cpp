#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/errors.h"
#include "ops/candidates.h"

namespace dllama {

namespace {

// A weight is exp((logit - the largest) / temperature): a probability times the sum of all weights.
struct Candidate {
  float weight;
  uint32_t token;
};

// Descending probability, then ascending id: a total order, so the sort's algorithm cannot change the draw.
bool before(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

std::vector<Candidate> candidates_above(const std::vector<float>& weights, double least) {
  std::vector<Candidate> found;
  for (uint32_t token = 0; token < weights.size(); ++token) {
    if (weights[token] >= least) found.push_back({weights[token], token});
  }
  return found;
}

// The first token at which the sum exceeds `target`; the last that can be, if rounding leaves the sum below that.
size_t walk(const std::vector<float>& weights, double target) {
  double cumulative = 0.0;
  size_t chosen = 0;
  for (size_t token = 0; token < weights.size(); ++token) {
    if (!(weights[token] > 0.0f)) continue;
    cumulative += weights[token];
    chosen = token;
    if (target < cumulative) break;
  }
  return chosen;
}

// The first `count` candidates in order, the others somewhere behind them: a whole vocabulary is never sorted.
void sort_prefix(std::vector<Candidate>& candidates, size_t sorted, size_t count) {
  const auto begin = candidates.begin();
  std::partial_sort(begin + static_cast<std::ptrdiff_t>(sorted), begin + static_cast<std::ptrdiff_t>(count),
                    candidates.end(), before);
}

// Keeps the first candidates, in order, at most `limit`, up to the one at which their sum exceeds `most`. Whether it
// was one of these that ended them.
bool keep_likeliest(std::vector<Candidate>& candidates, size_t limit, double most) {
  constexpr size_t kFirstPrefix = 64;
  double cumulative = 0.0;
  size_t sorted = 0;
  size_t kept = 0;
  while (kept < limit && cumulative <= most) {
    if (kept == sorted) {
      const size_t wanted = std::min(limit, std::max(kFirstPrefix, 4 * sorted));
      sort_prefix(candidates, sorted, wanted);
      sorted = wanted;
    }
    cumulative += candidates[kept++].weight;
  }
  const bool has_more = kept < candidates.size();
  candidates.resize(kept);
  return has_more || cumulative > most;
}

bool has_top_p(const SamplingFilters& filters) {
  return filters.top_p > 0.0f && filters.top_p < 1.0f;
}

bool has_top_k(const SamplingFilters& filters, size_t n) {
  return filters.top_k > 0 && filters.top_k < n;
}

// Tokens of less weight cannot be drawn; the largest weight is 1, `total` is the sum of all.
double least_weight(const SamplingFilters& filters, double total, size_t n) {
  const double min_p = std::max(filters.min_p, 0.0f);
  if (!has_top_p(filters) || n == 1) return min_p;
  return std::max(min_p, (1.0 - double{filters.top_p}) * total / static_cast<double>(n - 1));
}

double top_p_limit(const SamplingFilters& filters, double total) {
  return has_top_p(filters) ? filters.top_p * total : std::numeric_limits<double>::infinity();
}

size_t draw(const std::vector<Candidate>& sorted, float coin) {
  double total = 0.0;
  for (const auto& candidate : sorted) total += candidate.weight;
  const double target = coin * total;
  double cumulative = 0.0;
  for (const auto& candidate : sorted) {
    cumulative += candidate.weight;
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
  std::vector<float> weights(n);
  const ExpSum total = exp_sum(kernels, logits, n, 1.0f / filters.temperature, weights.data());
  require(std::isfinite(total.max) && std::isfinite(total.sum), kNoNumbers);
  if (!has_top_p(filters) && !has_top_k(filters, n) && filters.min_p <= 0.0f) return walk(weights, coin * total.sum);

  auto candidates = candidates_above(weights, least_weight(filters, total.sum, n));
  if (candidates.empty()) return argmax(kernels, logits, n);
  const size_t limit = has_top_k(filters, n) ? std::min(filters.top_k, candidates.size()) : candidates.size();
  keep_likeliest(candidates, limit, top_p_limit(filters, total.sum));
  return draw(candidates, coin);
}

std::optional<int32_t> sample_best(const Kernels& kernels, std::span<const float> logits, std::span<const int32_t> ids,
                                   double total, size_t n, const SamplingFilters& filters, float coin) {
  require(std::isfinite(total) && std::isfinite(logits[0]), kNoNumbers);
  std::vector<float> weights(logits.size());
  kernels.exp_sum(logits.data(), logits[0], 1.0f / filters.temperature, weights.data(), logits.size());

  // Beyond what is given, others may be as likely as the last of it, and then stand before it by their ids.
  const bool is_all = logits.size() == n;
  const double least = least_weight(filters, total, n);
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool is_certain = is_all || weights[i] > weights.back();
    if (is_certain && weights[i] >= least) candidates.push_back({weights[i], static_cast<uint32_t>(ids[i])});
  }
  const bool has_all = is_all || weights.back() < least;
  if (candidates.empty()) return has_all ? std::optional(ids[0]) : std::nullopt;
  const size_t limit = has_top_k(filters, n) ? std::min(filters.top_k, candidates.size()) : candidates.size();
  const bool has_top = has_top_k(filters, n) && limit == filters.top_k;
  if (!keep_likeliest(candidates, limit, top_p_limit(filters, total)) && !has_top && !has_all) return std::nullopt;
  return static_cast<int32_t>(draw(candidates, coin));
}

}  // namespace dllama
