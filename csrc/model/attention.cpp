// Shares a layer's attention out among the threads.
//
// A chunk is a tile of tokens by as many KV heads as fill whole blocks of o_proj's input. Where a step of few tokens
// has too few of these for its threads, each segment of a sequence is a chunk first, and a barrier later they are
// merged.
#include "model/attention.h"

#include <algorithm>
#include <cstring>

namespace dllama {

namespace {

// One KV head's queries of the tokens of a tile.
struct HeadTile {
  const AttentionTile& tile;
  size_t kv_head;
  size_t rows;  // tokens x query heads
  size_t first_segment;
  size_t segments;  // that some token sees, from this one on
};

AttentionSpec spec_of(const Step& step, size_t layer) {
  return {step.config.layers[layer].window, step.config.attention_softcap};
}

HeadTile head_tile(const Step& step, size_t layer, const AttentionTile& tile, size_t kv_head) {
  const size_t* positions = step.buffers.position.data() + tile.first_row;
  const size_t first = segment_of(first_seen(spec_of(step, layer), positions[0]));
  const size_t last = segment_of(positions[tile.num_tokens - 1]);
  return {tile, kv_head, tile.num_tokens * step.shard.group_size(), first, last + 1 - first};
}

void load_queries(const Step& step, const HeadTile& head, AttentionScratch& scratch) {
  const size_t head_dim = step.config.head_dim;
  const size_t group = step.shard.group_size();
  const float scale = step.config.score_scale();
  for (size_t t = 0; t < head.tile.num_tokens; ++t) {
    const size_t token = head.tile.first_row + t;
    const float* q = step.buffers.q.as<float>() + token * step.buffers.q_stride + head.kv_head * group * head_dim;
    float* rows = scratch.q.data() + t * group * head_dim;
    for (size_t i = 0; i < group * head_dim; ++i) rows[i] = q[i] * scale;
    std::fill_n(scratch.positions.begin() + static_cast<std::ptrdiff_t>(t * group), group,
                step.buffers.position[token]);
  }
}

KvPages pages_of(const Step& step, const HeadTile& head, size_t layer) {
  return step.cache.pages(step.buffers.slot[head.tile.first_row], layer, head.kv_head);
}

// --- segments ---

// Whether segments are chunks of their own: the most that a sequence has, or 1.
size_t most_segments(const Step& step, size_t layer) {
  if (step.num_tokens > kRedundantTokens) return 1;
  if (step.tiles.size() * step.shard.num_kv_heads >= 2 * step.pool.size()) return 1;
  size_t most = 1;
  for (const AttentionTile& tile : step.tiles) most = std::max(most, head_tile(step, layer, tile, 0).segments);
  return most;
}

// Where the result of a tile's `segment`-th segment lies: max and sum of each row, then acc.
SoftmaxRows segment_result(const Step& step, const HeadTile& head, size_t segment) {
  const size_t row_size = step.config.head_dim + 2;
  const size_t first_row = head.tile.first_row * step.shard.num_heads + head.kv_head * head.rows;
  const size_t max_segments = segments_of_pool(step.config);
  float* max = step.buffers.segments.as<float>() + (first_row * max_segments + segment * head.rows) * row_size;
  return {max, max + head.rows, max + 2 * head.rows};
}

void attend_segments(Step& step, size_t thread, size_t layer, size_t segments) {
  AttentionScratch& scratch = step.buffers.threads[thread].attention;
  const size_t heads = step.shard.num_kv_heads;
  for (size_t c; step.pool.next_chunk(thread, step.tiles.size() * heads * segments, c);) {
    const size_t segment = c % segments;
    const HeadTile head = head_tile(step, layer, step.tiles[c / segments / heads], c / segments % heads);
    if (segment >= head.segments) continue;
    load_queries(step, head, scratch);
    attend_segment(step.kernels, pages_of(step, head, layer), head.first_segment + segment, head.rows,
                   step.config.head_dim, scratch, segment_result(step, head, segment), spec_of(step, layer));
  }
  step.pool.barrier();
}

void merge_segments(const Step& step, const HeadTile& head, AttentionScratch& scratch) {
  const size_t head_dim = step.config.head_dim;
  const SoftmaxRows total = scratch.result(), first = segment_result(step, head, 0);
  std::copy_n(first.max, head.rows, total.max);
  std::copy_n(first.sum, head.rows, total.sum);
  std::copy_n(first.acc, head.rows * head_dim, total.acc);
  for (size_t segment = 1; segment < head.segments; ++segment) {
    merge_segment(head.rows, head_dim, segment_result(step, head, segment), total);
  }
  finish_rows(head.rows, head_dim, total);
}

// --- heads ---

// The result of one KV head goes to own.attended at `column`.
void attend_head(const Step& step, ThreadBuffers& own, size_t layer, const HeadTile& head, bool is_split, size_t column,
                 size_t stride) {
  const size_t values = step.shard.group_size() * step.config.head_dim;
  if (is_split) {
    merge_segments(step, head, own.attention);
  } else {
    load_queries(step, head, own.attention);
    attend(step.kernels, pages_of(step, head, layer), head.rows, step.config.head_dim, own.attention,
           spec_of(step, layer));
  }
  for (size_t t = 0; t < head.tile.num_tokens; ++t) {
    std::memcpy(own.attended.data() + t * stride + column, own.attention.acc.data() + t * values,
                values * sizeof(float));
  }
}

}  // namespace

void attention(Step& step, size_t thread, size_t layer, std::span<const std::byte> next) {
  const size_t segments = most_segments(step, layer);
  if (segments > 1) attend_segments(step, thread, layer, segments);
  const size_t values = step.shard.group_size() * step.config.head_dim;  // per KV head
  const size_t unit = heads_per_unit(values, kBlockSize);
  const size_t units = step.shard.num_kv_heads / unit;
  ThreadBuffers& own = step.buffers.threads[thread];
  for (size_t c; step.pool.next_chunk(thread, step.tiles.size() * units, c);) {
    const AttentionTile& tile = step.tiles[c / units];
    const size_t first_head = c % units * unit;
    for (size_t i = 0; i < unit; ++i) {
      const HeadTile head = head_tile(step, layer, tile, first_head + i);
      attend_head(step, own, layer, head, segments > 1, i * values, unit * values);
    }
    for (size_t t = 0; t < tile.num_tokens; ++t) {
      step.buffers.attended.store(step.kernels, tile.first_row + t, first_head * values,
                                  own.attended.data() + t * unit * values, unit * values);
    }
  }
  step.pool.barrier(next);
}

}  // namespace dllama
