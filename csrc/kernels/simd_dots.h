// Dot products of rows of floats whose bits are the same on every level, for vectors of any width: sixteen running
// sums, each of every sixteenth product, of which halves join until one is left. Products are rounded before they are
// added.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace dllama {
namespace {

constexpr size_t kDotVectors = kDotSums / kLanes;  // that hold the running sums
constexpr int kDotTile = kRegisters / 8;           // rows and tokens at a time: their sums fill half the registers

template <int R, int T>
KERNEL_INLINE void dot_tile(const float* w, const float* x, size_t n, float* out, size_t out_stride) {
  F32xN sums[R][T][kDotVectors];
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      KERNEL_UNROLL
      for (size_t v = 0; v < kDotVectors; v++) sums[r][t][v] = zeros();
    }
  }
  for (size_t k = 0; k < n; k += kDotSums) {
    KERNEL_UNROLL
    for (size_t v = 0; v < kDotVectors; v++) {
      F32xN xs[T];
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) xs[t] = load(x + t * n + k + v * kLanes);
      KERNEL_UNROLL
      for (int r = 0; r < R; r++) {
        const F32xN weights = load(w + r * n + k + v * kLanes);
        KERNEL_UNROLL
        for (int t = 0; t < T; t++) sums[r][t][v] = add(sums[r][t][v], mul(weights, xs[t]));
      }
    }
  }
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      F32xN total = sums[r][t][0];
      KERNEL_UNROLL
      for (size_t v = 1; v < kDotVectors; v++) total = add(total, sums[r][t][v]);
      out[t * out_stride + r] = sum_lanes(total);
    }
  }
}

template <int T>
KERNEL_INLINE void dot_rows(const float* w, size_t rows, const float* x, size_t n, float* out, size_t out_stride) {
  size_t r = 0;
  for (; r + kDotTile <= rows; r += kDotTile) dot_tile<kDotTile, T>(w + r * n, x, n, out + r, out_stride);
  for (; r < rows; r++) dot_tile<1, T>(w + r * n, x, n, out + r, out_stride);
}

void dots(const float* w, size_t rows, const float* x, size_t tokens, size_t n, float* out, size_t out_stride) {
  size_t t = 0;
  for (; t + kDotTile <= tokens; t += kDotTile) {
    dot_rows<kDotTile>(w, rows, x + t * n, n, out + t * out_stride, out_stride);
  }
  for (; t < tokens; t++) dot_rows<1>(w, rows, x + t * n, n, out + t * out_stride, out_stride);
}

}  // namespace
}  // namespace dllama
