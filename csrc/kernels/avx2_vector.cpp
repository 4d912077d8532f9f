// AVX2: the block codecs, the bandwidth probe, and the vector operations of simd_vector.h.
//
// The codecs give the bytes that quant/codec.h defines: the same operations on the same values in the same order.
// Sealed: nothing here that the linker could share with code for older CPUs.
#include <cfloat>

#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_dots.h"
#include "kernels/simd_vector.h"
#include "quant/blocks.h"

namespace dllama {
namespace {

constexpr size_t kVectors = kBlockSize / kLanes;  // per block

struct BlockFloats {
  __m256 v[kVectors];
};

KERNEL_INLINE BlockFloats load_block(const float* x) {
  BlockFloats block;
  for (size_t i = 0; i < kVectors; i++) block.v[i] = _mm256_loadu_ps(x + i * kLanes);
  return block;
}

// Largest magnitude in every lane; NaNs are passed over, since max returns its second operand for them.
KERNEL_INLINE __m256 max_magnitude(const BlockFloats& x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 amax = _mm256_setzero_ps();
  for (size_t i = 0; i < kVectors; i++) amax = _mm256_max_ps(_mm256_andnot_ps(sign, x.v[i]), amax);
  return _mm256_set1_ps(max_lanes(amax));
}

// 1 / d, or 0 where |d| is below the smallest normal float.
KERNEL_INLINE __m256 reciprocal(__m256 d) {
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), d);
  const __m256 too_small = _mm256_cmp_ps(magnitude, _mm256_set1_ps(FLT_MIN), _CMP_LT_OQ);
  return _mm256_andnot_ps(too_small, _mm256_div_ps(_mm256_set1_ps(1.0f), d));
}

KERNEL_INLINE uint16_t to_f16(float value) {
  return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT)));
}

KERNEL_INLINE __m256 from_f16(uint16_t bits) {
  return _mm256_set1_ps(_cvtsh_ss(bits));
}

// Rounds x * id to 32 int8 in -127..127, whatever x is.
KERNEL_INLINE __m256i q80_quants(const BlockFloats& x, __m256 id) {
  __m256i q_i32x8[kVectors];
  for (size_t i = 0; i < kVectors; i++) {
    const __m256 product = _mm256_max_ps(_mm256_mul_ps(x.v[i], id), _mm256_set1_ps(-127.0f));
    q_i32x8[i] = _mm256_cvtps_epi32(_mm256_min_ps(product, _mm256_set1_ps(127.0f)));
  }
  const __m256i low_i16x16 = _mm256_packs_epi32(q_i32x8[0], q_i32x8[1]);
  const __m256i high_i16x16 = _mm256_packs_epi32(q_i32x8[2], q_i32x8[3]);
  // Packing works within 128-bit halves and leaves the 4-byte pieces in the order 0 2 4 6 1 3 5 7.
  const __m256i mixed_i8x32 = _mm256_packs_epi16(low_i16x16, high_i16x16);
  return _mm256_permutevar8x32_epi32(mixed_i8x32, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

void quantize_q80(const float* x, BlockQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    const BlockFloats block = load_block(x + b * kBlockSize);
    const __m256 d = _mm256_div_ps(max_magnitude(block), _mm256_set1_ps(127.0f));
    out[b].scale = to_f16(_mm256_cvtss_f32(d));
    const __m256i q_i8x32 = q80_quants(block, reciprocal(d));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[b].quants), q_i8x32);
  }
}

void quantize_activation(const float* x, ActivationQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    const BlockFloats block = load_block(x + b * kBlockSize);
    const __m256 d = _mm256_div_ps(max_magnitude(block), _mm256_set1_ps(127.0f));
    out[b].scale = _mm256_cvtss_f32(d);
    const __m256i q_i8x32 = q80_quants(block, reciprocal(d));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[b].quants), q_i8x32);

    // Per 4-byte piece the sums of its first and second pair, then over the 8 pieces.
    const __m256i pairs_i16x16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q_i8x32);
    __m128i sum_i16x8 = _mm_add_epi16(_mm256_castsi256_si128(pairs_i16x16), _mm256_extracti128_si256(pairs_i16x16, 1));
    sum_i16x8 = _mm_add_epi16(sum_i16x8, _mm_shuffle_epi32(sum_i16x8, _MM_SHUFFLE(1, 0, 3, 2)));
    sum_i16x8 = _mm_add_epi16(sum_i16x8, _mm_shuffle_epi32(sum_i16x8, _MM_SHUFFLE(2, 3, 0, 1)));
    const __m128i offset_i16x8 = _mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(sum_i16x8, 3));
    const int32_t both = _mm_cvtsi128_si32(offset_i16x8);
    std::memcpy(out[b].offset, &both, sizeof(both));
    out[b].offset_sum = out[b].offset[0] + out[b].offset[1];
  }
}

void quantize_q40(const float* x, BlockQ40* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++) {
    const BlockFloats block = load_block(x + b * kBlockSize);
    const __m256 amax = max_magnitude(block);
    __m256 is_amax = _mm256_setzero_ps();
    for (size_t i = 0; i < kVectors; i++) {
      is_amax = _mm256_or_ps(is_amax, _mm256_cmp_ps(block.v[i], amax, _CMP_EQ_OQ));
    }
    const bool positive = _mm256_movemask_ps(is_amax) != 0;
    const __m256 d = _mm256_div_ps(amax, _mm256_set1_ps(positive ? -8.0f : 8.0f));
    const __m256 id = reciprocal(d);
    out[b].scale = to_f16(_mm256_cvtss_f32(d));

    __m256i q_i32x8[kVectors];
    for (size_t i = 0; i < kVectors; i++) {
      const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(block.v[i], id), _mm256_set1_ps(8.5f));
      const __m256 clamped = _mm256_min_ps(_mm256_max_ps(shifted, _mm256_setzero_ps()), _mm256_set1_ps(15.0f));
      q_i32x8[i] = _mm256_cvttps_epi32(clamped);
    }
    const __m256i first_i32x8 = _mm256_or_si256(q_i32x8[0], _mm256_slli_epi32(q_i32x8[2], 4));
    const __m256i second_i32x8 = _mm256_or_si256(q_i32x8[1], _mm256_slli_epi32(q_i32x8[3], 4));
    const __m256i mixed_u16x16 = _mm256_packus_epi32(first_i32x8, second_i32x8);
    const __m256i ordered_u16x16 = _mm256_permute4x64_epi64(mixed_u16x16, _MM_SHUFFLE(3, 1, 2, 0));
    const __m128i nibbles_u8x16 =
        _mm_packus_epi16(_mm256_castsi256_si128(ordered_u16x16), _mm256_extracti128_si256(ordered_u16x16, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[b].nibbles), nibbles_u8x16);
  }
}

// Writes 16 values times scale.
KERNEL_INLINE void store_scaled(__m128i q_i8x16, __m256 scale, float* out) {
  const __m256i first_i32x8 = _mm256_cvtepi8_epi32(q_i8x16);
  const __m256i second_i32x8 = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q_i8x16, q_i8x16));
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(first_i32x8), scale));
  _mm256_storeu_ps(out + kLanes, _mm256_mul_ps(_mm256_cvtepi32_ps(second_i32x8), scale));
}

void dequantize_q40(const BlockQ40* x, float* out, size_t blocks) {
  const __m128i mask_u8x16 = _mm_set1_epi8(15);
  const __m128i eight_i8x16 = _mm_set1_epi8(8);
  for (size_t b = 0; b < blocks; b++, out += kBlockSize) {
    const __m256 scale = from_f16(x[b].scale);
    const __m128i packed_u8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x[b].nibbles));
    const __m128i low_u8x16 = _mm_and_si128(packed_u8x16, mask_u8x16);
    const __m128i high_u8x16 = _mm_and_si128(_mm_srli_epi16(packed_u8x16, 4), mask_u8x16);
    store_scaled(_mm_sub_epi8(low_u8x16, eight_i8x16), scale, out);
    store_scaled(_mm_sub_epi8(high_u8x16, eight_i8x16), scale, out + kBlockSize / 2);
  }
}

void dequantize_q80(const BlockQ80* x, float* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++, out += kBlockSize) {
    const __m256 scale = from_f16(x[b].scale);
    const auto* quants = reinterpret_cast<const __m128i*>(x[b].quants);
    store_scaled(_mm_loadu_si128(quants), scale, out);
    store_scaled(_mm_loadu_si128(quants + 1), scale, out + kBlockSize / 2);
  }
}

// The fastest read found: 4 lines per turn into 8 sums. Software prefetch only slowed it down.
uint64_t read_memory(const void* data, size_t bytes) {
  constexpr size_t kSums = 8;
  constexpr size_t kVector = sizeof(__m256i);
  const auto* p = static_cast<const uint8_t*>(data);
  __m256i sum_u64x4[kSums];
  for (size_t j = 0; j < kSums; j++) sum_u64x4[j] = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + kSums * kVector <= bytes; i += kSums * kVector) {
    for (size_t j = 0; j < kSums; j++) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + j * kVector));
      sum_u64x4[j] = _mm256_add_epi64(sum_u64x4[j], v);
    }
  }
  for (; i < bytes; i += kVector) {
    sum_u64x4[0] = _mm256_add_epi64(sum_u64x4[0], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i)));
  }
  for (size_t j = 1; j < kSums; j++) sum_u64x4[0] = _mm256_add_epi64(sum_u64x4[0], sum_u64x4[j]);
  uint64_t lanes[4];
  std::memcpy(lanes, &sum_u64x4[0], sizeof(lanes));
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace

void install_avx2_vector(Kernels& table) {
  install_vectors(table);
  table.dots = dots;
  table.quantize_q40 = quantize_q40;
  table.quantize_q80 = quantize_q80;
  table.dequantize_q40 = dequantize_q40;
  table.dequantize_q80 = dequantize_q80;
  table.quantize_activation = quantize_activation;
  table.read_memory = read_memory;
}

}  // namespace dllama
