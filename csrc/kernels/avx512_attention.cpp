// AVX-512: attention, which simd_attention.h writes out, with sixteen positions or dimensions to a vector.
#define KERNEL_WIDE
#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_attention.h"

namespace dllama {

void install_avx512_attention(Kernels& table) {
  install_attention(table);
}

}  // namespace dllama
