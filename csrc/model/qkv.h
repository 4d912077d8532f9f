// A layer's queries, keys and values.
#pragma once

#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// Queries of all tokens, normed and rotated, into buffers.q; keys and values into the cache. Every thread calls it;
// ends in a barrier on ranks with heads.
void project_qkv(Step& step, size_t thread, size_t layer, const ActivationRows& x);

// The first weights of a thread's part in that.
std::span<const std::byte> first_qkv_weights(const Step& step, size_t thread, const LayerWeights& w);

}  // namespace dllama
