// All that a step works on, shared by its threads.
#pragma once

#include <array>
#include <cstddef>
#include <exception>
#include <vector>

#include "base/thread_pool.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"
#include "net/group.h"

namespace dllama {

// Consecutive tokens of one sequence whose attention is computed together.
struct AttentionTile {
  size_t first_row;  // of the batch
  size_t num_tokens;
};

// Pieces of a large step behind o_proj and down_proj: one travels while the next is computed.
inline constexpr size_t kMaxPieces = 4;

struct Step {
  const Kernels& kernels;
  const NodeConfig& config;
  const Shard& shard;
  const Weights& weights;
  KvCache& cache;
  Activations& buffers;
  ThreadPool& pool;
  Group& group;
  bool scatter = false;  // how the ranks exchange their sums, see sync.h
  size_t num_tokens = 0;
  std::vector<AttentionTile> tiles = {};
  std::array<uint32_t, kMaxPieces> sums_exchange = {};  // number of the exchange of each piece's sums; of thread 0
  // Set by thread 0 when an exchange fails; all threads see it after the barrier that follows, and leave together.
  bool failed = false;
  std::exception_ptr error = {};

  bool is_alone() const { return group.world_size() == 1; }
  // Whether every thread does the serial work between two products for itself.
  bool is_redundant() const { return num_tokens <= kRedundantTokens && !scatter; }
  // out := activation(gate) * up, see kernels.h.
  auto gate_kernel() const { return config.activation == Activation::Silu ? kernels.silu_mul : kernels.gelu_mul; }
};

// Runs `work`, which speaks with other ranks, on thread 0; if it fails, so does the step.
template <typename Work>
void on_links(Step& step, size_t thread, const Work& work) {
  if (thread != 0 || step.failed) return;
  try {
    work();
  } catch (...) {
    step.error = std::current_exception();
    step.failed = true;
  }
}

// The residual of a token as this thread sees it. With few tokens each thread works on one of its own.
inline float* residual_row(Step& step, size_t thread, size_t token) {
  const size_t hidden = step.config.hidden_size;
  if (step.is_redundant()) return step.buffers.threads[thread].residual.data() + token * hidden;
  return step.buffers.residual.as<float>() + token * hidden;
}

// The part of `range` that is this thread's.
inline Range part_of(const Step& step, Range range, size_t thread) {
  const Range part = split(range.size(), step.pool.size(), thread);
  return {range.begin + part.begin, range.begin + part.end};
}

}  // namespace dllama
