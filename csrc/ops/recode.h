// From numbers as checkpoints hold them to the stored types: what is done to a foreign model when it is read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "quant/blocks.h"
#include "quant/ggml.h"

namespace dllama {

// Ids as dllama/formats/recode.py has them.
enum class FloatType : int32_t { F32 = 0, F16 = 1, BF16 = 2 };

inline size_t float_bytes(FloatType type) {
  return type == FloatType::F32 ? sizeof(float) : sizeof(uint16_t);
}

// Reads `n` numbers at `in`, at any address, and writes them as `to`; `n` fills whole blocks if `to` has blocks.
// Returns their largest magnitude, NaN if there is one among them: what `to` cannot hold is for the caller to refuse.
float recode(const Kernels& kernels, FloatType from, const void* in, DType to, void* out, size_t n);

// The same of `n` numbers in llama.cpp's blocks, which fill whole ones.
float recode(const Kernels& kernels, GgmlType from, const void* in, DType to, void* out, size_t n);

}  // namespace dllama
