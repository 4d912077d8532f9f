// Which weights a thread reads first behind a barrier: it fetches them while it waits there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "model/step.h"

namespace dllama {

// What a thread that waits fetches at most of the weights it reads next: it fits the smallest L2 in use.
inline constexpr size_t kMaxAheadBytes = 64 << 10;

// Weights from a row group on.
inline std::span<const std::byte> weights_from(const Matrix& w, size_t group) {
  if (group >= w.groups) return {};
  return {w.at(group), std::min((w.groups - group) * w.group_bytes, kMaxAheadBytes)};
}

// The first of a thread's part of a matrix.
inline std::span<const std::byte> first_weights(const Step& step, size_t thread, const Matrix& w) {
  const size_t chunk_groups = kChunkRows / step.kernels.row_group;
  const Range chunks = split(num_parts(w.groups, chunk_groups), step.pool.size(), thread);
  return weights_from(w, chunks.begin * chunk_groups);
}

}  // namespace dllama
