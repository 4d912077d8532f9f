// The products of a step by themselves, for measuring: what a step would take if it did nothing else.
#pragma once

#include "model/step.h"

namespace dllama {

// Multiplies every matrix of every layer by what the buffers hold of step.num_tokens tokens, those of experts as if
// each had as many, and keeps no result. Every thread calls it; none waits for another.
void run_products(Step& step, size_t thread);

}  // namespace dllama
