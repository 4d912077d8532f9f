#include "ops/candidates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "base/errors.h"
#include "ops/sample.h"

namespace dllama {

namespace {

// Calls visit(begin, end) for each run of candidates of a slice, as indices into it.
template <typename Visit>
void for_each_run(const CandidateQuery& query, Range slice, const Visit& visit) {
  const size_t end = std::clamp(query.limit, slice.begin, slice.end);
  size_t begin = slice.begin;
  for (const int32_t id : ids_in(query, {slice.begin, end})) {
    const auto token = static_cast<size_t>(id);
    if (token > begin) visit(begin - slice.begin, token - slice.begin);
    begin = token + 1;
  }
  if (end > begin) visit(begin - slice.begin, end - slice.begin);
}

ExpSum candidate_sum(const Kernels& kernels, const CandidateQuery& query, Range slice, const float* logits) {
  const float scale = 1.0f / query.temperature;
  ExpSum total;
  for_each_run(query, slice, [&](size_t begin, size_t end) {
    total = joined(total, exp_sum(kernels, logits + begin, end - begin, scale), scale);
  });
  return total;
}

// Keeps the best `count` of what it is shown in ascending order of ids.
class Best {
 public:
  explicit Best(size_t count) : count_(count) { heap_.reserve(count); }

  void add(float logit, size_t id) {
    if (heap_.size() == count_) {
      if (!(logit > heap_.front().logit)) return;  // of equals the first stays
      std::pop_heap(heap_.begin(), heap_.end(), is_better);
      heap_.pop_back();
    }
    // No number is worse than any, so that the order is one.
    const float value = std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
    heap_.push_back({value, static_cast<int32_t>(id)});
    std::push_heap(heap_.begin(), heap_.end(), is_better);
  }

  std::vector<TokenLogit> sorted() {
    std::sort_heap(heap_.begin(), heap_.end(), is_better);
    return std::move(heap_);
  }

 private:
  size_t count_;
  std::vector<TokenLogit> heap_;  // the worst in front
};

}  // namespace

ExpSum exp_sum(const Kernels& kernels, const float* x, size_t n, float scale, float* terms) {
  ExpSum total;
  if (n == 0) return total;
  total.max = kernels.max(x, n);
  // With -infinity alone the sum is 0, but what is no number must show in it.
  const float shift = total.max == -std::numeric_limits<float>::infinity() ? 0.0f : total.max;
  std::array<float, 1024> part;
  for (size_t i = 0; i < n; i += part.size()) {
    float* out = terms == nullptr ? part.data() : terms + i;
    total.sum += kernels.exp_sum(x + i, shift, scale, out, std::min(part.size(), n - i));
  }
  return total;
}

ExpSum joined(const ExpSum& a, const ExpSum& b, float scale) {
  ExpSum total{std::max(a.max, b.max), 0.0};
  for (const ExpSum& part : {a, b}) {
    // Nothing of a part without values, whose maximum is -infinity; but what is no number stays that.
    if (part.sum != 0.0) total.sum += part.sum * std::exp((double{part.max} - total.max) * scale);
  }
  return total;
}

double log_of(const ExpSum& total) {
  return total.max + std::log(total.sum);
}

bool is_better(const TokenLogit& a, const TokenLogit& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

std::span<const int32_t> ids_in(const CandidateQuery& query, Range slice) {
  const auto begin = std::lower_bound(query.ids.begin(), query.ids.end(), static_cast<int32_t>(slice.begin));
  const auto end = std::lower_bound(begin, query.ids.end(), static_cast<int32_t>(slice.end));
  return {begin, end};
}

size_t candidates_in(const CandidateQuery& query, Range slice) {
  const Range allowed{slice.begin, std::clamp(query.limit, slice.begin, slice.end)};
  return allowed.size() - ids_in(query, allowed).size();
}

size_t listed_in(const CandidateQuery& query, Range slice) {
  return std::min(query.count, candidates_in(query, slice));
}

SliceAnswer answer(const Kernels& kernels, const CandidateQuery& query, Range slice, const float* logits) {
  SliceAnswer result;
  result.all = exp_sum(kernels, logits, slice.size(), 1.0f);
  const bool is_same = query.temperature == 1.0f && candidates_in(query, slice) == slice.size();
  result.candidates = is_same ? result.all : candidate_sum(kernels, query, slice, logits);
  Best best(listed_in(query, slice));
  for_each_run(query, slice, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) best.add(logits[i], slice.begin + i);
  });
  result.best = best.sorted();
  for (const int32_t id : ids_in(query, slice)) result.values.push_back(logits[static_cast<size_t>(id) - slice.begin]);
  return result;
}

SliceAnswer joined(const CandidateQuery& query, std::span<const Range> slices, std::span<const SliceAnswer> answers) {
  SliceAnswer whole;
  TokenLogit bound{-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};
  for (size_t i = 0; i < answers.size(); ++i) {
    const SliceAnswer& part = answers[i];
    whole.candidates = joined(whole.candidates, part.candidates, 1.0f / query.temperature);
    whole.all = joined(whole.all, part.all, 1.0f);
    whole.best.insert(whole.best.end(), part.best.begin(), part.best.end());
    whole.values.insert(whole.values.end(), part.values.begin(), part.values.end());
    const bool is_cut = part.best.size() < candidates_in(query, slices[i]);
    if (is_cut && is_better(part.best.back(), bound)) bound = part.best.back();
  }
  std::sort(whole.best.begin(), whole.best.end(), is_better);
  const auto is_certain = [&](const TokenLogit& token) { return !is_better(bound, token); };
  whole.best.erase(std::partition_point(whole.best.begin(), whole.best.end(), is_certain), whole.best.end());
  return whole;
}

SliceShare slice_at(const CandidateQuery& query, std::span<const SliceAnswer> answers, double coin) {
  const float scale = 1.0f / query.temperature;
  ExpSum whole;
  for (const SliceAnswer& part : answers) whole = joined(whole, part.candidates, scale);
  require(std::isfinite(whole.max) && std::isfinite(whole.sum), kNoNumbers);
  double before = 0.0;
  SliceShare share{0, 1.0};
  for (size_t i = 0; i < answers.size(); ++i) {
    const ExpSum& part = answers[i].candidates;
    const double mass = part.sum > 0.0 ? part.sum * std::exp((double{part.max} - whole.max) * scale) : 0.0;
    if (!(mass > 0.0)) continue;
    share = {i, std::clamp((coin * whole.sum - before) / mass, 0.0, 1.0)};
    before += mass;
    if (coin * whole.sum < before) break;
  }
  return share;
}

TokenLogit draw_from_slice(const Kernels& kernels, const CandidateQuery& query, Range slice, const float* logits,
                           double fraction) {
  const float scale = 1.0f / query.temperature;
  const ExpSum total = candidate_sum(kernels, query, slice, logits);
  std::array<float, 1024> part;
  double cumulative = 0.0;
  size_t chosen = 0;
  bool is_found = false;
  for_each_run(query, slice, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end && !is_found; i += part.size()) {
      const size_t n = std::min(part.size(), end - i);
      kernels.exp_sum(logits + i, total.max, scale, part.data(), n);
      for (size_t j = 0; j < n && !is_found; ++j) {
        if (!(part[j] > 0.0f)) continue;
        cumulative += part[j];
        chosen = i + j;
        is_found = fraction * total.sum < cumulative;
      }
    }
  });
  return {logits[chosen], static_cast<int32_t>(slice.begin + chosen)};
}

}  // namespace dllama
