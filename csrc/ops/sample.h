// From a row of logits to a token. Random numbers, penalties and seeds are the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/kernels.h"

namespace dllama {

struct SamplingFilters {
  float temperature = 1.0f;  // > 0
  size_t top_k = 0;          // 0: off
  float top_p = 1.0f;        // outside (0, 1): off
  float min_p = 0.0f;        // 0: off
};

// Index of the first largest logit. This and sample() throw InvalidArgument if the logits are not finite numbers,
// negative infinity apart.
size_t argmax(const Kernels& kernels, const float* logits, size_t n);

inline constexpr char kNoNumbers[] = "the model gave no usable probabilities: its logits are not finite numbers";

// log(sum(exp(logits))).
double log_sum_exp(const Kernels& kernels, const float* logits, size_t n);

// Draws one token of softmax(logits / temperature), 0 <= coin < 1.
//
// Without filters: the first token, in token order, at which the cumulative probability exceeds the coin. With filters:
// tokens in descending probability (ties by id), cut to the top_k first, then after the one whose cumulative
// probability exceeds top_p, then those below min_p times the largest; the coin is scaled to what is left. Sums are
// taken in double, as those of a row on several nodes are, so that both draw the same. With temperature and top_p alone
// these are the steps of distributed-llama's sampler, its threshold (1 - top_p) / (n - 1) below which no token can be
// in the top_p set included; its sums are floats.
size_t sample(const Kernels& kernels, const float* logits, size_t n, const SamplingFilters& filters, float coin);

// The same draw, from the `count` largest of n logits alone, in descending order (equals by id): `ids` are theirs, and
// `total` is the sum of exp((x - logits[0]) / temperature) over all n. Gives the id, or nothing if the filters may
// reach beyond what is given.
std::optional<int32_t> sample_best(const Kernels& kernels, std::span<const float> logits, std::span<const int32_t> ids,
                                   double total, size_t n, const SamplingFilters& filters, float coin);

}  // namespace dllama
