// Vectors of bytes as the products of AVX2 and AVX-VNNI read them. Internal linkage throughout, as in simd_avx2.h.
#pragma once

#include "kernels/simd.h"

namespace dllama {
namespace {

constexpr size_t kVector = 32;  // bytes

// Keeps gcc from hoisting all nibble vectors of a block above their use, which would spill the sums.
template <int N>
KERNEL_INLINE void pin(__m256i (&sums)[N]) {
  KERNEL_UNROLL
  for (int n = 0; n < N; n++) __asm__("" : "+x"(sums[n]));
}

KERNEL_INLINE __m256i broadcast_piece(const void* piece) {
  int32_t word;
  std::memcpy(&word, piece, sizeof(word));
  return _mm256_set1_epi32(word);
}

KERNEL_INLINE __m256i load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

}  // namespace
}  // namespace dllama
