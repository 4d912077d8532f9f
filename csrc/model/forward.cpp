#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "model/layer.h"

namespace dllama {

namespace {

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
void fill_rotary_table(RotaryTable& table, std::span<const float> frequencies, float factor, size_t token,
                       size_t position) {
  const size_t pairs = frequencies.size();
  for (size_t j = 0; j < pairs; ++j) {
    const float angle = static_cast<float>(position) * frequencies[j];
    table.cos.as<float>()[token * pairs + j] = std::cos(angle) * factor;
    table.sin.as<float>()[token * pairs + j] = std::sin(angle) * factor;
  }
}

void fill_rotary_tables(Step& step, size_t token) {
  const size_t position = step.buffers.position[token];
  fill_rotary_table(step.buffers.rope, step.config.rope_frequencies, step.config.rope_factor, token, position);
  fill_rotary_table(step.buffers.local_rope, step.config.local_rope_frequencies, 1.0f, token, position);
}

void load_embeddings(Step& step, size_t thread, const Batch& batch) {
  const size_t hidden = step.config.hidden_size;
  const bool redundant = step.is_redundant();
  const Range own = split(step.num_tokens, step.pool.size(), thread);
  for (size_t t = own.begin; t < own.end; ++t) fill_rotary_tables(step, t);
  for (size_t t = redundant ? 0 : own.begin; t < (redundant ? step.num_tokens : own.end); ++t) {
    float* row = residual_row(step, thread, t);
    for (size_t i = 0; i < hidden; ++i) row[i] = batch.embeddings[t * hidden + i] * step.config.embedding_multiplier;
  }
  step.pool.barrier();
}

}  // namespace

void forward(Step& step, const Batch& batch, Outputs& outputs) {
  lay_out(step, batch);
  const Wanted wanted(batch);
  size_outputs(step, batch, wanted, outputs);
  step.pool.run([&](size_t thread) {
    load_embeddings(step, thread, batch);
    const ActivationRows* x = &add_and_norm(step, thread, false, {nullptr, step.weights.layers[0].input_layernorm});
    for (size_t layer = 0; layer < step.config.layers.size(); ++layer) {
      x = &run_layer(step, thread, layer, *x);
      if (step.failed) return;
    }
    if (wanted.tokens.empty()) return;
    final_norm(step, thread, wanted.tokens);
    if (step.failed) return;
    compute_results(step, thread, wanted, outputs);
  });
  if (step.failed) std::rethrow_exception(step.error);
  gather_results(step, wanted, outputs);
}

}  // namespace dllama
