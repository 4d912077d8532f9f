// Products, biases, norms and rotation of queries, keys and values, and the way of the latter two into the cache.
//
// A chunk is a few heads of one of the three, whole row groups and whole heads, which its thread finishes. Only where
// all heads of a token are normed together are queries and keys finished later, behind a barrier: the ranks first sum
// up their squares.
#include "model/qkv.h"

#include <algorithm>

#include "model/ahead.h"
#include "model/sync.h"
#include "ops/norm.h"

namespace dllama {

namespace {

// Where one projection's heads go once they are computed.
enum class HeadKind { Query, Key, Value };

struct QkvChunk {
  HeadKind kind;
  const Matrix& w;
  const float* bias;
  size_t chunk;  // of this matrix
};

bool norms_all_heads(const Step& step, size_t layer) {
  return step.config.layers[layer].qk_norm == QkNorm::All;
}

// Rotates one head of one token in place.
void rotate(const Step& step, size_t layer, size_t token, float* head) {
  const RotaryTable& table = step.config.layers[layer].has_local_rope ? step.buffers.local_rope : step.buffers.rope;
  const size_t pairs = step.config.rope_frequencies.size();
  step.kernels.rotate_half(head, table.cos.as<float>() + token * pairs, table.sin.as<float>() + token * pairs, pairs);
}

void store_key(Step& step, size_t layer, size_t token, size_t head_index, const float* head) {
  step.cache.store_key(step.buffers.slot[token], layer, head_index, step.buffers.position[token], head);
}

// Finishes `num_heads` heads of all tokens, which lie at heads[token * stride].
void finish_heads(Step& step, size_t layer, HeadKind kind, size_t first_head, size_t num_heads, float* heads,
                  size_t stride) {
  const LayerWeights& w = step.weights.layers[layer];
  const size_t head_dim = step.config.head_dim;
  const float* norm_weight = kind == HeadKind::Query ? w.q_norm : w.k_norm;
  for (size_t t = 0; t < step.num_tokens; ++t) {
    for (size_t i = 0; i < num_heads; ++i) {
      float* head = heads + t * stride + i * head_dim;
      if (kind == HeadKind::Value) {
        step.cache.store_value(step.buffers.slot[t], layer, first_head + i, step.buffers.position[t], head);
        continue;
      }
      if (norm_weight != nullptr) {
        rms_norm(step.kernels, head, norm_weight, step.config.rms_norm_eps, head, head_dim);
      }
      rotate(step, layer, t, head);
      if (kind == HeadKind::Key) store_key(step, layer, t, first_head + i, head);
    }
  }
}

void add_bias(const Step& step, const float* bias, float* heads, size_t size, size_t stride) {
  for (size_t t = 0; t < step.num_tokens; ++t) step.kernels.add(heads + t * stride, bias, size);
}

// Where a chunk's heads are put, and how far it is from one token's to the next's.
struct HeadRows {
  float* first;
  size_t stride;
};

HeadRows head_rows(Step& step, size_t thread, size_t layer, HeadKind kind, size_t first_head, size_t chunk_heads) {
  const size_t head_dim = step.config.head_dim;
  Activations& buffers = step.buffers;
  if (kind == HeadKind::Query) return {buffers.q.as<float>() + first_head * head_dim, buffers.q_stride};
  const bool is_kept = kind == HeadKind::Key && norms_all_heads(step, layer);
  if (is_kept) return {buffers.k.as<float>() + first_head * head_dim, buffers.k_stride};
  return {buffers.threads[thread].heads.data(), chunk_heads * head_dim};
}

// Projects one chunk of heads for all tokens, and finishes them if that can be done.
void project_heads(Step& step, size_t thread, size_t layer, const ActivationRows& x, const QkvChunk& chunk) {
  const size_t head_dim = step.config.head_dim;
  const size_t chunk_heads = heads_per_unit(head_dim, step.kernels.row_group);
  const size_t chunk_groups = chunk_heads * head_dim / step.kernels.row_group;
  const size_t first_group = chunk.chunk * chunk_groups;
  const size_t first_head = chunk.chunk * chunk_heads;
  const size_t num_heads = std::min(chunk_heads, chunk.w.rows / head_dim - first_head);
  const auto [out, stride] = head_rows(step, thread, layer, chunk.kind, first_head, chunk_heads);
  matmul(step.kernels, chunk.w, first_group, std::min(chunk_groups, chunk.w.groups - first_group), x, 0,
         step.num_tokens, out, stride);
  if (chunk.bias != nullptr) add_bias(step, chunk.bias + first_head * head_dim, out, num_heads * head_dim, stride);
  if (chunk.kind != HeadKind::Value && norms_all_heads(step, layer)) return;
  finish_heads(step, layer, chunk.kind, first_head, num_heads, out, stride);
}

size_t head_chunks(const Step& step, size_t num_heads) {
  const size_t chunk_heads = heads_per_unit(step.config.head_dim, step.kernels.row_group);
  return num_parts(num_heads, chunk_heads);
}

size_t num_qkv_chunks(const Step& step) {
  return head_chunks(step, step.shard.num_heads) + 2 * head_chunks(step, step.shard.num_kv_heads);
}

QkvChunk qkv_chunk(const Step& step, const LayerWeights& w, size_t chunk) {
  const size_t q_chunks = head_chunks(step, step.shard.num_heads);
  const size_t kv_chunks = head_chunks(step, step.shard.num_kv_heads);
  if (chunk < q_chunks) return {HeadKind::Query, w.q_proj, w.q_bias, chunk};
  if (chunk < q_chunks + kv_chunks) return {HeadKind::Key, w.k_proj, w.k_bias, chunk - q_chunks};
  return {HeadKind::Value, w.v_proj, w.v_bias, chunk - q_chunks - kv_chunks};
}

// --- norms of all heads together ---

// The sums of squares over this rank's queries and keys of one token. Keys that a lower rank has too count there.
HeadSquares own_squares(const Step& step, size_t token) {
  const Activations& buffers = step.buffers;
  const size_t head_dim = step.config.head_dim;
  const size_t skipped = step.config.shared_kv_heads(step.group.rank());
  const float* k = buffers.k.as<float>() + token * buffers.k_stride + skipped * head_dim;
  return {step.kernels.sum_squares(buffers.q.as<float>() + token * buffers.q_stride, step.shard.num_heads * head_dim),
          step.kernels.sum_squares(k, (step.shard.num_kv_heads - skipped) * head_dim)};
}

// Norms this rank's heads of one token by the squares of all ranks' and rotates them; keys go to the cache.
void finish_token(Step& step, size_t layer, size_t token) {
  const LayerWeights& w = step.weights.layers[layer];
  const NodeConfig& config = step.config;
  const size_t head_dim = config.head_dim, q_size = step.shard.num_heads * head_dim;
  const size_t kv_size = step.shard.num_kv_heads * head_dim;
  float* q = step.buffers.q.as<float>() + token * step.buffers.q_stride;
  float* k = step.buffers.k.as<float>() + token * step.buffers.k_stride;
  const HeadSquares squares = total_squares(step, token);
  const float q_scale = inverse_rms(squares.q, config.rms_norm_eps, config.num_heads() * head_dim);
  const float k_scale = inverse_rms(squares.k, config.rms_norm_eps, config.num_kv_heads() * head_dim);
  step.kernels.scale_mul(q, w.q_norm, q_scale, q, q_size);
  step.kernels.scale_mul(k, w.k_norm, k_scale, k, kv_size);
  for (size_t head = 0; head < step.shard.num_heads; ++head) rotate(step, layer, token, q + head * head_dim);
  for (size_t head = 0; head < step.shard.num_kv_heads; ++head) {
    rotate(step, layer, token, k + head * head_dim);
    store_key(step, layer, token, head, k + head * head_dim);
  }
}

// Every rank takes part in it, with heads or without.
void norm_all_heads(Step& step, size_t thread, size_t layer) {
  const Range own = part_of(step, {0, step.num_tokens}, thread);
  for (size_t t = own.begin; t < own.end; ++t) own_head_squares(step, t) = own_squares(step, t);
  share_head_squares(step, thread);
  if (!step.shard.has_attention()) return;
  for (size_t t = own.begin; t < own.end; ++t) finish_token(step, layer, t);
  step.pool.barrier(first_weights(step, thread, step.weights.layers[layer].o_proj));
}

}  // namespace

std::span<const std::byte> first_qkv_weights(const Step& step, size_t thread, const LayerWeights& w) {
  if (!step.shard.has_attention()) return {};
  const QkvChunk first = qkv_chunk(step, w, split(num_qkv_chunks(step), step.pool.size(), thread).begin);
  const size_t chunk_heads = heads_per_unit(step.config.head_dim, step.kernels.row_group);
  return weights_from(first.w, first.chunk * chunk_heads * step.config.head_dim / step.kernels.row_group);
}

void project_qkv(Step& step, size_t thread, size_t layer, const ActivationRows& x) {
  const LayerWeights& w = step.weights.layers[layer];
  if (step.shard.has_attention()) {
    for (size_t c; step.pool.next_chunk(thread, num_qkv_chunks(step), c);) {
      project_heads(step, thread, layer, x, qkv_chunk(step, w, c));
    }
    step.pool.barrier(first_weights(step, thread, w.o_proj));
  }
  if (norms_all_heads(step, layer)) norm_all_heads(step, thread, layer);
}

}  // namespace dllama
