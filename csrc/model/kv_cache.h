// Keys and values of all sequences, in fixed pages of kPageSize positions from one pool per node.
// The root decides which page holds what; this class only keeps the tables and the memory.
//
// Pool: [num_pages, num_layers, local_kv_heads, (K page, V page)]; page layouts are the kernels' (kernels.h).
#pragma once

#include <cstddef>
#include <set>
#include <vector>

#include "base/os_memory.h"
#include "model/config.h"
#include "ops/attention.h"

namespace dllama {

class KvCache {
 public:
  KvCache(const Kernels& kernels, const NodeConfig& config, const Shard& shard);
  static size_t bytes(const NodeConfig& config, const Shard& shard);

  // Says that page `page_idx` of sequence `slot` is page `page` of the pool. Arguments must be checked (Batch does).
  void set_page(size_t slot, size_t page_idx, int32_t page);
  // Whether the slot has pages for positions 0..position, counting the page indices in `added` as there.
  bool covers(size_t slot, size_t position, const std::set<size_t>& added) const;

  // Writes key and value [head_dim] of one position.
  void store_key(size_t slot, size_t layer, size_t kv_head, size_t position, const float* k);
  void store_value(size_t slot, size_t layer, size_t kv_head, size_t position, const float* v);

  // Pages of one (sequence, layer, KV head) for attend().
  KvPages pages(size_t slot, size_t layer, size_t kv_head) const;

 private:
  std::byte* page(size_t slot, size_t layer, size_t kv_head, size_t position) const;

  const Kernels& kernels_;
  DType type_;
  size_t head_dim_;
  size_t half_bytes_;   // a K or a V page of one head
  size_t layer_bytes_;  // all heads of a layer in one page
  size_t page_bytes_;
  std::vector<std::vector<int32_t>> tables_;  // [slot][page_idx], -1 where nothing was set
  Buffer pool_;
};

}  // namespace dllama
