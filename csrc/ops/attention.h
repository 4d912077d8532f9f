// Causal attention of query rows over the pages of one sequence. Knows pages and heads; not layers, tables or threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "quant/blocks.h"

namespace dllama {

// Where the K and V pages of one (sequence, layer, KV head) lie.
struct KvPages {
  DType type = DType::F16;
  const std::byte* pool = nullptr;  // start of the pool, moved on to this layer and head
  size_t page_bytes = 0;            // from one page to the next
  size_t v_offset = 0;              // from a K page to its V page
  const int32_t* table = nullptr;   // page ids by page index
  size_t next_head = 0;             // from a page to that of the head taken next, whose first is asked for; 0: none
};

// What a layer lets its tokens see, and how it weighs it.
struct AttentionSpec {
  size_t window = 0;     // positions, a token's own included; 0: all before it
  float softcap = 0.0f;  // of scores; 0: none
};

// Positions are cut into segments of this many pages at absolute borders. Each is attended to by itself, anywhere, and
// their results are put together in order: who computed them leaves no trace in the bits.
inline constexpr size_t kSegmentPages = 16;

// The segment that holds a position, and the first position that the token at `position` sees.
constexpr size_t segment_of(size_t position) {
  return position / (kSegmentPages * kPageSize);
}
constexpr size_t first_seen(const AttentionSpec& spec, size_t position) {
  return spec.window == 0 || position < spec.window ? 0 : position + 1 - spec.window;
}

// Softmax of some query rows over the positions seen so far: sum is 0 where a row has seen none.
struct SoftmaxRows {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows, head_dim]
};

// Scratch of one thread for up to `max_rows` query rows.
struct AttentionScratch {
  AttentionScratch(size_t max_rows, size_t head_dim);
  SoftmaxRows result() { return {max.data(), sum.data(), acc.data()}; }
  SoftmaxRows segment() { return {segment_max.data(), segment_sum.data(), segment_acc.data()}; }

  std::vector<float> q;                                      // [max_rows, head_dim]
  std::vector<float> acc;                                    // [max_rows, head_dim]
  std::vector<float> max;                                    // [max_rows]
  std::vector<float> sum;                                    // [max_rows]
  std::vector<float> segment_acc, segment_max, segment_sum;  // the same of the segment in hand
  std::vector<uint32_t> valid, hidden;                       // [max_rows] of the page in hand: AttentionRows
  std::vector<int16_t> q_quants;                             // [max_rows, head_dim]
  std::vector<float> q_scales;                               // [max_rows]
  std::vector<size_t> positions;                             // [max_rows] the last that the row sees: its own
};

// Attention of the first `rows` rows of scratch (q and positions filled in, positions ascending) over the pages that
// they see. Leaves softmax(q . K) . V of each row in scratch.acc. `q` must be multiplied by the score scale. Pages are
// taken in order and whole, so a row's bits depend on nothing but its q and its sequence.
void attend(const Kernels& kernels, const KvPages& pages, size_t rows, size_t head_dim, AttentionScratch& scratch,
            const AttentionSpec& spec = {});

// The same in parts: one segment into `out`; the others in order into the first, the total; its acc divided by its sum.
void attend_segment(const Kernels& kernels, const KvPages& pages, size_t segment, size_t rows, size_t head_dim,
                    AttentionScratch& scratch, const SoftmaxRows& out, const AttentionSpec& spec = {});
void merge_segment(size_t rows, size_t head_dim, const SoftmaxRows& part, const SoftmaxRows& total);
void finish_rows(size_t rows, size_t head_dim, const SoftmaxRows& total);

}  // namespace dllama
