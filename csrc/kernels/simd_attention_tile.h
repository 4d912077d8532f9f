// What attention's kernels for all types of pages share: the rows of a tile, and their softmax. Knows no instruction
// set.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/simd_math.h"

namespace dllama {
namespace {

static_assert(kKeyGroup % kLanes == 0, "a vector of a K page is one dimension of positions of one group");

constexpr int kMaxRows = 6;
constexpr size_t kCacheLine = 64;

// Vectors side by side in a tile of R rows: as many sums as there are registers for, since each multiply-add waits for
// the one before (4 cycles, two a cycle), and every vector of K or V serves all rows.
constexpr int vectors_for(int num_rows) {
  return num_rows * 4 + 4 < kRegisters ? 4 : 2;
}

// Asks for the lines of the next page that lie where `bytes` are read of this one.
template <size_t bytes>
KERNEL_INLINE void look_ahead(const char* next) {
  KERNEL_UNROLL
  for (size_t i = 0; i < bytes; i += kCacheLine) prefetch(next + i);
}

// The rows of one tile.
struct Tile {
  float weights[kMaxRows][kPageSize];  // scores, until softmax() turns those below `valid` into exponentials
  float rescale[kMaxRows];             // of what the row has summed so far
  uint32_t valid[kMaxRows];
  uint32_t min_valid, max_valid;
  const float* q;  // [R, head_dim]
  float* acc;      // [R, head_dim]
  size_t head_dim;
  bool looks_ahead;
  const char *next_k, *next_v;
  // Of Q80 pages.
  const int16_t* q_quants;  // [R, head_dim]
  const float* q_scales;
  int16_t weight_quants[kMaxRows][kPageSize];
  float weight_scales[kMaxRows];
};

template <int R>
KERNEL_INLINE void cap_scores(Tile& tile, float cap) {
  for (int r = 0; r < R; r++) {
    for (size_t p = 0; p < tile.valid[r]; p += kLanes) {
      float* scores = tile.weights[r] + p;
      store(scores, soft_capped(load(scores), all(cap), all(2.0f / cap)));
    }
  }
}

// Scores of positions at the beginning of the page that a row does not see: their exponentials will be 0.
template <int R>
KERNEL_INLINE void hide_scores(Tile& tile, const uint32_t* hidden) {
  for (int r = 0; r < R; r++) {
    for (uint32_t p = 0; p < hidden[r]; p++) tile.weights[r][p] = -__builtin_inff();
  }
}

// Turns the scores of one row into exponentials relative to its new maximum. Positions from `valid` on are replaced
// before anything is computed from them: whatever the page holds there, it cannot reach the row.
KERNEL_INLINE void softmax(Tile& tile, int row, float& row_max, float& row_sum) {
  float* weights = tile.weights[row];
  const size_t valid = tile.valid[row];

  F32xN maxima = all(row_max);
  for (size_t p = 0; p < valid; p += kLanes) {
    F32xN scores = load(weights + p);
    if (valid - p < kLanes) {
      scores = keep_first(scores, valid - p, all(-__builtin_inff()));
      store(weights + p, scores);
    }
    maxima = max(maxima, scores);
  }
  const float new_max = max_lanes(maxima);

  F32xN sums = zeros();
  for (size_t p = 0; p < valid; p += kLanes) {
    const F32xN e = exp(sub(load(weights + p), all(new_max)));
    store(weights + p, e);
    sums = add(sums, e);
  }
  tile.rescale[row] = first_lane(exp(all(row_max - new_max)));  // 0 on the first page: exp(-inf)
  row_sum = row_sum * tile.rescale[row] + sum_lanes(sums);
  row_max = new_max;
}

}  // namespace
}  // namespace dllama
