// What the ranks exchange inside a layer. Their partial sums behind o_proj and down_proj, until every rank has the next
// products' input, in two ways, which give the same bits:
//
//   direct:   every rank sends all its sums to every other, and each adds them up and normalizes for itself;
//   scatter:  each rank owns a range of the hidden size. It gets the others' sums of its range alone, adds them to its
//             range of the residual, and sends that to all, weighted and quantized, with its sum of squares.
//
// Direct takes one message's time, scatter two, with fewer bytes from three ranks on. In both, sums travel in the wire
// type and are added in rank order, a rank's own included as the wire carries them. Where what is added to the residual
// is normed first, each rank needs the whole sum, so it is always direct.
//
// And before attention, where all heads of a token are normed together, the sums of squares of each rank's, in F32: all
// to all, added in rank order.
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
// Direct: x += the sum over ranks, for one token; normed by `output_norm` first, unless that is null.
void add_sums(Step& step, size_t thread, size_t token, const float* output_norm, float* x);
// Row `row` of `out` := norm of the token's residual, all of which is here; with no `weight` the residual as it is.
void norm(Step& step, size_t thread, size_t token, const float* weight, ActivationRows& out, size_t row);

// Scatter: waits for the sums of a piece and adds them to this rank's range of the residual.
void reduce_sums(Step& step, size_t thread, size_t piece);
// Scatter: this rank's range of the residual of tokens[row], weighted and quantized, becomes part of row `row` of
// buffers.normed, here and on all other ranks; `tokens` empty: row t is token t.
void send_range(Step& step, size_t thread, Range rows, std::span<const size_t> tokens, const float* weight);
// Scatter: waits until the first `num_rows` rows of buffers.normed are whole. Ends in a barrier.
void receive_ranges(Step& step, size_t thread, size_t num_rows);

// This rank's sums of squares of a token's heads, which each thread writes of some tokens; once they are shared, the
// sums over all ranks. share_head_squares() ends in a barrier if there are other ranks.
HeadSquares& own_head_squares(Step& step, size_t token);
void share_head_squares(Step& step, size_t thread);
HeadSquares total_squares(const Step& step, size_t token);

}  // namespace dllama
