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

// Positions are cut into segments of this many pages at absolute borders. Each is attended to by itself, anywhere, and
// their results are put together in order: who computed them leaves no trace in the bits.
inline constexpr size_t kSegmentPages = 16;

// Segments that hold positions 0..position.
constexpr size_t num_segments(size_t position) {
  return position / (kSegmentPages * kPageSize) + 1;
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
  std::vector<uint32_t> valid;                               // [max_rows] positions of the page in hand
  std::vector<int16_t> q_quants;                             // [max_rows, head_dim]
  std::vector<float> q_scales;                               // [max_rows]
  std::vector<size_t> positions;                             // [max_rows] the row sees positions 0..positions[row]
};

// Attention of the first `rows` rows of scratch (q and positions filled in, positions ascending) over pages 0 to that
// of the last position. Leaves softmax(q . K) . V of each row in scratch.acc. `q` must be multiplied by
// 1/sqrt(head_dim). Pages are taken in order and whole, so a row's bits depend on nothing but its q and its sequence.
void attend(const Kernels& kernels, const KvPages& pages, size_t rows, size_t head_dim, AttentionScratch& scratch);

// The same in parts: one segment into `out`; the others in order into the first, the total; its acc divided by its sum.
void attend_segment(const Kernels& kernels, const KvPages& pages, size_t segment, size_t rows, size_t head_dim,
                    AttentionScratch& scratch, const SoftmaxRows& out);
void merge_segment(size_t rows, size_t head_dim, const SoftmaxRows& part, const SoftmaxRows& total);
void finish_rows(size_t rows, size_t head_dim, const SoftmaxRows& total);

}  // namespace dllama
