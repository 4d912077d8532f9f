// The functions by which each instruction-set level puts its kernels into a table. Included by dispatch.cpp and by the
// files that define them, nothing else. A level overwrites what it does better than the table it is given.
#pragma once

#include "kernels/kernels.h"

namespace dllama {

void install_generic(Kernels& table);            // fills every entry
void install_generic_attention(Kernels& table);  // a part of the above

// x86-64 with AVX2, FMA and F16C. The three parts are one level: packing and products in the first, attention in the
// second, codecs and vectors in the third.
void install_avx2_matmul(Kernels& table);
void install_avx2_attention(Kernels& table);
void install_avx2_vector(Kernels& table);
// On top of AVX2: CPUs with AVX-VNNI (Intel since Alder Lake and in its N series, AMD since Zen 5).
void install_avx_vnni(Kernels& table);
// On top of AVX2: CPUs with AVX-512 VNNI and VL (Intel since Ice Lake, AMD since Zen 4).
void install_avx512_vnni(Kernels& table);
void install_avx512_attention(Kernels& table);
void install_avx512_vector(Kernels& table);

// 64-bit ARM as every such CPU has it (armv8-a).
void install_neon(Kernels& table);
// On top of neon: CPUs with the dot-product instructions (Cortex-A76 and later, every Apple M).
void install_dotprod(Kernels& table);
// On top of dotprod: CPUs with 8-bit matrix products (Neoverse V1 and N2, Cortex-A510 and later, Apple M2 and later).
void install_i8mm(Kernels& table);

}  // namespace dllama
