#include "model/products.h"

#include <algorithm>

namespace dllama {

namespace {

// This thread's part of one matrix, all tokens at once, into a buffer that stays in L2: what a step adds to that, by
// smaller tiles or farther places, counts as its own.
void run_product(Step& step, size_t thread, const Matrix& w, const ActivationRows& x, Range tokens) {
  const size_t chunk_groups = kChunkRows / step.kernels.row_group;
  const Range part = split(num_parts(w.groups, chunk_groups), step.pool.size(), thread);
  float* out = step.buffers.threads[thread].gate.data();
  for (size_t chunk = part.begin; chunk < part.end; ++chunk) {
    const size_t first = chunk * chunk_groups;
    matmul(step.kernels, w, first, std::min(chunk_groups, w.groups - first), x, tokens.begin, tokens.size(), out,
           kChunkRows);
  }
}

// As if the router gave every expert as many tokens.
void run_experts(Step& step, size_t thread, const LayerWeights& w) {
  const size_t rows = step.num_tokens * step.config.num_experts_per_tok;
  for (size_t i = 0; i < w.experts.size(); ++i) {
    const Range own = split(rows, w.experts.size(), i);
    if (own.size() == 0) continue;
    for (const Matrix* matrix : {&w.experts[i].gate_proj, &w.experts[i].up_proj}) {
      run_product(step, thread, *matrix, step.buffers.normed, {0, own.size()});
    }
    run_product(step, thread, w.experts[i].down_proj, step.buffers.expert_gated, own);
  }
}

}  // namespace

void run_products(Step& step, size_t thread) {
  const Activations& buffers = step.buffers;
  const Range all{0, step.num_tokens};
  for (const LayerWeights& w : step.weights.layers) {
    for (const Matrix* matrix : {&w.q_proj, &w.k_proj, &w.v_proj}) {
      run_product(step, thread, *matrix, buffers.normed, all);
    }
    run_product(step, thread, w.o_proj, buffers.attended, all);
    run_experts(step, thread, w);
    for (const Matrix* matrix : {&w.ffn.gate_proj, &w.ffn.up_proj}) {
      run_product(step, thread, *matrix, buffers.normed, all);
    }
    run_product(step, thread, w.ffn.down_proj, buffers.gated, all);
  }
}

}  // namespace dllama
