// The specification of attention over one KV page, and of how pages are written.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/generic.h"
#include "kernels/kernels.h"
#include "kernels/levels.h"
#include "quant/codec.h"

namespace dllama {
namespace {

void narrow(float value, float& out) {
  out = value;
}
void narrow(float value, uint16_t& out) {
  out = f32_to_f16(value);
}

// --- pages ---

template <typename Element>
size_t key_index(const Element*, size_t position, size_t d, size_t head_dim) {
  return (position / kKeyGroup * head_dim + d) * kKeyGroup + position % kKeyGroup;
}
size_t key_index(const int8_t*, size_t position, size_t d, size_t head_dim) {
  return ((position / kKeyGroup * head_dim + d / 2 * 2) * kKeyGroup) + position % kKeyGroup * 2 + d % 2;
}
size_t value_index(size_t position, size_t d, size_t head_dim) {  // of Q80 pages
  return (position / 2 * head_dim + d) * 2 + position % 2;
}

template <typename Element>
void store_key(const float* k, size_t head_dim, size_t slot, Element* k_page) {
  for (size_t d = 0; d < head_dim; d++) narrow(k[d], k_page[key_index(k_page, slot, d, head_dim)]);
}

float scale_at(const int8_t* page, size_t position, size_t head_dim) {
  float scale;
  std::memcpy(&scale, page + kPageSize * head_dim + position * sizeof(scale), sizeof(scale));
  return scale;
}

void set_scale(int8_t* page, size_t position, size_t head_dim, float scale) {
  std::memcpy(page + kPageSize * head_dim + position * sizeof(scale), &scale, sizeof(scale));
}

void store_key_q80(const float* k, size_t head_dim, size_t slot, int8_t* k_page) {
  const RowScale row = q80_row_scale(k, head_dim);
  for (size_t d = 0; d < head_dim; d++) k_page[key_index(k_page, slot, d, head_dim)] = q80_quant(k[d], row.inverse);
  set_scale(k_page, slot, head_dim, row.scale);
}

void store_value_q80(const float* v, size_t head_dim, size_t slot, int8_t* v_page) {
  const RowScale row = q80_row_scale(v, head_dim);
  for (size_t d = 0; d < head_dim; d++) v_page[value_index(slot, d, head_dim)] = q80_quant(v[d], row.inverse);
  set_scale(v_page, slot, head_dim, row.scale);
}

// --- attention ---

// round-half-even(x * inverse) in -limit..limit, whatever x is.
int16_t quant(float x, float inverse, int limit) {
  const float product = x * inverse;
  const auto bound = static_cast<float>(limit);
  if (!(product > -bound)) return static_cast<int16_t>(-limit);  // also NaN
  return static_cast<int16_t>(product < bound ? std::nearbyint(product) : bound);
}

float quantize_query(const float* q, size_t head_dim, int16_t* out) {
  float amax = 0.0f;
  for (size_t d = 0; d < head_dim; d++) amax = std::max(amax, std::fabs(q[d]));
  const float scale = amax / static_cast<float>(kMaxQueryQuant);
  const float inverse = scale < FLT_MIN ? 0.0f : 1.0f / scale;
  for (size_t d = 0; d < head_dim; d++) out[d] = quant(q[d], inverse, kMaxQueryQuant);
  return scale;
}

template <typename Element>
float score(const AttentionRows& rows, size_t row, const Element* k_page, size_t position) {
  const float* q = rows.q + row * rows.head_dim;
  float sum = 0.0f;
  for (size_t d = 0; d < rows.head_dim; d++) {
    sum += q[d] * widen(k_page[key_index(k_page, position, d, rows.head_dim)]);
  }
  return sum;
}

float score(const AttentionRows& rows, size_t row, const int8_t* k_page, size_t position) {
  const int16_t* q = rows.q_quants + row * rows.head_dim;
  int sum = 0;
  for (size_t d = 0; d < rows.head_dim; d++) sum += q[d] * k_page[key_index(k_page, position, d, rows.head_dim)];
  return static_cast<float>(sum) * (rows.q_scales[row] * scale_at(k_page, position, rows.head_dim));
}

// Turns scores into exponentials relative to the row's new maximum; returns what it has summed so far is to be
// multiplied with.
float softmax(const AttentionRows& rows, size_t row, float* weights) {
  const size_t valid = rows.valid[row];
  const float new_max = std::max(rows.max[row], *std::max_element(weights, weights + valid));
  const float rescale = std::exp(rows.max[row] - new_max);  // 0 on the first page: exp(-inf)
  float page_sum = 0.0f;
  for (size_t p = 0; p < valid; p++) {
    weights[p] = std::exp(weights[p] - new_max);
    page_sum += weights[p];
  }
  rows.max[row] = new_max;
  rows.sum[row] = rows.sum[row] * rescale + page_sum;
  return rescale;
}

template <typename Element>
void mix(const AttentionRows& rows, size_t row, float* weights, float rescale, const Element* v_page) {
  float* acc = rows.acc + row * rows.head_dim;
  for (size_t d = 0; d < rows.head_dim; d++) {
    float mixed = 0.0f;
    for (size_t p = 0; p < rows.valid[row]; p++) mixed += weights[p] * widen(v_page[p * rows.head_dim + d]);
    acc[d] = acc[d] * rescale + mixed;
  }
}

void mix(const AttentionRows& rows, size_t row, float* weights, float rescale, const int8_t* v_page) {
  const size_t valid = rows.valid[row];
  for (size_t p = 0; p < valid; p++) weights[p] *= scale_at(v_page, p, rows.head_dim);
  const float scale = *std::max_element(weights, weights + valid) / static_cast<float>(kMaxWeightQuant);
  const float inverse = scale < FLT_MIN ? 0.0f : 1.0f / scale;
  float* acc = rows.acc + row * rows.head_dim;
  for (size_t d = 0; d < rows.head_dim; d++) {
    int mixed = 0;
    for (size_t p = 0; p < valid; p++) {
      mixed += quant(weights[p], inverse, kMaxWeightQuant) * v_page[value_index(p, d, rows.head_dim)];
    }
    acc[d] = acc[d] * rescale + static_cast<float>(mixed) * scale;
  }
}

template <typename Element>
void attend(const AttentionRows& rows, const Element* k_page, const Element* v_page) {
  for (size_t row = 0; row < rows.rows; row++) {
    if (rows.valid[row] == 0) continue;
    float weights[kPageSize];
    const size_t hidden = rows.hidden != nullptr ? rows.hidden[row] : 0;
    std::fill_n(weights, hidden, -std::numeric_limits<float>::infinity());
    for (size_t p = hidden; p < rows.valid[row]; p++) {
      weights[p] = score(rows, row, k_page, p);
      if (rows.softcap > 0.0f) weights[p] = soft_capped(weights[p], rows.softcap);
    }
    const float rescale = softmax(rows, row, weights);
    mix(rows, row, weights, rescale, v_page);
  }
}

}  // namespace

void install_generic_attention(Kernels& table) {
  table.store_key_f16 = store_key<uint16_t>;
  table.store_key_f32 = store_key<float>;
  table.store_key_q80 = store_key_q80;
  table.store_value_q80 = store_value_q80;
  table.quantize_query = quantize_query;
  table.attend_f16 = attend<uint16_t>;
  table.attend_f32 = attend<float>;
  table.attend_q80 = attend<int8_t>;
}

}  // namespace dllama
