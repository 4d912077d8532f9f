// The blocks of llama.cpp's files that are not ours, decoded in plain scalar code. Nothing here encodes them.
//
// The layouts are those of ggml-common.h. Products and differences are rounded one by one, in the order that ggml's own
// scalar code has, so the values are its values bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dllama {

// Ids as GGUF files store them. The first three have 32 values in a block, the others 256.
enum class GgmlType : int32_t { Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q2K = 10, Q3K = 11, Q4K = 12, Q5K = 13, Q6K = 14 };

struct GgmlBlock {
  size_t values, bytes;
};
GgmlBlock ggml_block(GgmlType type);

// Reads `blocks` blocks at `in`, at any address, and writes their values.
void dequantize_ggml(GgmlType type, const void* in, float* out, size_t blocks);

}  // namespace dllama
