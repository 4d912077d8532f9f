// One transformer layer on this rank's slices. READ FIRST: layer.cpp is the model.
#pragma once

#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// The norms on both sides of the residual, behind attention and behind the feed-forward network.
struct Norms {
  const float* output = nullptr;  // [hidden_size] of what is added to the residual, summed over ranks; null: none
  const float* input = nullptr;   // [hidden_size] of what the next products read; null: the residual as it is
  bool is_read = true;            // false behind the last layer, as only some tokens are wanted there: final_norm()
};

// For all tokens: residual += the sums over ranks, if there are new ones, then what the next products read of it, in
// the form they want. Returns where this thread finds it.
const ActivationRows& add_and_norm(Step& step, size_t thread, bool has_sums, const Norms& norms);

// out[i] := w x rows[first_row + i] for i < num_rows, split over threads; no barrier behind it.
void project_chunks(Step& step, size_t thread, const Matrix& w, const ActivationRows& rows, size_t first_row,
                    size_t num_rows, float* out, size_t stride);

// Runs one layer on `x`, what it reads of the residual. Every thread calls it. Returns the next layer's `x`; behind the
// last layer only some tokens are wanted, whose residuals final_norm() takes up.
const ActivationRows& run_layer(Step& step, size_t thread, size_t layer, const ActivationRows& x);

// What a layer does behind its attention, without the products: for measuring.
void probe_exchange(Step& step, size_t thread);

// Rows of buffers.normed := norm of the residuals of `tokens`, behind the last layer. Ends in a barrier.
void final_norm(Step& step, size_t thread, std::span<const size_t> tokens);

}  // namespace dllama
