#include "ops/attention.h"

#include <algorithm>
#include <limits>

namespace dllama {

AttentionScratch::AttentionScratch(size_t max_rows, size_t head_dim)
    : q(max_rows * head_dim),
      acc(max_rows * head_dim),
      max(max_rows),
      sum(max_rows),
      valid(max_rows),
      q_quants(max_rows * head_dim),
      q_scales(max_rows),
      positions(max_rows) {}

namespace {

const std::byte* page_at(const KvPages& pages, size_t page_idx) {
  return pages.pool + static_cast<size_t>(pages.table[page_idx]) * pages.page_bytes;
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

}  // namespace

void attend(const Kernels& kernels, const KvPages& pages, size_t rows, size_t head_dim, AttentionScratch& scratch) {
  std::fill_n(scratch.max.begin(), rows, -std::numeric_limits<float>::infinity());
  std::fill_n(scratch.sum.begin(), rows, 0.0f);
  std::fill_n(scratch.acc.begin(), rows * head_dim, 0.0f);
  AttentionRows view{scratch.q.data(),   scratch.valid.data(), scratch.max.data(), scratch.sum.data(),
                     scratch.acc.data(), rows,                 head_dim};
  if (pages.type == DType::Q80) quantize_queries(kernels, rows, head_dim, scratch, view);
  const size_t last_page = scratch.positions[rows - 1] / kPageSize;
  for (size_t page = 0; page <= last_page; ++page) {
    const size_t first = page * kPageSize;
    for (size_t row = 0; row < rows; ++row) {
      const size_t seen = scratch.positions[row] + 1;
      scratch.valid[row] = static_cast<uint32_t>(seen <= first ? 0 : std::min(seen - first, kPageSize));
    }
    view.next_k = page < last_page ? page_at(pages, page + 1) : nullptr;
    view.next_v = page < last_page ? page_at(pages, page + 1) + pages.v_offset : nullptr;
    attend_page(kernels, pages, page, view);
  }
  for (size_t row = 0; row < rows; ++row) {
    const float scale = 1.0f / scratch.sum[row];
    for (size_t d = 0; d < head_dim; ++d) scratch.acc[row * head_dim + d] *= scale;
  }
}

}  // namespace dllama
