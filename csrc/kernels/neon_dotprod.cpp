// NEON with dot products: the quantized products alone. They read what the neon level packs, so the two share the rest.
//
// Sealed: nothing here that the linker could share with other files.
#include "kernels/levels.h"
#include "kernels/simd_dotprod.h"

namespace dllama {

void install_dotprod(Kernels& table) {
  table.matmul_q40 = matmul<Quantized<DotQ40>>;
  table.matmul_q80 = matmul<Quantized<DotQ80>>;
}

}  // namespace dllama
