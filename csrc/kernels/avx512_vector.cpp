// AVX-512: what is computed element by element, sixteen to a vector, and the quantization of activations. These sums
// stay AVX2's: their order is part of the results' bits.
#define KERNEL_WIDE
#include <cfloat>

#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_dots.h"
#include "kernels/simd_elementwise.h"
#include "quant/blocks.h"

namespace dllama {
namespace {

// Largest magnitude of a block; NaNs are passed over, since max returns its second operand for them.
KERNEL_INLINE float max_magnitude(F32xN first, F32xN second) {
  return max_lanes(max(_mm512_abs_ps(second), max(_mm512_abs_ps(first), zeros())));
}

// Rounds x * id to 16 int8 in -127..127, whatever x is.
KERNEL_INLINE __m128i quants(F32xN x, F32xN id) {
  const F32xN product = max(mul(x, id), all(-127.0f));
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_min_ps(product, all(127.0f))));
}

// The bytes that quant/codec.h defines.
void quantize_activation(const float* x, ActivationQ80* out, size_t blocks) {
  for (size_t b = 0; b < blocks; b++, x += kBlockSize) {
    const F32xN first = load(x), second = load(x + kLanes);
    const float d = max_magnitude(first, second) / 127.0f;
    const F32xN id = all(d < FLT_MIN ? 0.0f : 1.0f / d);
    const __m128i first_i8x16 = quants(first, id), second_i8x16 = quants(second, id);
    out[b].scale = d;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[b].quants), first_i8x16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[b].quants + kLanes), second_i8x16);

    // Per 4-byte piece the sums of its first and second pair, then over the 8 pieces.
    const __m128i ones_u8x16 = _mm_set1_epi8(1);
    __m128i sum_i16x8 =
        _mm_add_epi16(_mm_maddubs_epi16(ones_u8x16, first_i8x16), _mm_maddubs_epi16(ones_u8x16, second_i8x16));
    sum_i16x8 = _mm_add_epi16(sum_i16x8, _mm_shuffle_epi32(sum_i16x8, _MM_SHUFFLE(1, 0, 3, 2)));
    sum_i16x8 = _mm_add_epi16(sum_i16x8, _mm_shuffle_epi32(sum_i16x8, _MM_SHUFFLE(2, 3, 0, 1)));
    const __m128i offset_i16x8 = _mm_mullo_epi16(sum_i16x8, _mm_set1_epi16(-8));
    const int32_t both = _mm_cvtsi128_si32(offset_i16x8);
    std::memcpy(out[b].offset, &both, sizeof(both));
    out[b].offset_sum = _mm_cvtsi128_si32(_mm_madd_epi16(offset_i16x8, _mm_set1_epi16(1)));
  }
}

}  // namespace

void install_avx512_vector(Kernels& table) {
  install_elementwise(table);
  table.dots = dots;
  table.quantize_activation = quantize_activation;
}

}  // namespace dllama
