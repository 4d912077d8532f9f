// AVX-VNNI: AVX2's products of packed Q40 and Q80 weights, with one instruction for four multiplications per lane.
//
// Reads what the avx2 level packs and gives its bits: the integers are exact, the float sums in the same order.
// Sealed: nothing here that the linker could share with code for older CPUs.
#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_avx2_bytes.h"
#include "kernels/simd_matmul.h"

namespace dllama {
namespace {

constexpr size_t kTileTokens = 5;

// Four products per lane, weights unsigned and activations signed: what was added to the weights to make them so is
// taken back by the start value of the sums, -8 * 2^kShift * (the sum of the activations).
template <int kShift, int T>
KERNEL_INLINE void start(const ActivationQ80* const (&x)[T], __m256i (&sums)[T]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) sums[t] = _mm256_slli_epi32(broadcast_piece(&x[t]->offset_sum), kShift);
}

// Adds the products of one piece of 8 rows with the piece at quants[at] of every token.
template <int T>
KERNEL_INLINE void add_piece(__m256i w_u8x32, const ActivationQ80* const (&x)[T], size_t at, __m256i (&sums)[T]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) sums[t] = _mm256_dpbusd_avx_epi32(sums[t], w_u8x32, broadcast_piece(x[t]->quants + at));
}

template <int T>
KERNEL_INLINE void to_floats(const __m256i (&sums_i32x8)[T], F32x8 (&sums)[T]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) sums[t] = _mm256_cvtepi32_ps(sums_i32x8[t]);
}

// 8 rows x 32 inputs of unsigned nibbles; see Quantized for what a Format has.
struct Q40 {
  static constexpr size_t kUnit = kUnitQ40;

  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    const __m256i low_mask_u8x32 = _mm256_set1_epi8(15);
    __m256i sum_i32x8[T];
    start<0>(x, sum_i32x8);
    for (size_t i = 0; i < 4; i++) {
      const __m256i w_u8x32 = load_bytes(unit + kScaleBytes + i * kVector);
      add_piece(_mm256_and_si256(w_u8x32, low_mask_u8x32), x, i * kPiece, sum_i32x8);
      add_piece(_mm256_and_si256(_mm256_srli_epi16(w_u8x32, 4), low_mask_u8x32), x, kBlockSize / 2 + i * kPiece,
                sum_i32x8);
      pin(sum_i32x8);
    }
    to_floats(sum_i32x8, sums);
  }
};

// 8 rows x 32 inputs of signed bytes, to which 128 is added by turning the sign bit over.
struct Q80 {
  static constexpr size_t kUnit = kUnitQ80;

  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    const __m256i sign_u8x32 = _mm256_set1_epi8(-128);
    __m256i sum_i32x8[T];
    start<4>(x, sum_i32x8);
    for (size_t i = 0; i < 8; i++) {
      const __m256i w_i8x32 = load_bytes(unit + kScaleBytes + i * kVector);
      add_piece(_mm256_xor_si256(w_i8x32, sign_u8x32), x, i * kPiece, sum_i32x8);
      pin(sum_i32x8);
    }
    to_floats(sum_i32x8, sums);
  }
};

Kernels avx2{};  // the table that this level overrides

// One token waits for memory, and AVX2's loop came closer to it: 97 % of a plain read against 93 % on Zen 5.
void matmul_q40(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  const auto multiply = tokens == 1 ? avx2.matmul_q40 : matmul<Quantized<Q40>, kTileTokens>;
  multiply(packed, groups, cols, x, x_stride, tokens, out, out_stride);
}

}  // namespace

void install_avx_vnni(Kernels& table) {
  avx2 = table;
  table.matmul_q40 = matmul_q40;
  table.matmul_q80 = matmul<Quantized<Q80>, kTileTokens>;
}

}  // namespace dllama
