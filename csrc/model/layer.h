// One transformer layer on this rank's slices. READ FIRST: layer.cpp is the model.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <vector>

#include "base/thread_pool.h"
#include "model/activations.h"
#include "model/batch.h"
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

// All that a step works on, shared by its threads.
struct Step {
  const Kernels& kernels;
  const NodeConfig& config;
  const Shard& shard;
  const Weights& weights;
  KvCache& cache;
  Activations& buffers;
  ThreadPool& pool;
  Group& group;
  size_t num_tokens = 0;
  std::vector<AttentionTile> tiles = {};
  // Set by thread 0 when an exchange fails; all threads see it after the barrier that follows, and leave together.
  bool failed = false;
  std::exception_ptr error = {};
};

// What stands between the residual stream and the next products, for all tokens of the step: residual += update (if
// there is one yet), norm, and the result in the form the products want.
// With few tokens each thread works on a residual of its own. Returns where this thread finds the result.
const ActivationRows& add_norm(Step& step, size_t thread, const float* weight, bool has_update);

// out[i] := w x rows[first_row + i] for i < num_rows, split over threads; no barrier behind it.
void project_chunks(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows, size_t first_row,
                    size_t num_rows, float* out, size_t stride);

// update := w x rows, split over threads, then summed over the ranks.
void project_and_sum(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows);

// The residual of a token as this thread sees it.
float* residual_row(Step& step, size_t thread, size_t token);

// Runs one layer. Every thread calls it; on return `buffers.update` waits to be added to the residual.
void run_layer(Step& step, size_t thread, size_t layer);

}  // namespace dllama
