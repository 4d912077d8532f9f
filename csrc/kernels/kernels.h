// The table of arithmetic every other part calls: one function per kernel, one table per instruction-set level.
//
// generic.cpp is the specification and fills the whole table; the files of a level (levels.h) override what they do
// better. Codecs agree bit for bit between levels; sums of floats agree to the roundings of their order of summation.
// Kernels take pointers and sizes: they know nothing of threads, models, files or errors, and never allocate.
// No input may make a kernel read or write outside the ranges stated here; NaN and infinity give unspecified values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"

namespace dllama {

// Positions in one page of the KV cache. Attention is cut at absolute multiples of it, so it is part of the results'
// bits.
inline constexpr size_t kPageSize = 64;
// Positions interleaved in a K page: vector lanes are positions, so q.K needs no horizontal sums.
inline constexpr size_t kKeyGroup = 16;
// Running sums of one of `dots`' products.
inline constexpr size_t kDotSums = 16;

// Running softmax of `rows` query rows over the pages seen so far. A row starts with max = -inf, sum = 0, acc = 0;
// after the last page its result is acc / sum.
struct AttentionRows {
  const float* q;         // [rows, head_dim], already multiplied by the score scale; not read for Q80 pages
  const uint32_t* valid;  // [rows] positions of this page the row may see, 0..kPageSize; 0 leaves the row unchanged
  float* max;             // [rows]
  float* sum;             // [rows]
  float* acc;             // [rows, head_dim]
  size_t rows;
  size_t head_dim;
  // The page that comes next, whose lines are asked for meanwhile; null: none.
  const void* next_k = nullptr;
  const void* next_v = nullptr;
  // For Q80 pages: q as quantize_query gives it, [rows, head_dim], and the scales of its rows.
  const int16_t* q_quants = nullptr;
  const float* q_scales = nullptr;
  // [rows] positions at the beginning of this page that the row does not see, fewer than its `valid` unless that is 0;
  // null: none.
  const uint32_t* hidden = nullptr;
  float softcap = 0.0f;  // scores become softcap * tanh(score / softcap); 0: they stay
};

// Largest query quant: with 127 the largest of a key and 4096 the largest head_dim, a score fits int32.
inline constexpr int kMaxQueryQuant = 4095;
// Largest quant of a position's weight within a page.
inline constexpr int kMaxWeightQuant = 32767;

// Of GELU's tanh approximation: gelu(x) = x / (1 + exp(-x (kGeluLinear + kGeluCubic x^2))), which is
// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
inline constexpr float kGeluLinear = 1.5957691216f;
inline constexpr float kGeluCubic = 0.0713548163f;

struct Kernels {
  const char* isa;

  // --- codecs (bit-exact: every level gives the bytes that quant/codec.h defines) ---
  void (*quantize_q40)(const float* x, BlockQ40* out, size_t blocks);
  void (*quantize_q80)(const float* x, BlockQ80* out, size_t blocks);
  void (*dequantize_q40)(const BlockQ40* x, float* out, size_t blocks);
  void (*dequantize_q80)(const BlockQ80* x, float* out, size_t blocks);
  void (*f32_to_f16)(const float* x, uint16_t* out, size_t n);  // round to nearest even, overflow to infinity
  void (*f16_to_f32)(const uint16_t* x, float* out, size_t n);
  void (*quantize_activation)(const float* x, ActivationQ80* out, size_t blocks);

  // --- packed weights ---
  // A packed matrix is a sequence of row groups, each `row_group` output rows by all inputs; the last group is padded
  // with zero rows. Only the level that packed a matrix can read it.
  size_t row_group;
  // Bytes of one packed row group of `cols` inputs (cols a multiple of kBlockSize for Q40 and Q80). A multiple of 4.
  size_t (*group_bytes)(DType type, size_t cols);
  // Packs `rows` canonical rows (row-major, as files hold them) into ceil(rows / row_group) groups at `packed`.
  void (*pack)(DType type, const void* canonical, size_t rows, size_t cols, void* packed);

  // out[t * out_stride + r] = sum over k of w[r][k] * x[t][k], for t < tokens and r < groups * row_group.
  // `x` is [tokens, x_stride] records (Q40, Q80: ActivationQ80, one per block) or floats (F16, F32).
  // One order of summation over k whatever `tokens` and `groups` are: a result's bits depend on its row and token
  // alone. Each 32 inputs are summed first (Q40, Q80: exactly), then added to the total, so errors grow with cols / 32.
  void (*matmul_q40)(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride,
                     size_t tokens, float* out, size_t out_stride);
  void (*matmul_q80)(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride,
                     size_t tokens, float* out, size_t out_stride);
  void (*matmul_f16)(const void* packed, size_t groups, size_t cols, const float* x, size_t x_stride, size_t tokens,
                     float* out, size_t out_stride);
  void (*matmul_f32)(const void* packed, size_t groups, size_t cols, const float* x, size_t x_stride, size_t tokens,
                     float* out, size_t out_stride);

  // --- vectors of n floats, any n, any alignment ---
  // Sums are taken in an order that depends on n alone. Elements have the same bits however a range is cut into calls.
  void (*add)(float* x, const float* y, size_t n);  // x += y
  // x += y * scale, rounded twice: the same bits on every level.
  void (*add_scaled)(float* x, const float* y, float scale, size_t n);
  float (*sum_squares)(const float* x, size_t n);  // the same bits on every level, so that norms agree between nodes
  void (*scale_mul)(const float* x, const float* weight, float scale, float* out, size_t n);  // x * scale * weight
  void (*silu_mul)(const float* gate, const float* up, float* out, size_t n);                 // silu(gate) * up
  void (*gelu_mul)(const float* gate, const float* up, float* out, size_t n);                 // gelu(gate) * up
  // x *= scale, then x = cap * tanh(x / cap), to some units in the last place; 0: no cap. NaN stays NaN.
  void (*scale_and_cap)(float* x, float scale, float cap, size_t n);
  float (*max)(const float* x, size_t n);  // n >= 1
  // out[i] = exp((x[i] - shift) * scale), to 2 units in the last place, 0 where that is below the smallest normal float
  // (generic: a subnormal); returns their sum. `out` may be `x`.
  float (*exp_sum)(const float* x, float shift, float scale, float* out, size_t n);
  // Rotates the pairs (x[j], x[j + half]) by the angles whose cosines and sines are given [half].
  void (*rotate_half)(float* x, const float* cos, const float* sin, size_t half);

  // out[t * out_stride + r] = w[r] . x[t] for t < tokens and r < rows, of row-major [., n], n a multiple of kDotSums.
  // The same bits on every level, so that all nodes choose the same experts.
  void (*dots)(const float* w, size_t rows, const float* x, size_t tokens, size_t n, float* out, size_t out_stride);

  // --- attention over one KV page of one KV head ---
  // K page: [kPageSize / kKeyGroup, head_dim, kKeyGroup], V page: [kPageSize, head_dim], of F16 or F32.
  // Q80, for even head_dim: K page: int8 [kPageSize / kKeyGroup, head_dim / 2, kKeyGroup, 2], V page: int8
  // [kPageSize / 2, head_dim, 2], so that what a product of pairs adds up lies side by side; behind either kPageSize
  // F32 scales, one per position, so pages are aligned to 4 bytes.
  //
  // Writes one position (0 <= slot < kPageSize) of a page; int8 as quant/codec.h defines them.
  void (*store_key_f16)(const float* k, size_t head_dim, size_t slot, uint16_t* k_page);
  void (*store_key_f32)(const float* k, size_t head_dim, size_t slot, float* k_page);
  void (*store_key_q80)(const float* k, size_t head_dim, size_t slot, int8_t* k_page);
  void (*store_value_q80)(const float* v, size_t head_dim, size_t slot, int8_t* v_page);
  // Adds one page to the running softmax of each row. A row's bits do not depend on the other rows.
  void (*attend_f16)(const AttentionRows& rows, const uint16_t* k_page, const uint16_t* v_page);
  void (*attend_f32)(const AttentionRows& rows, const float* k_page, const float* v_page);
  // Scores are exact sums of the quants times their scales. The weights of a page, times the scales of its values, are
  // rounded to int16 whose largest is kMaxWeightQuant, and mixed exactly.
  void (*attend_q80)(const AttentionRows& rows, const int8_t* k_page, const int8_t* v_page);
  // Rounds a query row to whole multiples, up to kMaxQueryQuant, of the scale that it returns.
  float (*quantize_query)(const float* q, size_t head_dim, int16_t* out);

  // Reads `bytes` (a multiple of 64) and returns a checksum: the loop the bandwidth probe times.
  uint64_t (*read_memory)(const void* data, size_t bytes);
};

}  // namespace dllama
