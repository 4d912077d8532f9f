// AVX2: products of packed Q40 and Q80 weights with quantized activations, one block of 8 rows at a time.
//
// Loops, layout and the float formats are in simd_matmul.h. Sealed: nothing here that the linker could share with code
// for older CPUs.
#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_avx2_bytes.h"
#include "kernels/simd_matmul.h"

namespace dllama {
namespace {

// 8 rows x 32 inputs of unsigned nibbles; see Quantized for what a Format has.
struct Q40 {
  static constexpr size_t kUnit = kUnitQ40;

  // maddubs adds neighbouring products: int16 lane 0 of a row gets inputs k % 4 in {0, 1}, lane 1 the others. Starting
  // from the activation's offset makes the final lanes exact although those on the way may wrap.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    const __m256i low_mask_u8x32 = _mm256_set1_epi8(15);
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    __m256i sum_i16x16[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sum_i16x16[t] = broadcast_piece(x[t]->offset);
    for (size_t i = 0; i < 4; i++) {
      const __m256i w_u8x32 = load_bytes(unit + kScaleBytes + i * kVector);
      const __m256i low_u8x32 = _mm256_and_si256(w_u8x32, low_mask_u8x32);
      const __m256i high_u8x32 = _mm256_and_si256(_mm256_srli_epi16(w_u8x32, 4), low_mask_u8x32);
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        const __m256i x_i8x32 = broadcast_piece(x[t]->quants + i * kPiece);
        sum_i16x16[t] = _mm256_add_epi16(sum_i16x16[t], _mm256_maddubs_epi16(low_u8x32, x_i8x32));
      }
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        const __m256i x_i8x32 = broadcast_piece(x[t]->quants + kBlockSize / 2 + i * kPiece);
        sum_i16x16[t] = _mm256_add_epi16(sum_i16x16[t], _mm256_maddubs_epi16(high_u8x32, x_i8x32));
      }
      pin(sum_i16x16);
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums[t] = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum_i16x16[t], ones_i16x16));
  }
};

// 8 rows x 32 inputs of signed bytes.
struct Q80 {
  static constexpr size_t kUnit = kUnitQ80;

  // |w| * (x with w's sign): at most 128 * 127 * 2 = 32512 per int16 lane, so any weight is exact while x != -128.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    __m256i sum_i32x8[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sum_i32x8[t] = _mm256_setzero_si256();
    for (size_t i = 0; i < 8; i++) {
      const __m256i w_i8x32 = load_bytes(unit + kScaleBytes + i * kVector);
      const __m256i w_u8x32 = _mm256_abs_epi8(w_i8x32);
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        const __m256i x_i8x32 = _mm256_sign_epi8(broadcast_piece(x[t]->quants + i * kPiece), w_i8x32);
        const __m256i pair_i16x16 = _mm256_maddubs_epi16(w_u8x32, x_i8x32);
        sum_i32x8[t] = _mm256_add_epi32(sum_i32x8[t], _mm256_madd_epi16(pair_i16x16, ones_i16x16));
      }
      pin(sum_i32x8);
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums[t] = _mm256_cvtepi32_ps(sum_i32x8[t]);
  }
};

}  // namespace

void install_avx2_matmul(Kernels& table) {
  table.row_group = kRowGroup;
  table.group_bytes = group_bytes;
  table.pack = pack<0>;
  table.matmul_q40 = matmul<Quantized<Q40>>;
  table.matmul_q80 = matmul<Quantized<Q80>>;
  table.matmul_f16 = matmul<Floats<uint16_t>>;
  table.matmul_f32 = matmul<Floats<float>>;
}

}  // namespace dllama
