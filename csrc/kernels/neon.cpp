// NEON as every 64-bit ARM has it: block codecs, products without dot-product instructions, and, from the simd headers,
// everything else.
//
// The codecs give the bytes that quant/codec.h defines: the same operations on the same values in the same order.
// Sealed: nothing here that the linker could share with other files.
#include <cfloat>

#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_attention.h"
#include "kernels/simd_dots.h"
#include "kernels/simd_matmul.h"
#include "kernels/simd_vector.h"
#include "quant/blocks.h"

namespace dllama {
namespace {

// --- block codecs ---

constexpr size_t kVectors = kBlockSize / 4;  // per block

struct BlockFloats {
  float32x4_t v[kVectors];
};

KERNEL_INLINE BlockFloats load_block(const float* x) {
  BlockFloats block;
  for (size_t i = 0; i < kVectors; i++) block.v[i] = vld1q_f32(x + i * 4);
  return block;
}

// Largest magnitude; NaNs are passed over.
KERNEL_INLINE float max_magnitude(const BlockFloats& x) {
  float32x4_t amax = vdupq_n_f32(0.0f);
  for (size_t i = 0; i < kVectors; i++) amax = vmaxnmq_f32(amax, vabsq_f32(x.v[i]));
  return vmaxnmvq_f32(amax);
}

// 1 / d, or 0 where |d| is below the smallest normal float.
KERNEL_INLINE float32x4_t reciprocal(float d) {
  return vdupq_n_f32(__builtin_fabsf(d) < FLT_MIN ? 0.0f : 1.0f / d);
}

KERNEL_INLINE uint16_t to_f16(float value) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(value))), 0);
}

KERNEL_INLINE float from_f16(uint16_t bits) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

KERNEL_INLINE int8x16_t narrow(const int32x4_t (&v)[4]) {
  const int16x8_t low = vqmovn_high_s32(vqmovn_s32(v[0]), v[1]);
  const int16x8_t high = vqmovn_high_s32(vqmovn_s32(v[2]), v[3]);
  return vqmovn_high_s16(vqmovn_s16(low), high);
}

// Rounds 16 values times id, half to even, to int8 in -127..127 whatever they are.
KERNEL_INLINE int8x16_t q80_quants(const float32x4_t* x, float32x4_t id) {
  int32x4_t q_i32x4[4];
  for (size_t i = 0; i < 4; i++) {
    const float32x4_t product = vmaxnmq_f32(vmulq_f32(x[i], id), vdupq_n_f32(-127.0f));
    q_i32x4[i] = vcvtnq_s32_f32(vminnmq_f32(product, vdupq_n_f32(127.0f)));
  }
  return narrow(q_i32x4);
}

void quantize_q80(const float* x, BlockQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    const BlockFloats block = load_block(x + b * kBlockSize);
    const float d = max_magnitude(block) / 127.0f;
    const float32x4_t id = reciprocal(d);
    out[b].scale = to_f16(d);
    vst1q_s8(out[b].quants, q80_quants(block.v, id));
    vst1q_s8(out[b].quants + 16, q80_quants(block.v + 4, id));
  }
}

void quantize_activation(const float* x, ActivationQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    const BlockFloats block = load_block(x + b * kBlockSize);
    const float d = max_magnitude(block) / 127.0f;
    const float32x4_t id = reciprocal(d);
    const int8x16_t low_i8x16 = q80_quants(block.v, id);
    const int8x16_t high_i8x16 = q80_quants(block.v + 4, id);
    out[b].scale = d;
    vst1q_s8(out[b].quants, low_i8x16);
    vst1q_s8(out[b].quants + 16, high_i8x16);

    // Per 4-byte piece the sums of its first and second pair, then over the 8 pieces.
    const int16x8_t pairs_i16x8 = vaddq_s16(vpaddlq_s8(low_i8x16), vpaddlq_s8(high_i8x16));
    int16x4_t sum_i16x4 = vadd_s16(vget_low_s16(pairs_i16x8), vget_high_s16(pairs_i16x8));
    sum_i16x4 = vadd_s16(sum_i16x4, vext_s16(sum_i16x4, sum_i16x4, 2));
    const int16x4_t offset_i16x4 = vneg_s16(vshl_n_s16(sum_i16x4, 3));
    out[b].offset[0] = vget_lane_s16(offset_i16x4, 0);
    out[b].offset[1] = vget_lane_s16(offset_i16x4, 1);
    out[b].offset_sum = out[b].offset[0] + out[b].offset[1];
  }
}

// trunc(x * id + 8.5) clamped to 0..15, of 16 values.
KERNEL_INLINE uint8x16_t q40_quants(const float32x4_t* x, float32x4_t id) {
  int32x4_t q_i32x4[4];
  for (size_t i = 0; i < 4; i++) {
    const float32x4_t shifted = vaddq_f32(vmulq_f32(x[i], id), vdupq_n_f32(8.5f));
    const float32x4_t positive = vmaxnmq_f32(shifted, vdupq_n_f32(0.0f));
    q_i32x4[i] = vcvtq_s32_f32(vminnmq_f32(positive, vdupq_n_f32(15.0f)));
  }
  return vreinterpretq_u8_s8(narrow(q_i32x4));
}

void quantize_q40(const float* x, BlockQ40* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    const BlockFloats block = load_block(x + b * kBlockSize);
    const float amax = max_magnitude(block);
    uint32x4_t is_amax = vdupq_n_u32(0);
    for (size_t i = 0; i < kVectors; i++) is_amax = vorrq_u32(is_amax, vceqq_f32(block.v[i], vdupq_n_f32(amax)));
    const float d = amax / (vmaxvq_u32(is_amax) != 0 ? -8.0f : 8.0f);
    const float32x4_t id = reciprocal(d);
    out[b].scale = to_f16(d);
    vst1q_u8(out[b].nibbles, vsliq_n_u8(q40_quants(block.v, id), q40_quants(block.v + 4, id), 4));
  }
}

// Writes 16 values times scale.
KERNEL_INLINE void store_scaled(int8x16_t q_i8x16, float scale, float* out) {
  const int16x8_t half_i16x8[2] = {vmovl_s8(vget_low_s8(q_i8x16)), vmovl_high_s8(q_i8x16)};
  for (size_t i = 0; i < 2; i++) {
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(half_i16x8[i])));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(half_i16x8[i]));
    vst1q_f32(out + i * 8, vmulq_n_f32(low, scale));
    vst1q_f32(out + i * 8 + 4, vmulq_n_f32(high, scale));
  }
}

void dequantize_q40(const BlockQ40* x, float* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++, out += kBlockSize) {
    const float scale = from_f16(x[b].scale);
    const uint8x16_t packed_u8x16 = vld1q_u8(x[b].nibbles);
    const int8x16_t low_i8x16 = vreinterpretq_s8_u8(vandq_u8(packed_u8x16, vdupq_n_u8(15)));
    const int8x16_t high_i8x16 = vreinterpretq_s8_u8(vshrq_n_u8(packed_u8x16, 4));
    store_scaled(vsubq_s8(low_i8x16, vdupq_n_s8(8)), scale, out);
    store_scaled(vsubq_s8(high_i8x16, vdupq_n_s8(8)), scale, out + kBlockSize / 2);
  }
}

void dequantize_q80(const BlockQ80* x, float* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++, out += kBlockSize) {
    const float scale = from_f16(x[b].scale);
    store_scaled(vld1q_s8(x[b].quants), scale, out);
    store_scaled(vld1q_s8(x[b].quants + 16), scale, out + kBlockSize / 2);
  }
}

// --- products; see Quantized in simd_matmul.h for what a Format has ---

// The 4 bytes at `piece`, four times.
KERNEL_INLINE int8x16_t broadcast_piece(const int8_t* piece) {
  int32_t word;
  std::memcpy(&word, piece, sizeof(word));
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

// Products of one 4-byte piece of 8 rows; sums[i] holds rows 2i and 2i + 1, 4 lanes each.
KERNEL_INLINE void multiply_add(int16x8_t (&sums)[4], int8x16_t rows_0_to_3, int8x16_t rows_4_to_7, int8x16_t x) {
  sums[0] = vmlal_s8(sums[0], vget_low_s8(rows_0_to_3), vget_low_s8(x));
  sums[1] = vmlal_high_s8(sums[1], rows_0_to_3, x);
  sums[2] = vmlal_s8(sums[2], vget_low_s8(rows_4_to_7), vget_low_s8(x));
  sums[3] = vmlal_high_s8(sums[3], rows_4_to_7, x);
}

// Keeps gcc from holding all nibble vectors of a block at once, which would spill the sums.
template <int T>
KERNEL_INLINE void pin(int16x8_t (&sums)[T][4]) {
  KERNEL_UNROLL
  for (int t = 0; t < T; t++) {
    KERNEL_UNROLL
    for (int i = 0; i < 4; i++) __asm__("" : "+w"(sums[t][i]));
  }
}

// 8 rows x 32 inputs of nibbles in two's complement.
struct Q40 {
  static constexpr size_t kUnit = kUnitQ40;

  // A lane sums 8 products: at most 8 * 8 * 127 = 8128, and twice that once neighbours are added.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    int16x8_t sum_i16x8[T][4];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      KERNEL_UNROLL
      for (int i = 0; i < 4; i++) sum_i16x8[t][i] = vdupq_n_s16(0);
    }
    KERNEL_ROLLED
    for (size_t i = 0; i < 4; i++) {
      const auto* w = reinterpret_cast<const int8_t*>(unit + kScaleBytes + i * 32);
      const int8x16_t first_i8x16 = vld1q_s8(w), second_i8x16 = vld1q_s8(w + 16);
      const int8x16_t first_low_i8x16 = vshrq_n_s8(vshlq_n_s8(first_i8x16, 4), 4);
      const int8x16_t second_low_i8x16 = vshrq_n_s8(vshlq_n_s8(second_i8x16, 4), 4);
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        multiply_add(sum_i16x8[t], first_low_i8x16, second_low_i8x16, broadcast_piece(x[t]->quants + i * kPiece));
      }
      const int8x16_t first_high_i8x16 = vshrq_n_s8(first_i8x16, 4);
      const int8x16_t second_high_i8x16 = vshrq_n_s8(second_i8x16, 4);
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        multiply_add(sum_i16x8[t], first_high_i8x16, second_high_i8x16,
                     broadcast_piece(x[t]->quants + kBlockSize / 2 + i * kPiece));
      }
      pin(sum_i16x8);
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      const int16x8_t first_i16x8 = vpaddq_s16(sum_i16x8[t][0], sum_i16x8[t][1]);
      const int16x8_t second_i16x8 = vpaddq_s16(sum_i16x8[t][2], sum_i16x8[t][3]);
      sums[t] = {vcvtq_f32_s32(vpaddlq_s16(first_i16x8)), vcvtq_f32_s32(vpaddlq_s16(second_i16x8))};
    }
  }
};

// 8 rows x 32 inputs of signed bytes.
struct Q80 {
  static constexpr size_t kUnit = kUnitQ80;

  // Two products fit an int16 lane, 2 * 128 * 127 = 32512, so every second piece the lanes go into int32 sums.
  template <int T>
  static KERNEL_INLINE void block(const uint8_t* unit, const ActivationQ80* const (&x)[T], F32x8 (&sums)[T]) {
    int32x4_t sum_i32x4[T][4];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      KERNEL_UNROLL
      for (int i = 0; i < 4; i++) sum_i32x4[t][i] = vdupq_n_s32(0);
    }
    KERNEL_ROLLED
    for (size_t i = 0; i < 8; i += 2) {
      const auto* w = reinterpret_cast<const int8_t*>(unit + kScaleBytes + i * 32);
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        int16x8_t pair_i16x8[4];
        KERNEL_UNROLL
        for (int j = 0; j < 4; j++) pair_i16x8[j] = vdupq_n_s16(0);
        multiply_add(pair_i16x8, vld1q_s8(w), vld1q_s8(w + 16), broadcast_piece(x[t]->quants + i * kPiece));
        multiply_add(pair_i16x8, vld1q_s8(w + 32), vld1q_s8(w + 48), broadcast_piece(x[t]->quants + (i + 1) * kPiece));
        KERNEL_UNROLL
        for (int j = 0; j < 4; j++) sum_i32x4[t][j] = vpadalq_s16(sum_i32x4[t][j], pair_i16x8[j]);
      }
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      sums[t] = {vcvtq_f32_s32(vpaddq_s32(sum_i32x4[t][0], sum_i32x4[t][1])),
                 vcvtq_f32_s32(vpaddq_s32(sum_i32x4[t][2], sum_i32x4[t][3]))};
    }
  }
};

}  // namespace

void install_neon(Kernels& table) {
  install_vectors(table);
  table.dots = dots;
  install_attention(table);
  table.quantize_q40 = quantize_q40;
  table.quantize_q80 = quantize_q80;
  table.dequantize_q40 = dequantize_q40;
  table.dequantize_q80 = dequantize_q80;
  table.quantize_activation = quantize_activation;
  table.row_group = kRowGroup;
  table.group_bytes = group_bytes;
  table.pack = pack<0x88>;
  table.matmul_q40 = matmul<Quantized<Q40>>;
  table.matmul_q80 = matmul<Quantized<Q80>>;
  table.matmul_f16 = matmul<Floats<uint16_t>>;
  table.matmul_f32 = matmul<Floats<float>>;
}

}  // namespace dllama
