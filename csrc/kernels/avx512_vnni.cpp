// AVX-512 VNNI: the packed Q40 product, 16 rows at a time and one instruction for four multiplications per lane.
//
// A row group is 16 rows here. Q40 has a layout of its own; the other types keep AVX2's kernels, two of its groups of
// eight rows behind each other. Gives AVX2's bits: the integers are exact, the float sums in the same order.
#include <immintrin.h>

#include <cstring>

#include "kernels/levels.h"
#include "kernels/simd.h"
#include "quant/blocks.h"

namespace dllama {
namespace {

constexpr size_t kRows = 16;
constexpr size_t kPiece = 4;    // inputs of one row that lie together
constexpr size_t kVector = 64;  // bytes
constexpr size_t kScaleBytes = kRows * sizeof(uint16_t);
constexpr size_t kUnit = kScaleBytes + kRows * kBlockSize / 2;  // 16 rows of one block
// As in simd_matmul.h: weights that stay in L2 while all tokens pass by. Software prefetch only slowed these loops
// down: with few instructions per byte the CPU looks far enough ahead by itself.
constexpr size_t kPanelBytes = 128 << 10;

Kernels avx2{};  // the table that this level overrides

// --- packing ---

// 16 F16 scales, then vectors in which every 4-byte piece belongs to one row, nibbles as they are.
void pack_q40(const BlockQ40* rows, size_t num_rows, size_t blocks, uint8_t* out) {
  for (size_t b = 0; b < blocks; b++, out += kUnit) {
    for (size_t r = 0; r < num_rows; r++) {
      const BlockQ40& block = rows[r * blocks + b];
      std::memcpy(out + r * sizeof(uint16_t), &block.scale, sizeof(uint16_t));
      for (size_t i = 0; i < sizeof(block.nibbles) / kPiece; i++) {
        std::memcpy(out + kScaleBytes + (i * kRows + r) * kPiece, block.nibbles + i * kPiece, kPiece);
      }
    }
  }
}

size_t group_bytes(DType type, size_t cols) {
  return type == DType::Q40 ? cols / kBlockSize * kUnit : 2 * avx2.group_bytes(type, cols);
}

void pack(DType type, const void* canonical, size_t rows, size_t cols, void* packed) {
  const size_t size = group_bytes(type, cols);
  auto* out = static_cast<uint8_t*>(packed);
  if (rows % kRows != 0) std::memset(out + rows / kRows * size, 0, size);  // padding rows
  if (type != DType::Q40) return avx2.pack(type, canonical, rows, cols, packed);
  const auto* in = static_cast<const BlockQ40*>(canonical);
  const size_t blocks = cols / kBlockSize;
  for (size_t row = 0; row < rows; row += kRows, out += size) {
    pack_q40(in + row * blocks, rows - row < kRows ? rows - row : kRows, blocks, out);
  }
}

// --- products ---

KERNEL_INLINE __m512i broadcast_piece(const void* piece) {
  int32_t word;
  std::memcpy(&word, piece, sizeof(word));
  return _mm512_set1_epi32(word);
}

// The exact integer sums of one block of 16 rows with T tokens. Low and high nibbles add up in chains of their own,
// because each dpbusd waits four cycles for the one before.
template <int T>
KERNEL_INLINE void multiply_block(const uint8_t* unit, const ActivationQ80* const (&x)[T], __m512i (&sum_i32x16)[T]) {
  const __m512i low_mask_u8x64 = _mm512_set1_epi8(15);
  const __m512i ones_i16x32 = _mm512_set1_epi16(1);
  __m512i high_sum_i32x16[T];
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    sum_i32x16[t] = _mm512_madd_epi16(broadcast_piece(x[t]->offset), ones_i16x32);
    high_sum_i32x16[t] = _mm512_setzero_si512();
  }
  KERNEL_UNROLL
  for (size_t i = 0; i < 4; i++) {
    const __m512i w_u8x64 = _mm512_loadu_si512(unit + kScaleBytes + i * kVector);
    const __m512i low_u8x64 = _mm512_and_si512(w_u8x64, low_mask_u8x64);
    const __m512i high_u8x64 = _mm512_and_si512(_mm512_srli_epi16(w_u8x64, 4), low_mask_u8x64);
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      const int8_t* quants = x[t]->quants + i * kPiece;
      sum_i32x16[t] = _mm512_dpbusd_epi32(sum_i32x16[t], low_u8x64, broadcast_piece(quants));
      high_sum_i32x16[t] =
          _mm512_dpbusd_epi32(high_sum_i32x16[t], high_u8x64, broadcast_piece(quants + kBlockSize / 2));
    }
  }
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) sum_i32x16[t] = _mm512_add_epi32(sum_i32x16[t], high_sum_i32x16[t]);
}

template <int T>
void tile(const uint8_t* w, size_t blocks, const ActivationQ80* x, size_t x_stride, float* out, size_t out_stride) {
  __m512 total_f32x16[T];
  const ActivationQ80* xs[T];
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    total_f32x16[t] = _mm512_setzero_ps();
    xs[t] = x + t * x_stride;
  }
  for (size_t b = 0; b < blocks; b++, w += kUnit) {
    __m512i sum_i32x16[T];
    multiply_block<T>(w, xs, sum_i32x16);
    const __m512 w_scale_f32x16 = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      const __m512 scale_f32x16 = _mm512_mul_ps(w_scale_f32x16, _mm512_set1_ps(xs[t]->scale));
      total_f32x16[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_i32x16[t]), scale_f32x16, total_f32x16[t]);
      xs[t]++;
    }
  }
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * out_stride, total_f32x16[t]);
}

// Panels of weights that fit L2 outside, token tiles inside: weights come from memory once per call.
void matmul_q40(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  constexpr decltype(&tile<1>) kTiles[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  constexpr size_t kTileTokens = 6;
  const size_t blocks = cols / kBlockSize;
  const size_t group_size = blocks * kUnit;
  const size_t panel_groups = kPanelBytes / (group_size + 1) + 1;
  const auto* w = static_cast<const uint8_t*>(packed);
  for (size_t begin = 0; begin < groups; begin += panel_groups) {
    const size_t end = groups - begin < panel_groups ? groups : begin + panel_groups;
    for (size_t t = 0; t < tokens;) {
      const size_t n = tokens - t < kTileTokens ? tokens - t : kTileTokens;
      for (size_t g = begin; g < end; g++) {
        kTiles[n - 1](w + g * group_size, blocks, x + t * x_stride, x_stride, out + t * out_stride + g * kRows,
                      out_stride);
      }
      t += n;
    }
  }
}

void matmul_q80(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  avx2.matmul_q80(packed, 2 * groups, cols, x, x_stride, tokens, out, out_stride);
}

void matmul_f16(const void* packed, size_t groups, size_t cols, const float* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  avx2.matmul_f16(packed, 2 * groups, cols, x, x_stride, tokens, out, out_stride);
}

void matmul_f32(const void* packed, size_t groups, size_t cols, const float* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  avx2.matmul_f32(packed, 2 * groups, cols, x, x_stride, tokens, out, out_stride);
}

}  // namespace

void install_avx512_vnni(Kernels& table) {
  avx2 = table;
  table.row_group = kRows;
  table.group_bytes = group_bytes;
  table.pack = pack;
  table.matmul_q40 = matmul_q40;
  table.matmul_q80 = matmul_q80;
  table.matmul_f16 = matmul_f16;
  table.matmul_f32 = matmul_f32;
}

}  // namespace dllama
