// AVX2: packed weights and their products with quantized and float activations.
//
// Packed Q40 and Q80: 8 rows x 32 inputs = 8 F16 scales, then vectors in which every 4-byte piece belongs to one row,
// so that each int32 lane is a row and nothing is ever summed across lanes. Packed F16 and F32: 8 rows per input.
// A row's sum is one chain over the blocks in order, whatever the number of tokens and groups: its bits never change.
// Sealed: intrinsics and plain structs only, nothing the linker could share with code for older CPUs.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/avx2_common.h"
#include "kernels/kernels.h"
#include "kernels/levels.h"
#include "quant/blocks.h"

namespace dllama {
namespace {

constexpr size_t kRowGroup = 8;
constexpr size_t kPiece = 4;  // inputs of one row that lie together
constexpr size_t kScaleBytes = kRowGroup * sizeof(uint16_t);
constexpr size_t kVector = 32;  // bytes

// Weights that stay in L2 while every token of the call passes by. Half of the smallest L2 that has AVX2 (256 KB).
constexpr size_t kPanelBytes = 128 << 10;
// How far ahead weights are asked for, into L2: at 30 GB/s this covers half a microsecond. Nearer or into L1 was slower.
constexpr size_t kPrefetchBytes = 16 << 10;
constexpr size_t kLine = 64;

// Keeps gcc from hoisting all nibble vectors of a block above their use, which would spill the sums.
template <int N>
KERNEL_INLINE void pin(__m256i (&sums)[N]) {
  for (int n = 0; n < N; n++) __asm__("" : "+x"(sums[n]));
}

KERNEL_INLINE __m256i broadcast_piece(const void* piece) {
  int32_t word;
  std::memcpy(&word, piece, sizeof(word));
  return _mm256_set1_epi32(word);
}

KERNEL_INLINE __m256 load_row(const float* p) { return _mm256_loadu_ps(p); }

KERNEL_INLINE __m256 load_row(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

KERNEL_INLINE __m256i load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// Asks for the `bytes` that the sequential reader at `p` will want soon. May point past the end: hints never fault.
KERNEL_INLINE void prefetch(const uint8_t* p, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes + line), _MM_HINT_T1);
  }
}

// --- Q40 ---

struct Q40 {
  static constexpr size_t kUnit = kScaleBytes + 4 * kVector;

  // isum[t] = the int32 sums over one block of 8 rows and T tokens.
  //
  // maddubs adds neighbouring products: int16 lane 0 of a row gets inputs k % 4 in {0, 1}, lane 1 the others. Starting
  // from the activation's offset makes the final lanes exact although those on the way may wrap.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T],
                                                         __m256i (&isum)[T]) {
    const __m256i low_mask_u8x32 = _mm256_set1_epi8(15);
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    __m256i sum_i16x16[T];
    for (int t = 0; t < T; t++) sum_i16x16[t] = broadcast_piece(x[t]->offset);
    for (size_t i = 0; i < 4; i++) {
      const __m256i w_u8x32 = load_bytes(unit + kScaleBytes + i * kVector);
      const __m256i low_u8x32 = _mm256_and_si256(w_u8x32, low_mask_u8x32);
      const __m256i high_u8x32 = _mm256_and_si256(_mm256_srli_epi16(w_u8x32, 4), low_mask_u8x32);
      for (int t = 0; t < T; t++) {
        const __m256i x_i8x32 = broadcast_piece(x[t]->quants + i * kPiece);
        sum_i16x16[t] = _mm256_add_epi16(sum_i16x16[t], _mm256_maddubs_epi16(low_u8x32, x_i8x32));
      }
      for (int t = 0; t < T; t++) {
        const __m256i x_i8x32 = broadcast_piece(x[t]->quants + kBlockSize / 2 + i * kPiece);
        sum_i16x16[t] = _mm256_add_epi16(sum_i16x16[t], _mm256_maddubs_epi16(high_u8x32, x_i8x32));
      }
      pin(sum_i16x16);
    }
    for (int t = 0; t < T; t++) isum[t] = _mm256_madd_epi16(sum_i16x16[t], ones_i16x16);
  }
};

// --- Q80 ---

struct Q80 {
  static constexpr size_t kUnit = kScaleBytes + 8 * kVector;

  // |w| * (x with w's sign): at most 128 * 127 * 2 = 32512 per int16 lane, so any weight is exact while x != -128.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T],
                                                         __m256i (&isum)[T]) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    for (int t = 0; t < T; t++) isum[t] = _mm256_setzero_si256();
    for (size_t i = 0; i < 8; i++) {
      const __m256i w_i8x32 = load_bytes(unit + kScaleBytes + i * kVector);
      const __m256i w_u8x32 = _mm256_abs_epi8(w_i8x32);
      for (int t = 0; t < T; t++) {
        const __m256i x_i8x32 = _mm256_sign_epi8(broadcast_piece(x[t]->quants + i * kPiece), w_i8x32);
        const __m256i pair_i16x16 = _mm256_maddubs_epi16(w_u8x32, x_i8x32);
        isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(pair_i16x16, ones_i16x16));
      }
      pin(isum);
    }
  }
};

// --- products over all inputs: 8 rows times T tokens ---

template <typename Format>
struct Quantized {
  using Input = ActivationQ80;

  static size_t group_bytes(size_t cols) { return cols / kBlockSize * Format::kUnit; }

  template <int T>
  static void tile(const uint8_t* w, size_t cols, const ActivationQ80* x, size_t x_stride, float* out,
                   size_t out_stride) {
    constexpr size_t kStep = 4;  // blocks per prefetch: 4 units are whole cache lines, for Q40 and Q80 alike
    static_assert(kStep * Format::kUnit % kLine == 0, "otherwise lines are asked for twice");
    __m256 sum_f32x8[T];
    const ActivationQ80* xs[T];
    for (int t = 0; t < T; t++) {
      sum_f32x8[t] = _mm256_setzero_ps();
      xs[t] = x + t * x_stride;
    }
    for (size_t b = 0; b < cols / kBlockSize; b++, w += Format::kUnit) {
      if (b % kStep == 0) prefetch(w, kStep * Format::kUnit);
      __m256i isum_i32x8[T];
      Format::template block<T>(w, xs, isum_i32x8);
      const __m256 w_scale_f32x8 = load_row(reinterpret_cast<const uint16_t*>(w));
      for (int t = 0; t < T; t++) {
        const __m256 scale_f32x8 = _mm256_mul_ps(w_scale_f32x8, _mm256_broadcast_ss(&xs[t]->scale));
        sum_f32x8[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum_i32x8[t]), scale_f32x8, sum_f32x8[t]);
        xs[t]++;
      }
    }
    for (int t = 0; t < T; t++) _mm256_storeu_ps(out + t * out_stride, sum_f32x8[t]);
  }
};

template <typename Element>
struct Floats {
  using Input = float;

  static size_t group_bytes(size_t cols) { return kRowGroup * cols * sizeof(Element); }

  // sum[t] += w[.][k] * x[t][k]
  template <int T>
  static KERNEL_INLINE void input(const Element* w, const float* const (&x)[T], size_t k, __m256 (&sum)[T]) {
    const __m256 w_f32x8 = load_row(w + k * kRowGroup);
    for (int t = 0; t < T; t++) sum[t] = _mm256_fmadd_ps(w_f32x8, _mm256_broadcast_ss(x[t] + k), sum[t]);
  }

  // total[t] += the sum over n <= 32 inputs, as one chain over the even and one over the odd inputs: chains of 16
  // overlap in the CPU where one of 32 would wait for itself.
  template <int T>
  static KERNEL_INLINE void inputs(const Element* w, const float* const (&x)[T], size_t n, __m256 (&total)[T]) {
    __m256 even_f32x8[T], odd_f32x8[T];
    for (int t = 0; t < T; t++) even_f32x8[t] = odd_f32x8[t] = _mm256_setzero_ps();
    size_t k = 0;
    for (; k + 2 <= n; k += 2) {
      input<T>(w, x, k, even_f32x8);
      input<T>(w, x, k + 1, odd_f32x8);
    }
    if (k < n) input<T>(w, x, k, even_f32x8);
    for (int t = 0; t < T; t++) total[t] = _mm256_add_ps(total[t], _mm256_add_ps(even_f32x8[t], odd_f32x8[t]));
  }

  template <int T>
  static void tile(const uint8_t* group, size_t cols, const float* x, size_t x_stride, float* out, size_t out_stride) {
    const auto* w = reinterpret_cast<const Element*>(group);
    __m256 total_f32x8[T];
    const float* xs[T];
    for (int t = 0; t < T; t++) {
      total_f32x8[t] = _mm256_setzero_ps();
      xs[t] = x + t * x_stride;
    }
    size_t left = cols;
    for (; left >= kBlockSize; left -= kBlockSize) {
      prefetch(reinterpret_cast<const uint8_t*>(w), kBlockSize * kRowGroup * sizeof(Element));
      inputs<T>(w, xs, kBlockSize, total_f32x8);
      w += kBlockSize * kRowGroup;
      for (int t = 0; t < T; t++) xs[t] += kBlockSize;
    }
    inputs<T>(w, xs, left, total_f32x8);
    for (int t = 0; t < T; t++) _mm256_storeu_ps(out + t * out_stride, total_f32x8[t]);
  }
};

// Panels of weights that fit L2 outside, token tiles inside: weights come from memory once per call.
template <typename Kind>
void matmul(const void* packed, size_t groups, size_t cols, const typename Kind::Input* x, size_t x_stride,
            size_t tokens, float* out, size_t out_stride) {
  using Tile = void (*)(const uint8_t*, size_t, const typename Kind::Input*, size_t, float*, size_t);
  constexpr Tile kTiles[] = {nullptr,              Kind::template tile<1>, Kind::template tile<2>,
                             Kind::template tile<3>, Kind::template tile<4>, Kind::template tile<5>};
  const size_t group_size = Kind::group_bytes(cols);
  const size_t panel_groups = kPanelBytes / (group_size + 1) + 1;
  const auto* w = static_cast<const uint8_t*>(packed);
  for (size_t begin = 0; begin < groups; begin += panel_groups) {
    const size_t end = groups - begin < panel_groups ? groups : begin + panel_groups;
    for (size_t t = 0; t < tokens;) {
      const size_t left = tokens - t;
      const size_t n = left <= 5 ? left : 4;  // 5 at the end beats 4 + 1
      for (size_t g = begin; g < end; g++) {
        kTiles[n](w + g * group_size, cols, x + t * x_stride, x_stride, out + t * out_stride + g * kRowGroup,
                  out_stride);
      }
      t += n;
    }
  }
}

// --- packing ---

size_t group_bytes(DType type, size_t cols) {
  switch (type) {
    case DType::F32: return Floats<float>::group_bytes(cols);
    case DType::F16: return Floats<uint16_t>::group_bytes(cols);
    case DType::Q40: return Quantized<Q40>::group_bytes(cols);
    case DType::Q80: return Quantized<Q80>::group_bytes(cols);
  }
  return 0;
}

// Interleaves the rows of one group block by block: scales first, then the 4-byte pieces in the order of the bytes.
// `block_size` is the canonical block's: a scale and then its quants or nibbles.
void pack_blocks(const uint8_t* rows, size_t num_rows, size_t blocks, size_t block_size, uint8_t* out) {
  const size_t pieces = (block_size - sizeof(uint16_t)) / kPiece;
  for (size_t b = 0; b < blocks; b++) {
    for (size_t r = 0; r < num_rows; r++) {
      const uint8_t* block = rows + (r * blocks + b) * block_size;
      std::memcpy(out + r * sizeof(uint16_t), block, sizeof(uint16_t));
      for (size_t i = 0; i < pieces; i++) {
        std::memcpy(out + kScaleBytes + (i * kRowGroup + r) * kPiece, block + sizeof(uint16_t) + i * kPiece, kPiece);
      }
    }
    out += kScaleBytes + pieces * kPiece * kRowGroup;
  }
}

template <typename Element>
void pack_elements(const uint8_t* rows, size_t num_rows, size_t cols, uint8_t* out) {
  for (size_t k = 0; k < cols; k++) {
    for (size_t r = 0; r < num_rows; r++) {
      std::memcpy(out + (k * kRowGroup + r) * sizeof(Element), rows + (r * cols + k) * sizeof(Element),
                  sizeof(Element));
    }
  }
}

void pack(DType type, const void* canonical, size_t rows, size_t cols, void* packed) {
  const auto* in = static_cast<const uint8_t*>(canonical);
  auto* out = static_cast<uint8_t*>(packed);
  const size_t group_size = group_bytes(type, cols);
  const size_t blocks = cols / kBlockSize;
  for (size_t row = 0; row < rows; row += kRowGroup, out += group_size) {
    const size_t n = rows - row < kRowGroup ? rows - row : kRowGroup;
    if (n < kRowGroup) std::memset(out, 0, group_size);
    switch (type) {
      case DType::F32: pack_elements<float>(in + row * cols * sizeof(float), n, cols, out); break;
      case DType::F16: pack_elements<uint16_t>(in + row * cols * sizeof(uint16_t), n, cols, out); break;
      case DType::Q40: pack_blocks(in + row * blocks * sizeof(BlockQ40), n, blocks, sizeof(BlockQ40), out); break;
      case DType::Q80: pack_blocks(in + row * blocks * sizeof(BlockQ80), n, blocks, sizeof(BlockQ80), out); break;
    }
  }
}

}  // namespace

void install_avx2_matmul(Kernels& table) {
  table.row_group = kRowGroup;
  table.group_bytes = group_bytes;
  table.pack = pack;
  table.matmul_q40 = matmul<Quantized<Q40>>;
  table.matmul_q80 = matmul<Quantized<Q80>>;
  table.matmul_f16 = matmul<Floats<uint16_t>>;
  table.matmul_f32 = matmul<Floats<float>>;
}

}  // namespace dllama
