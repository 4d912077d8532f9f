// What the ranks exchange inside a layer: their partial sums behind o_proj and down_proj, until every rank has the next
// products' input. Two ways, which give the same bits:
//
//   direct:   every rank sends all its sums to every other, and each adds them up and normalizes for itself;
//   scatter:  each rank owns a range of the hidden size. It gets the others' sums of its range alone, adds them to its
//             range of the residual, and sends that to all, weighted and quantized, with its sum of squares.
//
// Direct takes one message's time, scatter two, with fewer bytes from three ranks on. In both, sums travel in the wire
// type and are added in rank order, a rank's own included as the wire carries them.
//
// All threads of a step call these functions together. A group of one exchanges nothing: its sums are there at once.
#pragma once

#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// The tokens of a step, cut into pieces if there are many and other ranks wait for them.
size_t num_pieces(const Step& step);
Range piece_tokens(const Step& step, size_t piece);

// The sums of a piece, which lie in buffers.update behind a barrier, leave for the other ranks.
void send_sums(Step& step, size_t thread, size_t piece);

// Direct: waits for the sums of all pieces. Ends in a barrier.
void wait_for_sums(Step& step, size_t thread);
// Direct: x := x + the sum over ranks, for one token.
void add_sums(Step& step, size_t thread, size_t token, float* x);
// Row `row` of `out` := norm of the token's residual, all of which is here.
void norm(Step& step, size_t thread, size_t token, const float* weight, ActivationRows& out, size_t row);

// Scatter: waits for the sums of a piece and adds them to this rank's range of the residual.
void reduce_sums(Step& step, size_t thread, size_t piece);
// Scatter: this rank's range of the residual of tokens[row], weighted and quantized, becomes part of row `row` of
// buffers.normed, here and on all other ranks; `tokens` empty: row t is token t.
void send_range(Step& step, size_t thread, Range rows, std::span<const size_t> tokens, const float* weight);
// Scatter: waits until the first `num_rows` rows of buffers.normed are whole. Ends in a barrier.
void receive_ranges(Step& step, size_t thread, size_t num_rows);

}  // namespace dllama
