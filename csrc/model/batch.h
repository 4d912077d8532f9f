// One step's work: spans of tokens of several sequences, and what is wanted of them. Checked before it runs, whoever
// sent it, and carried from the root to the other ranks as one frame.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "ops/candidates.h"

namespace dllama {

// `num_tokens` tokens of sequence `slot`, the first at `first_position`; they see all earlier positions of the slot.
struct Span {
  int32_t slot;
  int32_t first_position;
  int32_t num_tokens;
};

struct PageChange {
  int32_t slot;
  int32_t page_idx;
  int32_t page;
};

enum class WantKind : int32_t { Logits = 1, Score = 2, Candidates = 3 };

// What is wanted at one row of the batch (at most one thing): its logits, the log-probability of token `value`, or the
// candidates that query `value` asks for.
struct Want {
  int32_t row;
  WantKind kind;
  int32_t value;
};

// What all queries of one step may ask for together.
inline constexpr size_t kMaxCandidates = size_t{1} << 16;
inline constexpr size_t kMaxQueryIds = size_t{1} << 17;

// Throws InvalidArgument if the ranks of this model cannot exchange their sums in this way.
void check_exchange(const NodeConfig& config, bool scatter);

struct Batch {
  std::vector<Span> spans;
  std::vector<PageChange> pages;
  std::vector<Want> wants;
  std::vector<CandidateQuery> queries;  // of the wants of candidates, in their order
  bool scatter = false;                 // how the ranks exchange their sums, see sync.h
  std::vector<float> embeddings;        // [num_tokens, hidden_size], rows of all spans in order

  size_t num_tokens(size_t hidden_size) const { return embeddings.size() / hidden_size; }

  // Throws InvalidArgument unless every index is in range, spans and embeddings agree, and no more is wanted than a
  // node has room for.
  void check(const NodeConfig& config) const;
  // Throws InvalidArgument if a span's positions would have no pages once the page changes are made.
  void check_pages(const KvCache& cache) const;

  // The frame's payload, embeddings as the wire type carries them, and back. from_frame throws InvalidArgument if the
  // bytes are not a batch of this config.
  std::vector<std::byte> to_frame(const Kernels& kernels, const NodeConfig& config) const;
  static Batch from_frame(const Kernels& kernels, const NodeConfig& config, std::span<const std::byte> frame);
  // Upper bound of a frame's length; and of what the frame, the batch in it and its queries take.
  static size_t max_frame_bytes(const NodeConfig& config);
  static size_t bytes(const NodeConfig& config);
};

}  // namespace dllama
