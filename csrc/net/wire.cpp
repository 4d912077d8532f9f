#include "net/wire.h"

#include <cstring>

namespace dllama {

size_t wire_bytes(DType wire, size_t n) {
  if (wire == DType::Q80) return n / kBlockSize * sizeof(BlockQ80);
  return n * (wire == DType::F16 ? sizeof(uint16_t) : sizeof(float));
}

void to_wire(const Kernels& kernels, DType wire, const float* x, size_t n, std::byte* out) {
  if (wire == DType::Q80) return kernels.quantize_q80(x, reinterpret_cast<BlockQ80*>(out), n / kBlockSize);
  if (wire == DType::F16) return kernels.f32_to_f16(x, reinterpret_cast<uint16_t*>(out), n);
  if (n != 0) std::memcpy(out, x, n * sizeof(float));
}

void from_wire(const Kernels& kernels, DType wire, const std::byte* data, size_t n, float* out) {
  if (wire == DType::Q80) return kernels.dequantize_q80(reinterpret_cast<const BlockQ80*>(data), out, n / kBlockSize);
  if (wire == DType::F16) return kernels.f16_to_f32(reinterpret_cast<const uint16_t*>(data), out, n);
  if (n != 0) std::memcpy(out, data, n * sizeof(float));
}

}  // namespace dllama
