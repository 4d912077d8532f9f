// A layer's attention: queries of this rank's heads over the pages of their sequences.
#pragma once

#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// Attention of all tokens from buffers.q into buffers.attended. Every thread calls it; ends in a barrier, behind which
// this thread soon reads `next`.
void attention(Step& step, size_t thread, size_t layer, std::span<const std::byte> next);

}  // namespace dllama
