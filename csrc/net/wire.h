// Floats as they travel between nodes: the number type of the wire, and back. Knows no socket.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace dllama {

// Bytes of n floats (for Q80 a multiple of kBlockSize) as `wire` carries them; to the wire and back.
size_t wire_bytes(DType wire, size_t n);
void to_wire(const Kernels& kernels, DType wire, const float* x, size_t n, std::byte* out);
void from_wire(const Kernels& kernels, DType wire, const std::byte* data, size_t n, float* out);

}  // namespace dllama
