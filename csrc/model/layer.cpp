// One transformer layer, in the order of the paper:
//
//   x = norm(residual)
//   q, k, v = x projected by this rank's heads; norm and rotate q and k; append k, v to the cache   -- barrier
//   attention of each KV head's queries over its pages                                             -- barrier
//   residual += sum over ranks of o_proj                                                           -- barrier
//   x = norm(residual)
//   gated = silu(gate_proj x) * up_proj x                                                          -- barrier
//   residual += sum over ranks of down_proj                                                        -- barrier
//
// With more than kRedundantTokens tokens each norm ends in a barrier too; sync.h adds those of other ranks.
//
// All threads run these functions together. Work inside a phase is taken in chunks, so a slow core takes fewer; no
// result's bits depend on who computed it.
#include "model/layer.h"

#include <algorithm>

#include "model/attention.h"
#include "model/experts.h"
#include "model/sync.h"
#include "ops/norm.h"

namespace dllama {

const ActivationRows& add_and_norm(Step& step, size_t thread, bool has_sums, const float* weight) {
  const bool redundant = step.is_redundant();
  ActivationRows& rows = redundant ? step.buffers.threads[thread].normed : step.buffers.normed;
  const Range all{0, step.num_tokens};
  const Range tokens = redundant ? all : part_of(step, all, thread);
  for (size_t t = tokens.begin; t < tokens.end; ++t) {
    if (has_sums) add_sums(step, thread, t, residual_row(step, thread, t));
    if (weight != nullptr) norm(step, thread, t, weight, rows, t);
  }
  if (!redundant) step.pool.barrier();
  return rows;
}

namespace {

// Where one projection's heads go once they are computed.
enum class HeadKind { Query, Key, Value };

// Normalizes and rotates one head of one token in place.
void norm_and_rotate(Step& step, size_t token, const float* norm_weight, float* head) {
  const size_t half = step.config.head_dim / 2;
  if (norm_weight != nullptr) {
    rms_norm(step.kernels, head, norm_weight, step.config.rms_norm_eps, head, step.config.head_dim);
  }
  step.kernels.rotate_half(head, step.buffers.cos.as<float>() + token * half,
                           step.buffers.sin.as<float>() + token * half, half);
}

// Finishes `num_heads` heads of all tokens, which lie at heads[token * stride].
void finish_heads(Step& step, size_t layer, HeadKind kind, size_t first_head, size_t num_heads, float* heads,
                  size_t stride) {
  const LayerWeights& w = step.weights.layers[layer];
  const size_t head_dim = step.config.head_dim;
  for (size_t t = 0; t < step.num_tokens; ++t) {
    const size_t slot = step.buffers.slot[t];
    const size_t position = step.buffers.position[t];
    for (size_t i = 0; i < num_heads; ++i) {
      float* head = heads + t * stride + i * head_dim;
      if (kind == HeadKind::Value) {
        step.cache.store_value(slot, layer, first_head + i, position, head);
        continue;
      }
      norm_and_rotate(step, t, kind == HeadKind::Query ? w.q_norm : w.k_norm, head);
      if (kind == HeadKind::Key) step.cache.store_key(slot, layer, first_head + i, position, head);
    }
  }
}

// Projects one chunk of heads for all tokens and finishes them. Queries stay in buffers.q, keys and values go to the
// cache.
void project_heads(Step& step, size_t thread, size_t layer, const ActivationRows& x, HeadKind kind, const Matrix& w,
                   size_t chunk, size_t chunk_heads) {
  const size_t head_dim = step.config.head_dim;
  const size_t chunk_groups = chunk_heads * head_dim / step.kernels.row_group;
  const size_t first_group = chunk * chunk_groups;
  const size_t first_head = chunk * chunk_heads;
  const size_t num_heads = std::min(chunk_heads, w.rows / head_dim - first_head);
  const bool is_query = kind == HeadKind::Query;
  float* out =
      is_query ? step.buffers.q.as<float>() + first_head * head_dim : step.buffers.threads[thread].heads.data();
  const size_t stride = is_query ? step.buffers.q_stride : chunk_heads * head_dim;
  matmul(step.kernels, w, first_group, std::min(chunk_groups, w.groups - first_group), x, 0, step.num_tokens, out,
         stride);
  finish_heads(step, layer, kind, first_head, num_heads, out, stride);
}

// Weights from a row group on that fit the smallest L2 in use: what a thread that waits fetches of those it reads next.
std::span<const std::byte> weights_from(const Matrix& w, size_t group) {
  constexpr size_t kMaxBytes = 64 << 10;
  if (group >= w.groups) return {};
  return {w.at(group), std::min((w.groups - group) * w.group_bytes, kMaxBytes)};
}

// The first of a thread's part of a matrix.
std::span<const std::byte> first_weights(const Step& step, size_t thread, const Matrix& w) {
  const size_t chunk_groups = kChunkRows / step.kernels.row_group;
  const Range chunks = split((w.groups + chunk_groups - 1) / chunk_groups, step.pool.size(), thread);
  return weights_from(w, chunks.begin * chunk_groups);
}

// Fused q, k, v: a chunk is a few heads of one of the three, whole row groups and whole heads.
struct QkvChunk {
  HeadKind kind;
  const Matrix& w;
  size_t chunk;  // of this matrix
};

size_t head_chunks(const Step& step, size_t num_heads) {
  const size_t chunk_heads = heads_per_unit(step.config.head_dim, step.kernels.row_group);
  return (num_heads + chunk_heads - 1) / chunk_heads;
}

size_t num_qkv_chunks(const Step& step) {
  return head_chunks(step, step.shard.num_heads) + 2 * head_chunks(step, step.shard.num_kv_heads);
}

QkvChunk qkv_chunk(const Step& step, const LayerWeights& w, size_t chunk) {
  const size_t q_chunks = head_chunks(step, step.shard.num_heads);
  const size_t kv_chunks = head_chunks(step, step.shard.num_kv_heads);
  if (chunk < q_chunks) return {HeadKind::Query, w.q_proj, chunk};
  if (chunk < q_chunks + kv_chunks) return {HeadKind::Key, w.k_proj, chunk - q_chunks};
  return {HeadKind::Value, w.v_proj, chunk - q_chunks - kv_chunks};
}

std::span<const std::byte> first_qkv_weights(const Step& step, size_t thread, const LayerWeights& w) {
  if (!step.shard.has_attention()) return {};
  const QkvChunk first = qkv_chunk(step, w, split(num_qkv_chunks(step), step.pool.size(), thread).begin);
  const size_t chunk_heads = heads_per_unit(step.config.head_dim, step.kernels.row_group);
  return weights_from(first.w, first.chunk * chunk_heads * step.config.head_dim / step.kernels.row_group);
}

std::span<const std::byte> first_ffn_weights(const Step& step, size_t thread, size_t layer) {
  const LayerWeights& w = step.weights.layers[layer];
  if (step.config.layers[layer].has_experts) return first_router_weights(step, thread, w);
  return first_weights(step, thread, w.gate_proj);
}

void project_qkv(Step& step, size_t thread, size_t layer, const ActivationRows& x) {
  const LayerWeights& w = step.weights.layers[layer];
  const size_t chunk_heads = heads_per_unit(step.config.head_dim, step.kernels.row_group);
  for (size_t c; step.pool.next_chunk(thread, num_qkv_chunks(step), c);) {
    const QkvChunk chunk = qkv_chunk(step, w, c);
    project_heads(step, thread, layer, x, chunk.kind, chunk.w, chunk.chunk, chunk_heads);
  }
  step.pool.barrier(first_weights(step, thread, w.o_proj));
}

// SwiGLU: a chunk is kChunkRows columns of the FFN, gate and up together, so its owner can finish them at once.
void gate_and_up(Step& step, size_t thread, size_t layer, const ActivationRows& x) {
  const LayerWeights& w = step.weights.layers[layer];
  const size_t columns = step.shard.intermediate_size;
  for (size_t c; step.pool.next_chunk(thread, (columns + kChunkRows - 1) / kChunkRows, c);) {
    const Range chunk{c * kChunkRows, std::min((c + 1) * kChunkRows, columns)};
    for (size_t begin = 0; begin < step.num_tokens; begin += kGateTokens) {
      const Range rows{begin, std::min(begin + kGateTokens, step.num_tokens)};
      gate_columns(step, thread, w.gate_proj, w.up_proj, chunk, x, begin, step.buffers.gated, rows);
    }
  }
  step.pool.barrier(first_weights(step, thread, w.down_proj));
}

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
  const bool is_last = tokens.end == step.num_tokens;
  step.pool.barrier(is_last ? next : first_weights(step, thread, w));
}

// Takes up the sums of a piece, and sends this rank's range of their norm on, if there is one.
void pass_on(Step& step, size_t thread, size_t piece, const float* weight) {
  reduce_sums(step, thread, piece);
  if (weight != nullptr) send_range(step, thread, piece_tokens(step, piece), {}, weight);
}

// residual += the sum over ranks of what `project` puts into buffers.update piece by piece, then the norm of that;
// without one if `weight` is null.
template <typename Project>
const ActivationRows& sum_and_norm(Step& step, size_t thread, const float* weight, const Project& project) {
  const size_t pieces = num_pieces(step);
  for (size_t piece = 0; piece < pieces; ++piece) {
    project(piece_tokens(step, piece));
    send_sums(step, thread, piece);
    if (step.scatter && piece > 0) pass_on(step, thread, piece - 1, weight);
  }
  if (step.scatter) {
    pass_on(step, thread, pieces - 1, weight);
    receive_ranges(step, thread, weight == nullptr ? 0 : step.num_tokens);
    return step.buffers.normed;
  }
  wait_for_sums(step, thread);
  return add_and_norm(step, thread, true, weight);
}

const ActivationRows& project_and_norm(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows,
                                       const float* weight, std::span<const std::byte> next) {
  return sum_and_norm(step, thread, weight, [&](Range tokens) { project_piece(step, thread, w, rows, tokens, next); });
}

// The feed-forward network on `x`: residual += the sum over ranks of what it gives, then the norm of that.
const ActivationRows& feed_forward(Step& step, size_t thread, size_t layer, const ActivationRows& x,
                                   const float* next_norm, std::span<const std::byte> next) {
  const LayerWeights& w = step.weights.layers[layer];
  if (!step.config.layers[layer].has_experts) {
    gate_and_up(step, thread, layer, x);
    return project_and_norm(step, thread, w.down_proj, step.buffers.gated, next_norm, next);
  }
  expert_gate_and_up(step, thread, layer, x);
  return sum_and_norm(step, thread, next_norm, [&](Range tokens) {
    expert_down(step, thread, layer, tokens);
    step.pool.barrier(tokens.end == step.num_tokens ? next : std::span<const std::byte>{});
  });
}

}  // namespace

void project_chunks(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows, size_t first_row,
                    size_t num_rows, float* out, size_t stride) {
  const size_t chunk_groups = kChunkRows / step.kernels.row_group;
  for (size_t c; step.pool.next_chunk(thread, (w.groups + chunk_groups - 1) / chunk_groups, c);) {
    const size_t first = c * chunk_groups;
    matmul(step.kernels, w, first, std::min(chunk_groups, w.groups - first), rows, first_row, num_rows,
           out + first * step.kernels.row_group, stride);
    on_links(step, thread, [&] { step.group.poke(); });  // the piece before this one is still on its way
  }
}

void gate_columns(Step& step, size_t thread, const Matrix& gate_proj, const Matrix& up_proj, Range columns,
                  const ActivationRows& x, size_t first_token, ActivationRows& gated, Range rows) {
  const size_t first_group = columns.begin / step.kernels.row_group;
  const size_t num_groups = columns.size() / step.kernels.row_group;
  float* gate = step.buffers.threads[thread].gate.data();
  float* up = step.buffers.threads[thread].up.data();
  matmul(step.kernels, gate_proj, first_group, num_groups, x, first_token, rows.size(), gate, kChunkRows);
  matmul(step.kernels, up_proj, first_group, num_groups, x, first_token, rows.size(), up, kChunkRows);
  for (size_t row = rows.begin; row < rows.end; ++row, gate += kChunkRows, up += kChunkRows) {
    gated.prefetch(row + 8, columns.begin);  // each row's place is a miss of its own
    step.kernels.silu_mul(gate, up, gate, columns.size());
    gated.store(step.kernels, row, columns.begin, gate, columns.size());
  }
}

const ActivationRows& run_layer(Step& step, size_t thread, size_t layer, const ActivationRows& x) {
  const LayerWeights& w = step.weights.layers[layer];
  if (step.shard.has_attention()) {
    project_qkv(step, thread, layer, x);
    attention(step, thread, layer, first_weights(step, thread, w.o_proj));
  }
  const ActivationRows& y = project_and_norm(step, thread, w.o_proj, step.buffers.attended, w.post_attention_layernorm,
                                             first_ffn_weights(step, thread, layer));
  const bool is_last = layer + 1 == step.weights.layers.size();
  const LayerWeights* next = is_last ? nullptr : &step.weights.layers[layer + 1];
  return feed_forward(
      step, thread, layer, y, is_last ? nullptr : next->input_layernorm,
      is_last ? first_weights(step, thread, step.weights.lm_head) : first_qkv_weights(step, thread, *next));
}

void probe_exchange(Step& step, size_t thread) {
  sum_and_norm(step, thread, step.weights.norm, [&](Range) { step.pool.barrier(); });
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
