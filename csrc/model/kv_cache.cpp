#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>

namespace dllama {

namespace {

// Bytes of a key or value as pages hold it.
size_t position_bytes(const NodeConfig& config) {
  switch (config.kv_type) {
    case DType::F16:
      return config.head_dim * sizeof(uint16_t);
    case DType::Q80:
      return config.head_dim + sizeof(float);  // a scale for all of it
    default:
      return config.head_dim * sizeof(float);
  }
}

size_t bytes_of_half(const NodeConfig& config) {
  return kPageSize * position_bytes(config);
}

}  // namespace

size_t KvCache::bytes(const NodeConfig& config, const Shard& shard) {
  return config.num_pages * config.layers.size() * shard.num_kv_heads * 2 * bytes_of_half(config);
}

KvCache::KvCache(const Kernels& kernels, const NodeConfig& config, const Shard& shard)
    : kernels_(kernels),
      type_(config.kv_type),
      head_dim_(config.head_dim),
      half_bytes_(bytes_of_half(config)),
      layer_bytes_(shard.num_kv_heads * 2 * half_bytes_),
      page_bytes_(config.layers.size() * layer_bytes_),
      tables_(config.num_slots),
      pool_(bytes(config, shard)) {}

void KvCache::set_page(size_t slot, size_t page_idx, int32_t page) {
  auto& table = tables_[slot];
  if (table.size() <= page_idx) table.resize(page_idx + 1, -1);
  table[page_idx] = page;
}

bool KvCache::covers(size_t slot, size_t position, const std::set<size_t>& added) const {
  const auto& table = tables_[slot];
  const size_t count = position / kPageSize + 1;
  if (count > table.size() + added.size()) return false;
  for (size_t page_idx = 0; page_idx < count; ++page_idx) {
    const bool is_set = page_idx < table.size() && table[page_idx] >= 0;
    if (!is_set && !added.contains(page_idx)) return false;
  }
  return true;
}

std::byte* KvCache::page(size_t slot, size_t layer, size_t kv_head, size_t position) const {
  const auto page = static_cast<size_t>(tables_[slot][position / kPageSize]);
  return pool_.data() + page * page_bytes_ + layer * layer_bytes_ + kv_head * 2 * half_bytes_;
}

void KvCache::store_key(size_t slot, size_t layer, size_t kv_head, size_t position, const float* k) {
  std::byte* keys = page(slot, layer, kv_head, position);
  const size_t at = position % kPageSize;
  if (type_ == DType::F16) {
    kernels_.store_key_f16(k, head_dim_, at, reinterpret_cast<uint16_t*>(keys));
  } else if (type_ == DType::Q80) {
    kernels_.store_key_q80(k, head_dim_, at, reinterpret_cast<int8_t*>(keys));
  } else {
    kernels_.store_key_f32(k, head_dim_, at, reinterpret_cast<float*>(keys));
  }
}

void KvCache::store_value(size_t slot, size_t layer, size_t kv_head, size_t position, const float* v) {
  std::byte* values = page(slot, layer, kv_head, position) + half_bytes_;
  const size_t at = position % kPageSize;
  if (type_ == DType::F16) {
    kernels_.f32_to_f16(v, reinterpret_cast<uint16_t*>(values) + at * head_dim_, head_dim_);
  } else if (type_ == DType::Q80) {
    kernels_.store_value_q80(v, head_dim_, at, reinterpret_cast<int8_t*>(values));
  } else {
    std::memcpy(reinterpret_cast<float*>(values) + at * head_dim_, v, head_dim_ * sizeof(float));
  }
}

KvPages KvCache::pages(size_t slot, size_t layer, size_t kv_head) const {
  const size_t head_bytes = 2 * half_bytes_;
  const bool is_last = (kv_head + 1) * head_bytes == layer_bytes_;
  const std::byte* pool = pool_.data() + layer * layer_bytes_ + kv_head * head_bytes;
  return {type_, pool, page_bytes_, half_bytes_, tables_[slot].data(), is_last ? 0 : head_bytes};
}

}  // namespace dllama
