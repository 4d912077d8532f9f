// AVX-512 VNNI on 256-bit vectors: the packed Q40 product with one instruction where AVX2 needs three.
//
// Reads what AVX2 packs and gives the same bits: the integers are exact either way. 256 bits because a row group is
// eight rows, and because wider vectors lower the clock of several CPUs. Sealed like the other ISA files.
#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_matmul.h"

namespace dllama {
namespace {

constexpr size_t kVector = 32;  // bytes

KERNEL_INLINE __m256i broadcast_piece(const void* piece) {
  int32_t word;
  std::memcpy(&word, piece, sizeof(word));
  return _mm256_set1_epi32(word);
}

// 8 rows x 32 inputs of unsigned nibbles; see Quantized for what a Format has.
struct Q40 {
  static constexpr size_t kUnit = kUnitQ40;

  // Low and high nibbles add up in chains of their own, because each dpbusd waits four cycles for the one before.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    const __m256i low_mask_u8x32 = _mm256_set1_epi8(15);
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    __m256i low_sum_i32x8[T], high_sum_i32x8[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      low_sum_i32x8[t] = _mm256_madd_epi16(broadcast_piece(x[t]->offset), ones_i16x16);
      high_sum_i32x8[t] = _mm256_setzero_si256();
    }
    KERNEL_UNROLL
    for (size_t i = 0; i < 4; i++) {
      const __m256i w_u8x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit + kScaleBytes + i * kVector));
      const __m256i low_u8x32 = _mm256_and_si256(w_u8x32, low_mask_u8x32);
      const __m256i high_u8x32 = _mm256_and_si256(_mm256_srli_epi16(w_u8x32, 4), low_mask_u8x32);
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        const int8_t* quants = x[t]->quants + i * kPiece;
        low_sum_i32x8[t] = _mm256_dpbusd_epi32(low_sum_i32x8[t], low_u8x32, broadcast_piece(quants));
        high_sum_i32x8[t] =
            _mm256_dpbusd_epi32(high_sum_i32x8[t], high_u8x32, broadcast_piece(quants + kBlockSize / 2));
      }
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums[t] = _mm256_cvtepi32_ps(_mm256_add_epi32(low_sum_i32x8[t], high_sum_i32x8[t]));
  }
};

// AVX2's product, for one token: with weights from memory it ran at 90 % of a plain read loop on a Zen 4, this file's
// at 79 %.
decltype(Kernels::matmul_q40) avx2_matmul_q40 = nullptr;

void matmul_q40(const void* packed, size_t groups, size_t cols, const ActivationQ80* x, size_t x_stride, size_t tokens,
                float* out, size_t out_stride) {
  const auto product = tokens == 1 ? avx2_matmul_q40 : matmul<Quantized<Q40>>;
  product(packed, groups, cols, x, x_stride, tokens, out, out_stride);
}

}  // namespace

void install_avx512_vnni(Kernels& table) {
  avx2_matmul_q40 = table.matmul_q40;
  table.matmul_q40 = matmul_q40;
}

}  // namespace dllama
