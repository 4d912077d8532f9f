#include "ops/recode.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "quant/codec.h"

namespace dllama {

namespace {

constexpr size_t kChunk = 2048;  // values on their way: they stay in the first cache
static_assert(kChunk % kBlockSize == 0 && kChunk % 256 == 0);

void widen(const Kernels& kernels, FloatType from, const std::byte* in, float* values, size_t n) {
  if (from == FloatType::F32) {
    std::memcpy(values, in, n * sizeof(float));
    return;
  }
  uint16_t halves[kChunk];
  std::memcpy(halves, in, n * sizeof(uint16_t));
  if (from == FloatType::F16) {
    kernels.f16_to_f32(halves, values, n);
    return;
  }
  for (size_t i = 0; i < n; i++) values[i] = std::bit_cast<float>(static_cast<uint32_t>(halves[i]) << 16);
}

void narrow(const Kernels& kernels, const float* values, DType to, std::byte* out, size_t n) {
  switch (to) {
    case DType::F32:
      std::memcpy(out, values, n * sizeof(float));
      return;
    case DType::F16:
      kernels.f32_to_f16(values, reinterpret_cast<uint16_t*>(out), n);
      return;
    case DType::Q40:
      kernels.quantize_q40(values, reinterpret_cast<BlockQ40*>(out), n / kBlockSize);
      return;
    case DType::Q80:
      kernels.quantize_q80(values, reinterpret_cast<BlockQ80*>(out), n / kBlockSize);
      return;
  }
}

// Without its sign the pattern of a float is a number that grows with its magnitude, up to those of infinity and NaNs.
int32_t largest_pattern(const float* values, size_t n) {
  int32_t largest = 0;
  for (size_t i = 0; i < n; i++) largest = std::max(largest, std::bit_cast<int32_t>(values[i]) & 0x7fffffff);
  return largest;
}

// `read(done, values, count)` gives `count` numbers from number `done` on; chunks begin with whole blocks of any type.
template <typename Read>
float recode_chunks(const Kernels& kernels, const Read& read, DType to, void* out, size_t n) {
  auto* target = static_cast<std::byte*>(out);
  int32_t largest = 0;
  for (size_t done = 0; done < n; done += kChunk) {
    const size_t count = std::min(kChunk, n - done);
    float values[kChunk];
    read(done, values, count);
    largest = std::max(largest, largest_pattern(values, count));
    narrow(kernels, values, to, target + row_bytes(to, done), count);
  }
  return std::bit_cast<float>(largest);
}

}  // namespace

float recode(const Kernels& kernels, FloatType from, const void* in, DType to, void* out, size_t n) {
  const auto* source = static_cast<const std::byte*>(in);
  const auto read = [&](size_t done, float* values, size_t count) {
    widen(kernels, from, source + done * float_bytes(from), values, count);
  };
  return recode_chunks(kernels, read, to, out, n);
}

float recode(const Kernels& kernels, GgmlType from, const void* in, DType to, void* out, size_t n) {
  const GgmlBlock block = ggml_block(from);
  const auto* source = static_cast<const std::byte*>(in);
  const auto read = [&](size_t done, float* values, size_t count) {
    dequantize_ggml(from, source + done / block.values * block.bytes, values, count / block.values);
  };
  return recode_chunks(kernels, read, to, out, n);
}

}  // namespace dllama
