// One forward step: embedded tokens in, what was wanted of them out.
#pragma once

#include "model/batch.h"
#include "model/results.h"
#include "model/step.h"

namespace dllama {

// Runs the batch on this rank with all threads of step.pool. The batch must be checked, its pages set.
// Throws GroupFailed if an exchange failed; the cache then holds no more than before or garbage at the batch's
// positions.
void forward(Step& step, const Batch& batch, Outputs& outputs);

}  // namespace dllama
