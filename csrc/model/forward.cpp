#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/norm.h"
#include "ops/sample.h"

namespace dllama {

namespace {

// The wants of a batch in the order their rows are laid out behind the final norm: logits first, then scores.
struct Wanted {
  std::vector<Want> rows;
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
  const bool redundant = step.num_tokens <= kRedundantTokens;
  const Range own = split(step.num_tokens, step.pool.size(), thread);
  for (size_t t = own.begin; t < own.end; ++t) rotary_table(step, t);
  for (size_t t = redundant ? 0 : own.begin; t < (redundant ? step.num_tokens : own.end); ++t) {
    std::memcpy(residual_row(step, thread, t), batch.embeddings.data() + t * hidden, hidden * sizeof(float));
  }
  step.pool.barrier();
}

// The final norm of the wanted rows only, into buffers.normed in the order of `wanted`.
void final_norm(Step& step, size_t thread, const Wanted& wanted) {
  const size_t hidden = step.config.hidden_size;
  const Range range = split(wanted.rows.size(), step.pool.size(), thread);
  for (size_t i = range.begin; i < range.end; ++i) {
    const auto token = static_cast<size_t>(wanted.rows[i].row);
    add_norm_store(step.kernels, residual_row(step, thread, token), step.buffers.update.as<float>() + token * hidden,
                   step.weights.norm, step.config.rms_norm_eps, hidden, step.buffers.threads[thread].scratch.data(),
                   step.buffers.normed, i);
  }
  step.pool.barrier();
}

// Brings the slices of all ranks together on the root: its own stand in `out` already, the others send theirs.
void gather_logits(Step& step, size_t num_rows, float* slice, size_t slice_stride, float* out, size_t stride) {
  const auto& shards = step.config.shards;
  std::vector<size_t> columns, first_columns;
  for (const Shard& shard : shards) {
    columns.push_back(shard.vocab_size());
    first_columns.push_back(shard.vocab_begin);
  }
  if (!step.group.is_root()) {  // close the gaps that padding rows left
    for (size_t row = 1; row < num_rows; ++row) {
      std::memmove(slice + row * step.shard.vocab_size(), slice + row * slice_stride,
                   step.shard.vocab_size() * sizeof(float));
    }
  }
  step.group.gather_rows(slice, num_rows, columns, first_columns, out, stride);
}

// Logits of `num_rows` rows of buffers.normed from `first_row` on; whole on the root, `out` [num_rows, stride].
void project_logits(Step& step, size_t thread, size_t first_row, size_t num_rows, float* out, size_t stride) {
  project_chunks(step, thread, step.weights.lm_head, step.buffers.normed, first_row, num_rows, out, stride);
  step.pool.barrier();
  if (step.group.world_size() == 1) return;
  if (thread == 0 && !step.failed) {
    try {
      gather_logits(step, num_rows, out, stride, out, stride);
    } catch (...) {
      step.error = std::current_exception();
      step.failed = true;
    }
  }
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
    for (size_t layer = 0; layer < step.config.layers.size(); ++layer) {
      run_layer(step, thread, layer);
      if (step.failed) return;
    }
    if (wanted.rows.empty()) return;
    final_norm(step, thread, wanted);
    if (wanted.num_logits > 0) {
      project_logits(step, thread, 0, wanted.num_logits, outputs.logits->as<float>(), outputs.stride);
    }
    score(step, thread, wanted, outputs);
  });
  if (step.failed) std::rethrow_exception(step.error);
}

}  // namespace dllama
