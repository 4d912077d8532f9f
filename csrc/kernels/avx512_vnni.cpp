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
// As in simd_matmul.h: weights that stay in L2 while all tokens pass by.
constexpr size_t kPanelBytes = 128 << 10;
constexpr size_t kLine = 64;
// How far ahead of the product weights that come from memory are asked for, into L1. On Zen 5 one core then reads
// weights as fast as memory alone (41 GB/s against 38 without), and twice as fast with 8 tokens.
constexpr size_t kPrefetchBytes = 4 << 10;

// Where a tile's weights are, and what for: in memory, to be read this once (then they need not displace in L2 what
// others keep there) or to stay in L2 for the tiles of other tokens; or in L2 already.
enum class Source { MemoryOnce, Memory, Cache };

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

// Keeps gcc from holding all nibble vectors of a block at once, which would spill the sums.
template <int G, int T>
KERNEL_INLINE void pin(__m512i (&sums)[G][T]) {
  KERNEL_UNROLL
  for (int g = 0; g < G; g++) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) __asm__("" : "+v"(sums[g][t]));
  }
}

// The packed blocks of G row groups, `stride` bytes from one to the next.
template <int G>
struct Units {
  const uint8_t* first;
  size_t stride;
  KERNEL_INLINE const uint8_t* operator[](int g) const { return first + static_cast<size_t>(g) * stride; }
};

// sums[g][t] += w[g] * a piece of the activations of token t, which every group shares.
template <int G, int T>
KERNEL_INLINE void add_piece(const __m512i (&w_u8x64)[G], const ActivationQ80* const (&x)[T], size_t input,
                             __m512i (&sums_i32x16)[G][T]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    const __m512i x_i8x64 = broadcast_piece(x[t]->quants + input);
    KERNEL_UNROLL
    for (int g = 0; g < G; g++) sums_i32x16[g][t] = _mm512_dpbusd_epi32(sums_i32x16[g][t], w_u8x64[g], x_i8x64);
  }
}

// The exact integer sums of one block of G * 16 rows with T tokens. Each dpbusd waits four cycles for the one before,
// two start in a cycle: with few sums, low and high nibbles add up in chains of their own.
template <int G, int T>
KERNEL_INLINE void multiply_block(Units<G> units, const ActivationQ80* const (&x)[T], __m512i (&sums_i32x16)[G][T]) {
  constexpr bool kIsSplit = G * T < 4;
  const __m512i low_mask_u8x64 = _mm512_set1_epi8(15);
  __m512i high_sums_i32x16[G][T];
  KERNEL_UNROLL
  for (int g = 0; g < G; g++) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      sums_i32x16[g][t] = broadcast_piece(&x[t]->offset_sum);
      high_sums_i32x16[g][t] = _mm512_setzero_si512();
    }
  }
  KERNEL_UNROLL
  for (size_t i = 0; i < 4; i++) {
    __m512i low_u8x64[G], high_u8x64[G];
    KERNEL_UNROLL
    for (int g = 0; g < G; g++) {
      const __m512i w_u8x64 = _mm512_loadu_si512(units[g] + kScaleBytes + i * kVector);
      low_u8x64[g] = _mm512_and_si512(w_u8x64, low_mask_u8x64);
      high_u8x64[g] = _mm512_and_si512(_mm512_srli_epi16(w_u8x64, 4), low_mask_u8x64);
    }
    add_piece<G, T>(low_u8x64, x, i * kPiece, sums_i32x16);
    add_piece<G, T>(high_u8x64, x, kBlockSize / 2 + i * kPiece, kIsSplit ? high_sums_i32x16 : sums_i32x16);
    pin(sums_i32x16);
  }
  KERNEL_UNROLL
  for (int g = 0; kIsSplit && g < G; g++) {
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums_i32x16[g][t] = _mm512_add_epi32(sums_i32x16[g][t], high_sums_i32x16[g][t]);
  }
}

// Asks for the lines kPrefetchBytes ahead of block b: two units are nine lines.
template <Source kSource>
KERNEL_INLINE void prefetch_unit(const uint8_t* unit, size_t b) {
  constexpr auto kHint = kSource == Source::MemoryOnce ? _MM_HINT_NTA : _MM_HINT_T0;
  const auto* ahead = reinterpret_cast<const char*>(unit) + kPrefetchBytes;
  KERNEL_UNROLL
  for (size_t line = 0; line < 4; line++) _mm_prefetch(ahead + line * kLine, kHint);
  if (b % 2 != 0) _mm_prefetch(ahead + 4 * kLine, kHint);
}

// G row groups by T tokens.
template <int G, int T, Source kSource>
void tile(Units<G> units, size_t blocks, const ActivationQ80* x, size_t x_stride, float* out, size_t out_stride) {
  __m512 totals_f32x16[G][T];
  const ActivationQ80* xs[T];
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    xs[t] = x + t * x_stride;
    KERNEL_UNROLL
    for (int g = 0; g < G; g++) totals_f32x16[g][t] = _mm512_setzero_ps();
  }
  for (size_t b = 0; b < blocks; b++, units.first += kUnit) {
    __m512i sums_i32x16[G][T];
    multiply_block<G, T>(units, xs, sums_i32x16);
    KERNEL_UNROLL
    for (int g = 0; g < G; g++) {
      if (kSource != Source::Cache) prefetch_unit<kSource>(units[g], b);
      const __m512 w_scale_f32x16 = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(units[g])));
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        const __m512 scale_f32x16 = _mm512_mul_ps(w_scale_f32x16, _mm512_set1_ps(xs[t]->scale));
        totals_f32x16[g][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums_i32x16[g][t]), scale_f32x16, totals_f32x16[g][t]);
      }
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      // The tokens of the next tile: a prompt's lie in L3.
      if (kSource != Source::MemoryOnce) _mm_prefetch(reinterpret_cast<const char*>(xs[t] + T * x_stride), _MM_HINT_T1);
      xs[t]++;
    }
  }
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    KERNEL_UNROLL
    for (int g = 0; g < G; g++) _mm512_storeu_ps(out + t * out_stride + g * kRows, totals_f32x16[g][t]);
  }
}

// 2 x 5 sums, their totals, four nibble vectors and an activation fill the 32 registers: each activation that is loaded
// serves two groups, which leaves the multiplier as the limit (93 % of it, against 75 % with 1 x 6).
constexpr size_t kTileTokens = 5;

// T = 1..5 tokens by all groups. Weights from memory come as one stream, those in L2 as two.
template <int T, Source kSource>
void tiles(const uint8_t* w, size_t groups, size_t blocks, const ActivationQ80* x, size_t x_stride, float* out,
           size_t out_stride) {
  const size_t stride = blocks * kUnit;
  size_t g = 0;
  if (kSource == Source::Cache || T == kTileTokens) {
    for (; g + 2 <= groups; g += 2) {
      tile<2, T, kSource>({w + g * stride, stride}, blocks, x, x_stride, out + g * kRows, out_stride);
    }
  }
  for (; g < groups; g++) {
    tile<1, T, kSource>({w + g * stride, stride}, blocks, x, x_stride, out + g * kRows, out_stride);
  }
}

// By number of tokens - 1.
template <Source kSource>
constexpr decltype(&tiles<1, kSource>) kTiles[] = {tiles<1, kSource>, tiles<2, kSource>, tiles<3, kSource>,
                                                   tiles<4, kSource>, tiles<5, kSource>};

// Panels of weights that fit L2 outside, token tiles inside: weights come from memory once per call.
void matmul_q40(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  const auto& first = tokens <= kTileTokens ? kTiles<Source::MemoryOnce> : kTiles<Source::Memory>;
  const size_t blocks = cols / kBlockSize;
  const size_t group_size = blocks * kUnit;
  const size_t panel_groups = kPanelBytes / (group_size + 1) + 1;
  const auto* w = static_cast<const uint8_t*>(packed);
  for (size_t begin = 0; begin < groups; begin += panel_groups) {
    const size_t size = groups - begin < panel_groups ? groups - begin : panel_groups;
    for (size_t t = 0; t < tokens;) {
      const size_t left = tokens - t;
      // Of 6 to 9 tokens, halves: 4 + 4 beats 5 + 3.
      const size_t n = left <= kTileTokens ? left : left < 2 * kTileTokens ? (left + 1) / 2 : kTileTokens;
      const auto multiply = (t == 0 ? first : kTiles<Source::Cache>)[n - 1];
      multiply(w + begin * group_size, size, blocks, x + t * x_stride, x_stride, out + t * out_stride + begin * kRows,
               out_stride);
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
