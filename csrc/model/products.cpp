#include "model/products.h"

#include <algorithm>

namespace dllama {

namespace {

// This thread's part of one matrix, in the pieces that a step takes.
void run_product(Step& step, size_t thread, const Matrix& w, const ActivationRows& x) {
  const size_t chunk_groups = kChunkRows / step.kernels.row_group;
  const Range part = split(w.groups, step.pool.size(), thread);
  float* out = step.buffers.threads[thread].gate.data();
  for (size_t first = part.begin; first < part.end; first += chunk_groups) {
    matmul(step.kernels, w, first, std::min(chunk_groups, part.end - first), x, 0, step.num_tokens, out, kChunkRows);
  }
}

}  // namespace

void run_products(Step& step, size_t thread) {
  const Activations& buffers = step.buffers;
  for (const LayerWeights& w : step.weights.layers) {
    for (const Matrix* matrix : {&w.q_proj, &w.k_proj, &w.v_proj}) run_product(step, thread, *matrix, buffers.normed);
    run_product(step, thread, w.o_proj, buffers.attended);
    for (const Matrix* matrix : {&w.gate_proj, &w.up_proj}) run_product(step, thread, *matrix, buffers.normed);
    run_product(step, thread, w.down_proj, buffers.gated);
  }
}

}  // namespace dllama
