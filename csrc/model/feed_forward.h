// The first half of a gated feed-forward network, whatever its size: activation(gate_proj x) * up_proj x.
#pragma once

#include <cstddef>

#include "model/step.h"

namespace dllama {

// Columns `columns`, at most kChunkRows, of rows `rows` of `gated` := what the network gives for as many tokens of `x`,
// from `first_token` on.
void gate_columns(Step& step, size_t thread, const FfnWeights& w, Range columns, const ActivationRows& x,
                  size_t first_token, ActivationRows& gated, Range rows);

// The same of all tokens and this rank's columns of a layer without experts, into buffers.gated, split over threads.
// Ends in a barrier.
void gate_and_up(Step& step, size_t thread, const FfnWeights& w, const ActivationRows& x);

}  // namespace dllama
