#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dllama {

AttentionScratch::AttentionScratch(size_t max_rows, size_t head_dim)
    : q(max_rows * head_dim),
      acc(max_rows * head_dim),
      max(max_rows),
      sum(max_rows),
      segment_acc(max_rows * head_dim),
      segment_max(max_rows),
      segment_sum(max_rows),
      valid(max_rows),
      hidden(max_rows),
      q_quants(max_rows * head_dim),
      q_scales(max_rows),
      positions(max_rows) {}

namespace {

const std::byte* page_at(const KvPages& pages, size_t page_idx) {
  return pages.pool + static_cast<size_t>(pages.table[page_idx]) * pages.page_bytes;
}

// The page to be attended to after `page_idx`, of those from `first_page` to `last_page`.
const std::byte* page_after(const KvPages& pages, size_t page_idx, size_t first_page, size_t last_page) {
  if (page_idx < last_page) return page_at(pages, page_idx + 1);
  return pages.next_head != 0 ? page_at(pages, first_page) + pages.next_head : nullptr;
}

void attend_page(const Kernels& kernels, const KvPages& pages, size_t page_idx, const AttentionRows& rows) {
  const std::byte* k = page_at(pages, page_idx);
  const std::byte* v = k + pages.v_offset;
  if (pages.type == DType::F16) {
    kernels.attend_f16(rows, reinterpret_cast<const uint16_t*>(k), reinterpret_cast<const uint16_t*>(v));
  } else if (pages.type == DType::Q80) {
    kernels.attend_q80(rows, reinterpret_cast<const int8_t*>(k), reinterpret_cast<const int8_t*>(v));
  } else {
    kernels.attend_f32(rows, reinterpret_cast<const float*>(k), reinterpret_cast<const float*>(v));
  }
}

void quantize_queries(const Kernels& kernels, size_t rows, size_t head_dim, AttentionScratch& scratch,
                      AttentionRows& view) {
  for (size_t row = 0; row < rows; ++row) {
    const float* q = scratch.q.data() + row * head_dim;
    scratch.q_scales[row] = kernels.quantize_query(q, head_dim, scratch.q_quants.data() + row * head_dim);
  }
  view.q_quants = scratch.q_quants.data();
  view.q_scales = scratch.q_scales.data();
}

// Positions of a page that each row may see. Says whether some row misses the beginning of what it sees of it.
bool set_seen(const AttentionSpec& spec, size_t page_idx, size_t rows, AttentionScratch& scratch) {
  const size_t begin = page_idx * kPageSize;
  size_t most_hidden = 0;
  for (size_t row = 0; row < rows; ++row) {
    const size_t end = std::clamp(scratch.positions[row] + 1, begin, begin + kPageSize);
    const size_t first = std::clamp(first_seen(spec, scratch.positions[row]), begin, end);
    const bool sees_any = first < end;
    scratch.valid[row] = static_cast<uint32_t>(sees_any ? end - begin : 0);
    scratch.hidden[row] = static_cast<uint32_t>(sees_any ? first - begin : 0);
    most_hidden = std::max<size_t>(most_hidden, scratch.hidden[row]);
  }
  return most_hidden > 0;
}

}  // namespace

void attend_segment(const Kernels& kernels, const KvPages& pages, size_t segment, size_t rows, size_t head_dim,
                    AttentionScratch& scratch, const SoftmaxRows& out, const AttentionSpec& spec) {
  std::fill_n(out.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(out.sum, rows, 0.0f);
  std::fill_n(out.acc, rows * head_dim, 0.0f);
  AttentionRows view{scratch.q.data(), scratch.valid.data(), out.max, out.sum, out.acc, rows, head_dim};
  view.softcap = spec.softcap;
  if (pages.type == DType::Q80) quantize_queries(kernels, rows, head_dim, scratch, view);
  const size_t first_page = first_seen(spec, scratch.positions[0]) / kPageSize;
  const size_t last_page = scratch.positions[rows - 1] / kPageSize;
  const size_t end = std::min(last_page + 1, (segment + 1) * kSegmentPages);
  for (size_t page = std::max(first_page, segment * kSegmentPages); page < end; ++page) {
    view.hidden = set_seen(spec, page, rows, scratch) ? scratch.hidden.data() : nullptr;
    const std::byte* next = page_after(pages, page, first_page, last_page);
    view.next_k = next;
    view.next_v = next != nullptr ? next + pages.v_offset : nullptr;
    attend_page(kernels, pages, page, view);
  }
}

void merge_segment(size_t rows, size_t head_dim, const SoftmaxRows& part, const SoftmaxRows& total) {
  for (size_t row = 0; row < rows; ++row) {
    if (part.sum[row] == 0.0f) continue;  // a row among others that see more: alone it would not be here
    const float max = std::max(part.max[row], total.max[row]);
    const float part_scale = std::exp(part.max[row] - max);
    const float total_scale = std::exp(total.max[row] - max);
    total.max[row] = max;
    total.sum[row] = total.sum[row] * total_scale + part.sum[row] * part_scale;
    const float* from = part.acc + row * head_dim;
    float* acc = total.acc + row * head_dim;
    for (size_t d = 0; d < head_dim; ++d) acc[d] = acc[d] * total_scale + from[d] * part_scale;
  }
}

void finish_rows(size_t rows, size_t head_dim, const SoftmaxRows& total) {
  for (size_t row = 0; row < rows; ++row) {
    const float scale = 1.0f / total.sum[row];
    for (size_t d = 0; d < head_dim; ++d) total.acc[row * head_dim + d] *= scale;
  }
}

void attend(const Kernels& kernels, const KvPages& pages, size_t rows, size_t head_dim, AttentionScratch& scratch,
            const AttentionSpec& spec) {
  const SoftmaxRows total = scratch.result();
  const size_t first = segment_of(first_seen(spec, scratch.positions[0]));
  attend_segment(kernels, pages, first, rows, head_dim, scratch, total, spec);
  for (size_t segment = first + 1; segment <= segment_of(scratch.positions[rows - 1]); ++segment) {
    attend_segment(kernels, pages, segment, rows, head_dim, scratch, scratch.segment(), spec);
    merge_segment(rows, head_dim, scratch.segment(), total);
  }
  finish_rows(rows, head_dim, total);
}

}  // namespace dllama
