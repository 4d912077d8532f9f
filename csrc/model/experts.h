// The feed-forward network of a layer with experts: many small ones, of which each token uses the few that a router
// chooses for it. Tokens that share an expert are multiplied together.
//
// Every rank holds its columns of every expert and the whole router. The router reads what the products read, in one
// order of summation on every level, so that all ranks choose the same experts.
#pragma once

#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// Chooses the experts of all tokens by `x`, the normalized residual, and computes of each its weight * act(gate_proj x)
// * up_proj x. Ends in a barrier.
void expert_gate_and_up(Step& step, size_t thread, const LayerWeights& w, const ActivationRows& x);

// Rows `tokens` of buffers.update := for each token the sum of down_proj over its experts, ascending; no barrier behind
// it.
void expert_down(Step& step, size_t thread, const LayerWeights& w, Range tokens);

// What a thread reads first of a layer's experts: its part of the router.
std::span<const std::byte> first_router_weights(const Step& step, size_t thread, const LayerWeights& w);

}  // namespace dllama
