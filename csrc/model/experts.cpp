#include "model/experts.h"

#include <algorithm>
#include <cstring>

#include "model/ahead.h"
#include "model/feed_forward.h"

namespace dllama {

namespace {

// Experts whose logits a thread computes at a time.
constexpr size_t kRouterRows = 8;

// The logits of all experts for all tokens: a chunk is some experts for some tokens, whose inputs a thread keeps for
// the next one.
void compute_logits(Step& step, size_t thread, const float* router, const ActivationRows& x) {
  const size_t hidden = step.config.hidden_size, num_experts = step.config.num_experts;
  const size_t row_chunks = num_parts(num_experts, kRouterRows);
  float* inputs = step.buffers.threads[thread].router_inputs.data();
  size_t first_input = step.num_tokens;  // whose are there: none
  for (size_t c; step.pool.next_chunk(thread, row_chunks * num_parts(step.num_tokens, kRouterTokens), c);) {
    const size_t row = c % row_chunks * kRouterRows, first = c / row_chunks * kRouterTokens;
    const size_t tokens = std::min(kRouterTokens, step.num_tokens - first);
    for (size_t t = 0; first != first_input && t < tokens; ++t) x.to_floats(first + t, inputs + t * hidden);
    first_input = first;
    step.kernels.dots(router + row * hidden, std::min(kRouterRows, num_experts - row), inputs, tokens, hidden,
                      step.buffers.router_logits.as<float>() + first * num_experts + row, num_experts);
  }
  step.pool.barrier();
}

// Chooses by the logits, and lays out for this thread which rows each expert has.
void choose(Step& step, size_t thread) {
  const NodeConfig& config = step.config;
  const size_t per_token = config.num_experts_per_tok;
  ThreadBuffers& own = step.buffers.threads[thread];
  const bool redundant = step.is_redundant();
  const std::span<ExpertChoice> choices(redundant ? own.choices : step.buffers.choices);
  const Range all{0, step.num_tokens};
  const Range tokens = redundant ? all : part_of(step, all, thread);
  for (size_t t = tokens.begin; t < tokens.end; ++t) {
    choose_experts(step.buffers.router_logits.as<float>() + t * config.num_experts, config.num_experts,
                   config.norm_topk_prob, choices.subspan(t * per_token, per_token));
  }
  if (!redundant) step.pool.barrier();
  own.routing.set(choices.first(step.num_tokens * per_token), per_token);
}

// The inputs of a tile as neighbouring rows: gathered, unless its tokens are neighbours already, and kept for the
// tile's next chunk.
class TileInputs {
 public:
  TileInputs(const Routing& routing, const ActivationRows& x, ActivationRows& gathered)
      : routing_(routing), x_(x), gathered_(gathered) {}

  void load(const ExpertTile& tile) {
    if (&tile == tile_) return;
    tile_ = &tile;
    first_ = routing_.token(tile.rows.begin);
    is_gathered_ = routing_.token(tile.rows.end - 1) - first_ + 1 != tile.rows.size();
    if (!is_gathered_) return;
    for (size_t i = 0; i < tile.rows.size(); ++i) gathered_.copy(i, x_, routing_.token(tile.rows.begin + i));
  }
  const ActivationRows& rows() const { return is_gathered_ ? gathered_ : x_; }
  size_t first() const { return is_gathered_ ? 0 : first_; }

 private:
  const Routing& routing_;
  const ActivationRows& x_;
  ActivationRows& gathered_;
  const ExpertTile* tile_ = nullptr;
  size_t first_ = 0;
  bool is_gathered_ = false;
};

}  // namespace

void expert_gate_and_up(Step& step, size_t thread, const LayerWeights& w, const ActivationRows& x) {
  compute_logits(step, thread, w.router, x);
  choose(step, thread);
  const Routing& routing = step.buffers.threads[thread].routing;
  TileInputs inputs(routing, x, step.buffers.threads[thread].gathered);
  ActivationRows& gated = step.buffers.expert_gated;
  const size_t width = step.shard.expert_intermediate_size, chunks = num_parts(width, kChunkRows);
  for (size_t c; step.pool.next_chunk(thread, routing.tiles().size() * chunks, c);) {
    const ExpertTile& tile = routing.tiles()[c / chunks];
    const size_t first = c % chunks * kChunkRows;
    const Range columns{first, std::min(first + kChunkRows, width)};
    inputs.load(tile);
    gate_columns(step, thread, w.experts[tile.expert], columns, inputs.rows(), inputs.first(), gated, tile.rows);
    for (size_t row = tile.rows.begin; row < tile.rows.end; ++row) {
      gated.scale(row, first, columns.size(), routing.weight(row));
    }
  }
  step.pool.barrier();
}

void expert_down(Step& step, size_t thread, const LayerWeights& w, Range tokens) {
  const size_t hidden = step.config.hidden_size, group = step.kernels.row_group;
  ThreadBuffers& own = step.buffers.threads[thread];
  float* sums = own.up.data();        // [tokens, kChunkRows]
  float* products = own.gate.data();  // [rows of a tile, kChunkRows]
  for (size_t c; step.pool.next_chunk(thread, num_parts(hidden, kChunkRows), c);) {
    const size_t first = c * kChunkRows, size = std::min(kChunkRows, hidden - first);
    std::fill_n(sums, tokens.size() * kChunkRows, 0.0f);
    for (const ExpertTile& tile : own.routing.tiles()) {
      const Range rows = own.routing.rows_of(tile, tokens);
      if (rows.size() == 0) continue;
      matmul(step.kernels, w.experts[tile.expert].down_proj, first / group, size / group, step.buffers.expert_gated,
             rows.begin, rows.size(), products, kChunkRows);
      for (size_t row = rows.begin; row < rows.end; ++row) {
        step.kernels.add(sums + (own.routing.token(row) - tokens.begin) * kChunkRows,
                         products + (row - rows.begin) * kChunkRows, size);
      }
    }
    for (size_t t = 0; t < tokens.size(); ++t) {
      float* update = step.buffers.update.as<float>() + (tokens.begin + t) * hidden + first;
      std::memcpy(update, sums + t * kChunkRows, size * sizeof(float));
    }
    on_links(step, thread, [&] { step.group.poke(); });  // the piece before this one is still on its way
  }
}

std::span<const std::byte> first_router_weights(const Step& step, size_t thread, const LayerWeights& w) {
  const NodeConfig& config = step.config;
  const Range part = split(num_parts(config.num_experts, kRouterRows), step.pool.size(), thread);
  if (part.size() == 0) return {};
  const size_t row = part.begin * kRouterRows, rows = std::min(kRouterRows, config.num_experts - row);
  const auto all = std::as_bytes(std::span(w.router + row * config.hidden_size, rows * config.hidden_size));
  return all.first(std::min(all.size(), kMaxAheadBytes));
}

}  // namespace dllama
