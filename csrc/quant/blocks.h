// The block formats that files, the wire and caches hold. Plain structs only: ISA files include this.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dllama {

// Values of one block share one scale. The same 32 everywhere: Q40 and Q80 as distributed-llama and ggml write them.
inline constexpr size_t kBlockSize = 32;

// Ids as stored in `.m` files.
enum class DType : int32_t { F32 = 0, F16 = 1, Q40 = 2, Q80 = 3 };

// value[j] = (low nibble of nibbles[j]) - 8, value[j + 16] = (high nibble of nibbles[j]) - 8, times scale.
struct BlockQ40 {
  uint16_t scale;  // IEEE binary16
  uint8_t nibbles[kBlockSize / 2];
};
static_assert(sizeof(BlockQ40) == 18, "Q40 blocks are stored without padding");

// value[j] = quants[j] * scale.
struct BlockQ80 {
  uint16_t scale;  // IEEE binary16
  int8_t quants[kBlockSize];
};
static_assert(sizeof(BlockQ80) == 34, "Q80 blocks are stored without padding");

// One block of activations as the Q40 and Q80 products read it. Never stored, never sent.
//
// `offset` holds -8 * (sum of the quants at k % 4 in {0, 1}) and -8 * (those at k % 4 in {2, 3}): the start value of
// the int16 accumulators of a product with unsigned nibbles, which folds Q40's -8 in for nothing. int16 sums wrap, and
// the true result fits (16 * 8 * 127 = 16256), so the final lanes are exact. `offset_sum` is the sum of the two, for
// accumulators of 32 bits.
// `scale` is the F32 amax / 127, not rounded through F16.
struct ActivationQ80 {
  int8_t quants[kBlockSize];
  int16_t offset[2];
  int32_t offset_sum;
  float scale;
};
static_assert(sizeof(ActivationQ80) == 44, "products step through activations by this size");

}  // namespace dllama
