// One forward step: embedded tokens in, what was wanted of them out.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/os_memory.h"
#include "model/batch.h"
#include "model/layer.h"

namespace dllama {

// What a step leaves on the root; the next one overwrites it. The logits' memory lives as long as someone holds it.
struct Outputs {
  std::shared_ptr<Buffer> logits =
      std::make_shared<Buffer>();  // [num_logits, stride], the vocabulary first in each row
  size_t num_logits = 0;
  size_t stride = 0;
  std::vector<float> scores;  // [number of scores wanted]
  Buffer slice;               // [kScoreRows, stride] rows being scored
};

// Runs the batch on this rank with all threads of step.pool. The batch must be checked, its pages set.
// Throws GroupFailed if an exchange failed; the cache then holds no more than before or garbage at the batch's
// positions.
void forward(Step& step, const Batch& batch, Outputs& outputs);

}  // namespace dllama
