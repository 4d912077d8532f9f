// Attention over one KV page, for vectors of any length. Knows no instruction set.
//
// Up to 6 query rows share every K and V vector that is loaded and widened.
#pragma once

#include <type_traits>

#include "kernels/simd_attention_float.h"
#include "kernels/simd_attention_q80.h"

namespace dllama {
namespace {

template <typename Element>
constexpr bool kIsQ80 = std::is_same_v<Element, int8_t>;

template <int R, typename Element>
void attend_tile(const AttentionRows& rows, size_t first, const Element* k_page, const Element* v_page) {
  Tile tile;
  tile.head_dim = rows.head_dim;
  tile.acc = rows.acc + first * rows.head_dim;
  if constexpr (kIsQ80<Element>) {
    tile.q_quants = rows.q_quants + first * rows.head_dim;
    tile.q_scales = rows.q_scales + first;
  } else {
    tile.q = rows.q + first * rows.head_dim;
  }
  tile.looks_ahead = first == 0 && rows.next_k != nullptr;  // once for all tiles of a page
  tile.next_k = static_cast<const char*>(tile.looks_ahead ? rows.next_k : k_page);
  tile.next_v = static_cast<const char*>(tile.looks_ahead ? rows.next_v : v_page);
  tile.min_valid = kPageSize;
  tile.max_valid = 0;
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    const uint32_t valid = rows.valid[first + r];
    tile.valid[r] = valid;
    if (valid < tile.min_valid) tile.min_valid = valid;
    if (valid > tile.max_valid) tile.max_valid = valid;
  }
  if (tile.max_valid == 0) return;

  score<R>(tile, k_page);
  if (rows.softcap > 0.0f) cap_scores<R>(tile, rows.softcap);
  if (rows.hidden != nullptr) hide_scores<R>(tile, rows.hidden + first);
  KERNEL_UNROLL
  for (int r = 0; r < R; r++) {
    if (tile.valid[r] > 0) softmax(tile, r, rows.max[first + r], rows.sum[first + r]);
  }
  if constexpr (kIsQ80<Element>) {
    KERNEL_UNROLL
    for (int r = 0; r < R; r++) quantize_weights(tile, r, v_page);
  }
  constexpr int kVectors = vectors_for(R);
  size_t d = 0;
  for (; d + kVectors * kLanes <= rows.head_dim; d += kVectors * kLanes) mix<R, kVectors>(tile, v_page, d, kLanes);
  for (; d + kLanes <= rows.head_dim; d += kLanes) mix<R, 1>(tile, v_page, d, kLanes);
  if (d < rows.head_dim) mix<R, 1>(tile, v_page, d, rows.head_dim - d);
}

// As few passes over the page as there can be, about equal.
template <typename Element>
void attend(const AttentionRows& rows, const Element* k_page, const Element* v_page) {
  constexpr decltype(&attend_tile<1, Element>) kTiles[kMaxRows] = {attend_tile<1, Element>, attend_tile<2, Element>,
                                                                   attend_tile<3, Element>, attend_tile<4, Element>,
                                                                   attend_tile<5, Element>, attend_tile<6, Element>};
  size_t passes = (rows.rows + kMaxRows - 1) / kMaxRows;
  for (size_t row = 0; row < rows.rows; passes--) {
    const size_t n = (rows.rows - row + passes - 1) / passes;
    kTiles[n - 1](rows, row, k_page, v_page);
    row += n;
  }
}

KERNEL_INLINE void install_attention(Kernels& table) {
  table.store_key_f16 = store_key<uint16_t>;
  table.store_key_f32 = store_key<float>;
  table.store_key_q80 = store_key_q80;
  table.store_value_q80 = store_value_q80;
  table.quantize_query = quantize_query;
  table.attend_f16 = attend<uint16_t>;
  table.attend_f32 = attend<float>;
  table.attend_q80 = attend<int8_t>;
}

}  // namespace
}  // namespace dllama
