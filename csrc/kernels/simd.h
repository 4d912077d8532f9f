// Vectors of floats and what can be done with them: the vocabulary that simd_math.h, simd_vector.h, simd_attention.h
// and simd_matmul.h are written in. It is that of the instruction set the including file is compiled for: F32x8 has
// eight floats, F32xN as many as suit it best, kLanes. Files that define KERNEL_WIDE want the sixteen of AVX-512 for
// these.
#pragma once

// Parts of loops that hold sums in registers: out of line they would pass them through memory.
#define KERNEL_INLINE inline __attribute__((always_inline))
// Before a short loop over an array of registers: unless it is unrolled early, gcc keeps the array in memory.
#define KERNEL_UNROLL _Pragma("GCC unroll 8")
// Before a loop that runs out of registers when the compiler unrolls it.
#define KERNEL_ROLLED _Pragma("GCC unroll 1")

#if defined(KERNEL_WIDE)
#include "kernels/simd_avx512.h"
#elif defined(__AVX2__)
#include "kernels/simd_avx2.h"
#elif defined(__aarch64__)
#include "kernels/simd_neon.h"
#else
#error "only files of an instruction-set level include this, with the flags of that level"
#endif
