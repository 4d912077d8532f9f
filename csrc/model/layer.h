// One transformer layer on this rank's slices. READ FIRST: layer.cpp is the model.
#pragma once

#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// For all tokens: residual += the sums over ranks, if there are new ones, then its norm (with no `weight`: none) in the
// form the next products want. Returns where this thread finds it.
const ActivationRows& add_and_norm(Step& step, size_t thread, bool has_sums, const float* weight);

// out[i] := w x rows[first_row + i] for i < num_rows, split over threads; no barrier behind it.
void project_chunks(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows, size_t first_row,
                    size_t num_rows, float* out, size_t stride);

// Columns `columns`, at most kChunkRows, of rows `rows` of `gated` := act(gate_proj x) * up_proj x of as many tokens of
// `x`, from `first_token` on.
void gate_columns(Step& step, size_t thread, const Matrix& gate_proj, const Matrix& up_proj, Range columns,
                  const ActivationRows& x, size_t first_token, ActivationRows& gated, Range rows);

// Runs one layer on `x`, the normalized residual. Every thread calls it. Returns the next layer's `x`; behind the last
// layer only some tokens are wanted, whose residuals final_norm() takes up.
const ActivationRows& run_layer(Step& step, size_t thread, size_t layer, const ActivationRows& x);

// What a layer does behind its attention, without the products: for measuring.
void probe_exchange(Step& step, size_t thread);

// Rows of buffers.normed := norm of the residuals of `tokens`, behind the last layer. Ends in a barrier.
void final_norm(Step& step, size_t thread, std::span<const size_t> tokens);

}  // namespace dllama
