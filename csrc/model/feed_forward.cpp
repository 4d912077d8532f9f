#include "model/feed_forward.h"

#include <algorithm>

#include "model/ahead.h"

namespace dllama {

void gate_columns(Step& step, size_t thread, const FfnWeights& w, Range columns, const ActivationRows& x,
                  size_t first_token, ActivationRows& gated, Range rows) {
  const size_t group = step.kernels.row_group;
  const auto activate = step.gate_kernel();
  float* gate = step.buffers.threads[thread].gate.data();
  float* up = step.buffers.threads[thread].up.data();
  matmul(step.kernels, w.gate_proj, columns.begin / group, columns.size() / group, x, first_token, rows.size(), gate,
         kChunkRows);
  matmul(step.kernels, w.up_proj, columns.begin / group, columns.size() / group, x, first_token, rows.size(), up,
         kChunkRows);
  for (size_t row = rows.begin; row < rows.end; ++row, gate += kChunkRows, up += kChunkRows) {
    gated.prefetch(row + 8, columns.begin);  // each row's place is a miss of its own
    activate(gate, up, gate, columns.size());
    gated.store(step.kernels, row, columns.begin, gate, columns.size());
  }
}

// A chunk is kChunkRows columns, gate and up together, so its owner can finish them at once.
void gate_and_up(Step& step, size_t thread, const FfnWeights& w, const ActivationRows& x) {
  const size_t columns = step.shard.intermediate_size;
  for (size_t c; step.pool.next_chunk(thread, num_parts(columns, kChunkRows), c);) {
    const Range chunk{c * kChunkRows, std::min((c + 1) * kChunkRows, columns)};
    for (size_t begin = 0; begin < step.num_tokens; begin += kGateTokens) {
      const Range rows{begin, std::min(begin + kGateTokens, step.num_tokens)};
      gate_columns(step, thread, w, chunk, x, begin, step.buffers.gated, rows);
    }
  }
  step.pool.barrier(first_weights(step, thread, w.down_proj));
}

}  // namespace dllama
