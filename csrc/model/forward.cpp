#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/sample.h"

namespace dllama {

namespace {

// The wants of a batch in the order their rows are laid out behind the final norm: logits first, then scores.
struct Wanted {
  std::vector<Want> rows;
  std::vector<size_t> tokens;  // of the same rows
  size_t num_logits = 0;
};

Wanted sort_wants(const Batch& batch) {
  Wanted wanted;
  for (const Want& want : batch.wants) {
    if (want.kind == WantKind::Logits) wanted.rows.push_back(want);
  }
  wanted.num_logits = wanted.rows.size();
  for (const Want& want : batch.wants) {
    if (want.kind == WantKind::Score) wanted.rows.push_back(want);
  }
  for (const Want& want : wanted.rows) wanted.tokens.push_back(static_cast<size_t>(want.row));
  return wanted;
}

// Lists each token's slot and position, and cuts the spans into attention tiles.
void lay_out(Step& step, const Batch& batch) {
  const size_t max_tile = tile_tokens(step.shard);
  size_t row = 0;
  for (const Span& span : batch.spans) {
    const auto tokens = static_cast<size_t>(span.num_tokens);
    for (size_t t = 0; t < tokens; ++t) {
      step.buffers.slot[row + t] = static_cast<size_t>(span.slot);
      step.buffers.position[row + t] = static_cast<size_t>(span.first_position) + t;
    }
    for (size_t t = 0; t < tokens; t += max_tile) {
      step.tiles.push_back({row + t, std::min(max_tile, tokens - t)});
    }
    row += tokens;
  }
  step.num_tokens = row;
}

// cos and sin of position * frequency, the product rounded to F32 as the reference implementation rounds it.
void rotary_table(Step& step, size_t token) {
  const size_t half = step.config.head_dim / 2;
  const auto position = static_cast<float>(step.buffers.position[token]);
  for (size_t j = 0; j < half; ++j) {
    const float angle = position * step.config.rope_frequencies[j];
    step.buffers.cos.as<float>()[token * half + j] = std::cos(angle);
    step.buffers.sin.as<float>()[token * half + j] = std::sin(angle);
  }
}

void load_embeddings(Step& step, size_t thread, const Batch& batch) {
  const size_t hidden = step.config.hidden_size;
  const bool redundant = step.is_redundant();
  const Range own = split(step.num_tokens, step.pool.size(), thread);
  for (size_t t = own.begin; t < own.end; ++t) rotary_table(step, t);
  for (size_t t = redundant ? 0 : own.begin; t < (redundant ? step.num_tokens : own.end); ++t) {
    std::memcpy(residual_row(step, thread, t), batch.embeddings.data() + t * hidden, hidden * sizeof(float));
  }
  step.pool.barrier();
}

// Brings the slices of all ranks together on the root: its own stand in `out` already, the others send theirs.
void gather_logits(Step& step, size_t num_rows, float* out, size_t stride) {
  step.group.begin_exchange();
  for (size_t row = 0; row < num_rows; ++row) {
    float* logits = out + row * stride;
    if (!step.group.is_root()) {
      step.group.send(0, FrameType::Logits, std::as_bytes(std::span(logits, step.shard.vocab_size())));
      continue;
    }
    for (size_t rank = 1; rank < step.group.world_size(); ++rank) {
      const Shard& shard = step.config.shards[rank];
      const std::span slice(logits + shard.vocab_begin, shard.vocab_size());
      step.group.receive(rank, FrameType::Logits, std::as_writable_bytes(slice));
    }
  }
  step.group.wait();
}

// Logits of `num_rows` rows of buffers.normed from `first_row` on; whole on the root, `out` [num_rows, stride].
void project_logits(Step& step, size_t thread, size_t first_row, size_t num_rows, float* out, size_t stride) {
  project_chunks(step, thread, step.weights.lm_head, step.buffers.normed, first_row, num_rows, out, stride);
  step.pool.barrier();
  if (step.is_alone()) return;
  on_links(step, thread, [&] { gather_logits(step, num_rows, out, stride); });
  step.pool.barrier();
}

float log_probability(const Step& step, const float* logits, int32_t token) {
  return static_cast<float>(logits[token] - log_sum_exp(step.kernels, logits, step.config.vocab_size));
}

// Scores in tiles of kScoreRows, so that a long text never needs all its logits at once.
void score(Step& step, size_t thread, const Wanted& wanted, Outputs& outputs) {
  const size_t total = wanted.rows.size();
  for (size_t first = wanted.num_logits; first < total; first += kScoreRows) {
    const size_t rows = std::min(kScoreRows, total - first);
    auto* logits = outputs.slice.as<float>();
    project_logits(step, thread, first, rows, logits, outputs.stride);
    const Range own = step.group.is_root() ? split(rows, step.pool.size(), thread) : Range{};
    for (size_t i = own.begin; i < own.end; ++i) {
      outputs.scores[first + i - wanted.num_logits] =
          log_probability(step, logits + i * outputs.stride, wanted.rows[first + i].token);
    }
    step.pool.barrier();
  }
}

void grow(Buffer& buffer, size_t bytes) {
  if (buffer.size() >= bytes) return;
  buffer = Buffer();  // first, so that never both are held
  buffer = Buffer(bytes);
}

// Rows are as wide as the whole vocabulary on the root, as this rank's slice elsewhere, padded to whole row groups.
void size_outputs(const Step& step, const Wanted& wanted, Outputs& outputs) {
  const size_t group = step.kernels.row_group;
  const size_t width = step.group.is_root() ? step.config.vocab_size : step.shard.vocab_size();
  outputs.stride = (width + group) / group * group;  // at least one group more than the last slice's padding needs
  outputs.num_logits = wanted.num_logits;
  outputs.scores.assign(wanted.rows.size() - wanted.num_logits, 0.0f);
  const size_t logits_bytes = wanted.num_logits * outputs.stride * sizeof(float);
  if (outputs.logits->size() < logits_bytes) {
    outputs.logits = std::make_shared<Buffer>();  // whoever still holds the old one keeps it
    *outputs.logits = Buffer(logits_bytes);
  }
  grow(outputs.slice, std::min(kScoreRows, outputs.scores.size()) * outputs.stride * sizeof(float));
}

}  // namespace

void forward(Step& step, const Batch& batch, Outputs& outputs) {
  lay_out(step, batch);
  const Wanted wanted = sort_wants(batch);
  size_outputs(step, wanted, outputs);
  step.pool.run([&](size_t thread) {
    load_embeddings(step, thread, batch);
    const ActivationRows* x = &add_and_norm(step, thread, false, step.weights.layers[0].input_layernorm);
    for (size_t layer = 0; layer < step.config.layers.size(); ++layer) {
      x = &run_layer(step, thread, layer, *x);
      if (step.failed) return;
    }
    if (wanted.rows.empty()) return;
    final_norm(step, thread, wanted.tokens);
    if (step.failed) return;
    if (wanted.num_logits > 0) {
      project_logits(step, thread, 0, wanted.num_logits, outputs.logits->as<float>(), outputs.stride);
    }
    score(step, thread, wanted, outputs);
  });
  if (step.failed) std::rethrow_exception(step.error);
}

}  // namespace dllama
