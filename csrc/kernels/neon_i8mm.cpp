// NEON with 8-bit matrix products: the quantized products of four tokens. Reads what the neon level packs and gives the
// bits of the dotprod level, which does the rest: fewer tokens leave half of a matrix product unused or too little to
// pay for bringing the pieces together, and more run out of registers.
//
// Sealed: nothing here that the linker could share with other files.
#include "kernels/levels.h"
#include "kernels/simd_dotprod.h"

namespace dllama {
namespace {

constexpr int kTokens = 4;
constexpr size_t kDepth = 8;                    // inputs that one instruction sums, of two rows and two tokens
constexpr size_t kVectorBytes = kRowGroup * 4;  // 8 rows, one piece each

// Two rows in each, by 8 inputs.
struct Rows {
  int8x16_t pair[kRowGroup / 2];
};

// of[p][r]: rows 2r and 2r + 1 in turn, each with tokens 2p and 2p + 1.
struct PairSums {
  int32x4_t of[kTokens / 2][kRowGroup / 2];
};

KERNEL_INLINE int8x16_t interleave_low(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
KERNEL_INLINE int8x16_t interleave_high(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

// Brings together the two pieces of each row that lie in vectors of their own, at `w`.
KERNEL_INLINE Rows load_rows(const uint8_t* w) {
  const auto* bytes = reinterpret_cast<const int8_t*>(w);
  const int8x16_t first = vld1q_s8(bytes), second = vld1q_s8(bytes + 16);
  const int8x16_t next_first = vld1q_s8(bytes + kVectorBytes), next_second = vld1q_s8(bytes + kVectorBytes + 16);
  return {{interleave_low(first, next_first), interleave_high(first, next_first), interleave_low(second, next_second),
           interleave_high(second, next_second)}};
}

// Adds the products of 8 rows with inputs at..at + 7 of the tokens. The empty asm keeps gcc from holding all vectors of
// a block at once.
KERNEL_INLINE void add_products(const Rows& w, const ActivationQ80* const (&x)[kTokens], size_t at, PairSums& sums) {
  KERNEL_UNROLL
  for (int p = 0; p < kTokens / 2; p++) {
    const int8x16_t tokens = vcombine_s8(vld1_s8(x[2 * p]->quants + at), vld1_s8(x[2 * p + 1]->quants + at));
    KERNEL_UNROLL
    for (size_t r = 0; r < kRowGroup / 2; r++) {
      sums.of[p][r] = vmmlaq_s32(sums.of[p][r], w.pair[r], tokens);
      __asm__("" : "+w"(sums.of[p][r]));
    }
  }
}

KERNEL_INLINE PairSums no_sums() {
  PairSums sums;
  KERNEL_UNROLL
  for (int p = 0; p < kTokens / 2; p++) {
    KERNEL_UNROLL
    for (size_t r = 0; r < kRowGroup / 2; r++) sums.of[p][r] = vdupq_n_s32(0);
  }
  return sums;
}

// Sorts the sums by token: out[t] gets rows 0..3 and 4..7.
KERNEL_INLINE void split_tokens(const PairSums& sums, Sums (&out)[kTokens]) {
  KERNEL_UNROLL
  for (int p = 0; p < kTokens / 2; p++) {
    const auto& of = sums.of[p];
    out[2 * p] = {vuzp1q_s32(of[0], of[1]), vuzp1q_s32(of[2], of[3])};
    out[2 * p + 1] = {vuzp2q_s32(of[0], of[1]), vuzp2q_s32(of[2], of[3])};
  }
}

// 8 rows x 32 inputs of nibbles in two's complement; see Quantized for what a Format has.
struct Q40 : DotQ40 {
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&out)[T]) {
    if constexpr (T == kTokens)
      return four(unit, x, out);
    else
      return DotQ40::block(unit, x, out);
  }

  // As in DotQ40 a nibble counts 16 times its value until its sum becomes a float.
  static KERNEL_INLINE void four(const uint8_t* unit, const ActivationQ80* const (&x)[kTokens], F32x8 (&out)[kTokens]) {
    const int8x16_t upper = vreinterpretq_s8_u8(vdupq_n_u8(0xf0));
    PairSums sums = no_sums();
    KERNEL_UNROLL
    for (size_t at = 0; at < kBlockSize / 2; at += kDepth) {
      Rows nibbles = load_rows(unit + kScaleBytes + at / kPiece * kVectorBytes), low;
      KERNEL_UNROLL
      for (size_t r = 0; r < kRowGroup / 2; r++) low.pair[r] = vshlq_n_s8(nibbles.pair[r], 4);
      add_products(low, x, at, sums);
      KERNEL_UNROLL
      for (size_t r = 0; r < kRowGroup / 2; r++) nibbles.pair[r] = vandq_s8(nibbles.pair[r], upper);
      add_products(nibbles, x, at + kBlockSize / 2, sums);
    }
    Sums by_token[kTokens];
    split_tokens(sums, by_token);
    DotQ40::to_floats(by_token, out);
  }
};

// 8 rows x 32 inputs of signed bytes.
struct Q80 : DotQ80 {
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&out)[T]) {
    if constexpr (T == kTokens)
      return four(unit, x, out);
    else
      return DotQ80::block(unit, x, out);
  }

  static KERNEL_INLINE void four(const uint8_t* unit, const ActivationQ80* const (&x)[kTokens], F32x8 (&out)[kTokens]) {
    PairSums sums = no_sums();
    KERNEL_UNROLL
    for (size_t at = 0; at < kBlockSize; at += kDepth) {
      add_products(load_rows(unit + kScaleBytes + at / kPiece * kVectorBytes), x, at, sums);
    }
    Sums by_token[kTokens];
    split_tokens(sums, by_token);
    DotQ80::to_floats(by_token, out);
  }
};

}  // namespace

void install_i8mm(Kernels& table) {
  table.matmul_q40 = matmul<Quantized<Q40>>;
  table.matmul_q80 = matmul<Quantized<Q80>>;
}

}  // namespace dllama
