// Packed weights and the loops around their products, for any eight floats. What differs between levels is how one
// block of integers is multiplied: a Format, see Quantized.
//
// Packed Q40 and Q80: 8 rows x 32 inputs = 8 F16 scales, then vectors in which every 4-byte piece belongs to one row,
// so that sums of integers never cross rows. Packed F16 and F32: 8 rows per input.
// A row's sum is one chain over the blocks in order, whatever the number of tokens and groups: its bits never change.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "quant/blocks.h"

namespace dllama {
namespace {

constexpr size_t kRowGroup = 8;
constexpr size_t kPiece = 4;  // inputs of one row that lie together
constexpr size_t kScaleBytes = kRowGroup * sizeof(uint16_t);
constexpr size_t kUnitQ40 = kScaleBytes + kRowGroup * kBlockSize / 2;  // 8 rows of one block
constexpr size_t kUnitQ80 = kScaleBytes + kRowGroup * kBlockSize;
static_assert(kRowGroup == kLanes, "the sums of a group are one vector of floats");

// Weights that stay in L2 while every token of the call passes by. Half of the smallest L2 in use (256 KB).
constexpr size_t kPanelBytes = 128 << 10;
// How far ahead weights are asked for, into L2: at 30 GB/s this covers half a microsecond. Nearer or into L1 was
// slower.
constexpr size_t kPrefetchBytes = 16 << 10;
constexpr size_t kLine = 64;

// Asks for the `bytes` that a sequential reader at `p` will want soon. May point past the end: hints never fault.
// Worth its instructions for one token only: from two on the hardware's own prefetch keeps up with the arithmetic.
KERNEL_INLINE void prefetch_ahead(const void* p, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kLine) {
    prefetch(static_cast<const uint8_t*>(p) + kPrefetchBytes + line);
  }
}

// --- products of 8 rows and T tokens over all inputs ---

// A Format has kUnit, the bytes of one packed block of 8 rows, and block<T>(unit, x, sums), which sets sums[t] to the
// exact integer sums of that block with the activations x[t], as floats.
template <typename Format>
struct Quantized {
  using Input = ActivationQ80;

  static constexpr size_t group_bytes(size_t cols) { return cols / kBlockSize * Format::kUnit; }

  template <int T>
  static void tile(const uint8_t* w, size_t cols, const ActivationQ80* x, size_t x_stride, float* out,
                   size_t out_stride) {
    constexpr size_t kStep = 4;  // blocks per prefetch: 4 units are whole cache lines, for Q40 and Q80 alike
    static_assert(kStep * Format::kUnit % kLine == 0, "otherwise lines are asked for twice");
    F32x8 totals[T];
    const ActivationQ80* xs[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      totals[t] = zeros();
      xs[t] = x + t * x_stride;
    }
    for (size_t b = 0; b < cols / kBlockSize; b++, w += Format::kUnit) {
      if (T == 1 && b % kStep == 0) prefetch_ahead(w, kStep * Format::kUnit);
      F32x8 sums[T];
      Format::template block<T>(w, xs, sums);
      const F32x8 w_scale = load(reinterpret_cast<const uint16_t*>(w));
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) {
        totals[t] = mul_add(sums[t], mul(w_scale, all_of(&xs[t]->scale)), totals[t]);
        xs[t]++;
      }
    }
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) store(out + t * out_stride, totals[t]);
  }
};

template <typename Element>
struct Floats {
  using Input = float;

  static constexpr size_t group_bytes(size_t cols) { return kRowGroup * cols * sizeof(Element); }

  // sums[t] += w[.][k] * x[t][k]
  template <int T>
  static KERNEL_INLINE void input(const Element* w, const float* const (&x)[T], size_t k, F32x8 (&sums)[T]) {
    const F32x8 weights = load(w + k * kRowGroup);
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) sums[t] = mul_add(weights, all_of(x[t] + k), sums[t]);
  }

  // totals[t] += the sum over n <= 32 inputs, as one chain over the even and one over the odd inputs: chains of 16
  // overlap in the CPU where one of 32 would wait for itself.
  template <int T>
  static KERNEL_INLINE void inputs(const Element* w, const float* const (&x)[T], size_t n, F32x8 (&totals)[T]) {
    F32x8 even[T], odd[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) even[t] = odd[t] = zeros();
    size_t k = 0;
    for (; k + 2 <= n; k += 2) {
      input<T>(w, x, k, even);
      input<T>(w, x, k + 1, odd);
    }
    if (k < n) input<T>(w, x, k, even);
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) totals[t] = add(totals[t], add(even[t], odd[t]));
  }

  template <int T>
  static void tile(const uint8_t* group, size_t cols, const float* x, size_t x_stride, float* out, size_t out_stride) {
    const auto* w = reinterpret_cast<const Element*>(group);
    F32x8 totals[T];
    const float* xs[T];
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) {
      totals[t] = zeros();
      xs[t] = x + t * x_stride;
    }
    size_t left = cols;
    for (; left >= kBlockSize; left -= kBlockSize) {
      if (T == 1) prefetch_ahead(w, kBlockSize * kRowGroup * sizeof(Element));
      inputs<T>(w, xs, kBlockSize, totals);
      w += kBlockSize * kRowGroup;
      KERNEL_UNROLL
      for (int t = 0; t < T; t++) xs[t] += kBlockSize;
    }
    inputs<T>(w, xs, left, totals);
    KERNEL_UNROLL
    for (int t = 0; t < T; t++) store(out + t * out_stride, totals[t]);
  }
};

// Panels of weights that fit L2 outside, tiles of kTileTokens (4 or 5) inside: weights come from memory once per call.
template <typename Kind, size_t kTileTokens = 4>
void matmul(const void* packed, size_t groups, size_t cols, const typename Kind::Input* x, size_t x_stride,
            size_t tokens, float* out, size_t out_stride) {
  using Tile = void (*)(const uint8_t*, size_t, const typename Kind::Input*, size_t, float*, size_t);
  constexpr Tile kTiles[] = {Kind::template tile<1>, Kind::template tile<2>, Kind::template tile<3>,
                             Kind::template tile<4>, Kind::template tile<5>, Kind::template tile<kTileTokens + 1>};
  const size_t group_size = Kind::group_bytes(cols);
  const size_t panel_groups = kPanelBytes / (group_size + 1) + 1;
  const auto* w = static_cast<const uint8_t*>(packed);
  for (size_t begin = 0; begin < groups; begin += panel_groups) {
    const size_t end = groups - begin < panel_groups ? groups : begin + panel_groups;
    for (size_t t = 0; t < tokens;) {
      const size_t left = tokens - t;
      const size_t n = left <= kTileTokens + 1 ? left : kTileTokens;  // 5 at the end beats 4 + 1
      for (size_t g = begin; g < end; g++) {
        kTiles[n - 1](w + g * group_size, cols, x + t * x_stride, x_stride, out + t * out_stride + g * kRowGroup,
                      out_stride);
      }
      t += n;
    }
  }
}

// --- packing ---

inline size_t group_bytes(DType type, size_t cols) {
  switch (type) {
    case DType::F32:
      return Floats<float>::group_bytes(cols);
    case DType::F16:
      return Floats<uint16_t>::group_bytes(cols);
    case DType::Q40:
      return cols / kBlockSize * kUnitQ40;
    case DType::Q80:
      return cols / kBlockSize * kUnitQ80;
  }
  return 0;
}

// Interleaves the rows of one group block by block: the scales, then the 4-byte pieces in the order of the bytes.
// `Block` is the canonical block, a scale and its quants or nibbles. Every byte of a piece is xored with `flip`.
template <typename Block>
void pack_blocks(const uint8_t* rows, size_t num_rows, size_t blocks, uint8_t flip, uint8_t* out) {
  constexpr size_t kPieces = (sizeof(Block) - sizeof(uint16_t)) / kPiece;
  const uint32_t flips = flip * 0x01010101u;
  for (size_t b = 0; b < blocks; b++) {
    for (size_t r = 0; r < num_rows; r++) {
      const uint8_t* block = rows + (r * blocks + b) * sizeof(Block);
      std::memcpy(out + r * sizeof(uint16_t), block, sizeof(uint16_t));
      for (size_t i = 0; i < kPieces; i++) {
        uint32_t piece;
        std::memcpy(&piece, block + sizeof(uint16_t) + i * kPiece, kPiece);
        piece ^= flips;
        std::memcpy(out + kScaleBytes + (i * kRowGroup + r) * kPiece, &piece, kPiece);
      }
    }
    out += kScaleBytes + kPieces * kPiece * kRowGroup;
  }
}

template <typename Element>
void pack_elements(const uint8_t* rows, size_t num_rows, size_t cols, uint8_t* out) {
  for (size_t k = 0; k < cols; k++) {
    for (size_t r = 0; r < num_rows; r++) {
      std::memcpy(out + (k * kRowGroup + r) * sizeof(Element), rows + (r * cols + k) * sizeof(Element),
                  sizeof(Element));
    }
  }
}

// The pack of a kernel table. kNibbleFlip is xored onto the bytes of Q40: 0x88 turns nibbles into two's complement.
template <uint8_t kNibbleFlip>
void pack(DType type, const void* canonical, size_t rows, size_t cols, void* packed) {
  const auto* in = static_cast<const uint8_t*>(canonical);
  auto* out = static_cast<uint8_t*>(packed);
  const size_t group_size = group_bytes(type, cols);
  const size_t blocks = cols / kBlockSize;
  for (size_t row = 0; row < rows; row += kRowGroup, out += group_size) {
    const size_t n = rows - row < kRowGroup ? rows - row : kRowGroup;
    if (n < kRowGroup) std::memset(out, 0, group_size);
    switch (type) {
      case DType::F32:
        pack_elements<float>(in + row * cols * sizeof(float), n, cols, out);
        break;
      case DType::F16:
        pack_elements<uint16_t>(in + row * cols * sizeof(uint16_t), n, cols, out);
        break;
      case DType::Q40:
        pack_blocks<BlockQ40>(in + row * blocks * sizeof(BlockQ40), n, blocks, kNibbleFlip, out);
        break;
      case DType::Q80:
        pack_blocks<BlockQ80>(in + row * blocks * sizeof(BlockQ80), n, blocks, 0, out);
        break;
    }
  }
}

}  // namespace
}  // namespace dllama
