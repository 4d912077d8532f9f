// AVX2: attention, which simd_attention.h writes out for any eight floats.
#include "kernels/levels.h"
#include "kernels/simd.h"
#include "kernels/simd_attention.h"

namespace dllama {

void install_avx2_attention(Kernels& table) {
  install_attention(table);
}

}  // namespace dllama
