// What a slice of a row of logits says of the whole row: its largest values, and sums to normalize with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace dllama {

// The largest of some values x, and the sum of exp((x - max) * scale); of none: -infinity and 0.
struct ExpSum {
  float max = -std::numeric_limits<float>::infinity();
  double sum = 0.0;
};

// In double over parts of 1024: a score must not lose digits over 128k terms. The terms go to `terms` [n], unless that
// is null.
ExpSum exp_sum(const Kernels& kernels, const float* x, size_t n, float scale, float* terms = nullptr);
// Of the values of both.
ExpSum joined(const ExpSum& a, const ExpSum& b, float scale);
double log_of(const ExpSum& total);

struct TokenLogit {
  float logit;
  int32_t id;
};

// Descending logit, then ascending id.
bool is_better(const TokenLogit& a, const TokenLogit& b);

// What is asked of a row. Candidates are the tokens below `limit` that are not among `ids`.
struct CandidateQuery {
  size_t count = 1;          // best candidates
  size_t limit = 0;          // at most the vocabulary
  float temperature = 1.0f;  // > 0, of the candidates' sum
  std::vector<int32_t> ids;  // ascending: tokens whose logits are wanted as they are
};

// Those of `ids` in a slice.
std::span<const int32_t> ids_in(const CandidateQuery& query, Range slice);
// Candidates in a slice, and how many of them a query lists.
size_t candidates_in(const CandidateQuery& query, Range slice);
size_t listed_in(const CandidateQuery& query, Range slice);

// What a slice says: the best candidates in order, the logits of ids_in(), the sums over its candidates, and those over
// all of it at temperature 1. Values that are no numbers make the sums so.
struct SliceAnswer {
  std::vector<TokenLogit> best;
  std::vector<float> values;
  ExpSum candidates;
  ExpSum all;
};

SliceAnswer answer(const Kernels& kernels, const CandidateQuery& query, Range slice, const float* logits);

// The same of the whole row, from the answers of slices that follow each other: `best` ends where a slice may have
// better ones that it did not list.
SliceAnswer joined(const CandidateQuery& query, std::span<const Range> slices, std::span<const SliceAnswer> answers);

// The slice in which, in token order, the cumulative probability of the candidates exceeds `coin`, and at which part of
// the slice's own sum. Throws InvalidArgument if the sums are not finite numbers.
struct SliceShare {
  size_t slice;
  double fraction;
};
SliceShare slice_at(const CandidateQuery& query, std::span<const SliceAnswer> answers, double coin);

// The first candidate, in token order, at which the sum of exponentials exceeds `fraction` of all of the slice's; the
// last that has a part in it, if rounding leaves the sum below that.
TokenLogit draw_from_slice(const Kernels& kernels, const CandidateQuery& query, Range slice, const float* logits,
                           double fraction);

}  // namespace dllama
