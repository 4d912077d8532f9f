// One transformer layer, in the order of the paper:
//
//   x = norm(residual)
//   q, k, v = x projected by this rank's heads, with biases; norm and rotate q and k; append k, v to the cache
//                                                                                                  -- barrier
//   attention of each KV head's queries over its pages                                             -- barrier
//   residual += norm(sum over ranks of o_proj) * residual_multiplier                               -- barrier
//   x = norm(residual)
//   gated = activation(gate_proj x) * up_proj x                                                    -- barrier
//   residual += norm(sum over ranks of down_proj) * residual_multiplier                            -- barrier
//
// In a layer with experts these two lines are those of experts.h, behind a router and one or two barriers more.
//
// A model has the norm before its products (LayerSpec::has_input_norms), that of what they give (has_output_norms), or
// both. With more than kRedundantTokens tokens each norm ends in a barrier too; sync.h adds those of other ranks.
//
// All threads run these functions together. Work inside a phase is taken in chunks, so a slow core takes fewer; no
// result's bits depend on who computed it.
#include "model/layer.h"

#include <algorithm>

#include "model/ahead.h"
#include "model/attention.h"
#include "model/experts.h"
#include "model/feed_forward.h"
#include "model/qkv.h"
#include "model/sync.h"

namespace dllama {

const ActivationRows& add_and_norm(Step& step, size_t thread, bool has_sums, const Norms& norms) {
  const bool redundant = step.is_redundant();
  ActivationRows& rows = redundant ? step.buffers.threads[thread].normed : step.buffers.normed;
  const Range all{0, step.num_tokens};
  const Range tokens = redundant ? all : part_of(step, all, thread);
  for (size_t t = tokens.begin; t < tokens.end; ++t) {
    if (has_sums) add_sums(step, thread, t, norms.output, residual_row(step, thread, t));
    if (norms.is_read) norm(step, thread, t, norms.input, rows, t);
  }
  if (!redundant) step.pool.barrier();
  return rows;
}

namespace {

// The sums of a piece of the step, behind a barrier. A rank without heads has none to add behind its attention.
void project_piece(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows, Range tokens,
                   std::span<const std::byte> next) {
  const size_t hidden = step.config.hidden_size;
  float* update = step.buffers.update.as<float>() + tokens.begin * hidden;
  if (w.rows == 0) {
    if (thread == 0) std::fill_n(update, tokens.size() * hidden, 0.0f);
  } else {
    project_chunks(step, thread, w, rows, tokens.begin, tokens.size(), update, hidden);
  }
  const bool is_end = tokens.end == step.num_tokens;
  step.pool.barrier(is_end ? next : first_weights(step, thread, w));
}

// Scatter: takes up the sums of a piece, and sends this rank's range of the residual's norm on.
void pass_on(Step& step, size_t thread, size_t piece, const Norms& norms) {
  reduce_sums(step, thread, piece);
  if (norms.is_read) send_range(step, thread, piece_tokens(step, piece), {}, norms.input);
}

// residual += the sum over ranks of what `project` puts into buffers.update piece by piece, then what is read of it.
template <typename Project>
const ActivationRows& sum_and_norm(Step& step, size_t thread, const Norms& norms, const Project& project) {
  const size_t pieces = num_pieces(step);
  for (size_t piece = 0; piece < pieces; ++piece) {
    project(piece_tokens(step, piece));
    send_sums(step, thread, piece);
    if (step.scatter && piece > 0) pass_on(step, thread, piece - 1, norms);
  }
  if (step.scatter) {
    pass_on(step, thread, pieces - 1, norms);
    receive_ranges(step, thread, norms.is_read ? step.num_tokens : 0);
    return step.buffers.normed;
  }
  wait_for_sums(step, thread);
  return add_and_norm(step, thread, true, norms);
}

const ActivationRows& project_and_norm(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows,
                                       const Norms& norms, std::span<const std::byte> next) {
  return sum_and_norm(step, thread, norms, [&](Range tokens) { project_piece(step, thread, w, rows, tokens, next); });
}

// residual += the sum over ranks of the feed-forward network of `x`, then what is read of it.
const ActivationRows& feed_forward(Step& step, size_t thread, size_t layer, const ActivationRows& x, const Norms& norms,
                                   std::span<const std::byte> next) {
  const LayerWeights& w = step.weights.layers[layer];
  if (!step.config.layers[layer].has_experts) {
    gate_and_up(step, thread, w.ffn, x);
    return project_and_norm(step, thread, w.ffn.down_proj, step.buffers.gated, norms, next);
  }
  expert_gate_and_up(step, thread, w, x);
  return sum_and_norm(step, thread, norms, [&](Range tokens) {
    expert_down(step, thread, w, tokens);
    step.pool.barrier(tokens.end == step.num_tokens ? next : std::span<const std::byte>{});
  });
}

bool is_last(const Step& step, size_t layer) {
  return layer + 1 == step.weights.layers.size();
}

Norms norms_behind_ffn(const Step& step, size_t layer) {
  const float* output = step.weights.layers[layer].feedforward_output_norm;
  if (is_last(step, layer)) return {output, nullptr, false};
  return {output, step.weights.layers[layer + 1].input_layernorm};
}

std::span<const std::byte> first_ffn_weights(const Step& step, size_t thread, size_t layer) {
  const LayerWeights& w = step.weights.layers[layer];
  if (step.config.layers[layer].has_experts) return first_router_weights(step, thread, w);
  return first_weights(step, thread, w.ffn.gate_proj);
}

std::span<const std::byte> first_weights_behind_ffn(const Step& step, size_t thread, size_t layer) {
  if (is_last(step, layer)) return first_weights(step, thread, step.weights.lm_head);
  return first_qkv_weights(step, thread, step.weights.layers[layer + 1]);
}

}  // namespace

void project_chunks(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows, size_t first_row,
                    size_t num_rows, float* out, size_t stride) {
  const size_t chunk_groups = kChunkRows / step.kernels.row_group;
  for (size_t c; step.pool.next_chunk(thread, num_parts(w.groups, chunk_groups), c);) {
    const size_t first = c * chunk_groups;
    matmul(step.kernels, w, first, std::min(chunk_groups, w.groups - first), rows, first_row, num_rows,
           out + first * step.kernels.row_group, stride);
    on_links(step, thread, [&] { step.group.poke(); });  // the piece before this one is still on its way
  }
}

const ActivationRows& run_layer(Step& step, size_t thread, size_t layer, const ActivationRows& x) {
  const LayerWeights& w = step.weights.layers[layer];
  project_qkv(step, thread, layer, x);
  if (step.shard.has_attention()) attention(step, thread, layer, first_weights(step, thread, w.o_proj));
  const ActivationRows& y =
      project_and_norm(step, thread, w.o_proj, step.buffers.attended,
                       {w.attention_output_norm, w.post_attention_layernorm}, first_ffn_weights(step, thread, layer));
  return feed_forward(step, thread, layer, y, norms_behind_ffn(step, layer),
                      first_weights_behind_ffn(step, thread, layer));
}

void probe_exchange(Step& step, size_t thread) {
  sum_and_norm(step, thread, {nullptr, step.weights.norm}, [&](Range) { step.pool.barrier(); });
}

void final_norm(Step& step, size_t thread, std::span<const size_t> tokens) {
  const Range rows{0, tokens.size()};
  if (step.scatter) {
    send_range(step, thread, rows, tokens, step.weights.norm);
    return receive_ranges(step, thread, tokens.size());
  }
  const Range own = part_of(step, rows, thread);
  for (size_t row = own.begin; row < own.end; ++row) {
    norm(step, thread, tokens[row], step.weights.norm, step.buffers.normed, row);
  }
  step.pool.barrier();
}

}  // namespace dllama
