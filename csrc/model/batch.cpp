#include "model/batch.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/errors.h"
#include "net/wire.h"

namespace dllama {

namespace {

struct FrameCounts {
  uint32_t spans;
  uint32_t pages;
  uint32_t wants;
  uint32_t tokens;
  uint32_t scatter;
};

bool in_range(int32_t value, size_t limit) {
  return value >= 0 && static_cast<size_t>(value) < limit;
}

template <typename T>
std::byte* append(std::byte* out, const std::vector<T>& items) {
  const size_t bytes = items.size() * sizeof(T);
  if (bytes != 0) std::memcpy(out, items.data(), bytes);
  return out + bytes;
}

template <typename T>
const std::byte* take(const std::byte* data, std::vector<T>& items, size_t count) {
  items.resize(count);
  const size_t bytes = count * sizeof(T);
  if (bytes != 0) std::memcpy(items.data(), data, bytes);
  return data + bytes;
}

size_t frame_bytes(const FrameCounts& counts, const NodeConfig& config) {
  return sizeof(FrameCounts) + counts.spans * sizeof(Span) + counts.pages * sizeof(PageChange) +
         counts.wants * sizeof(Want) + wire_bytes(config.wire_type, counts.tokens * config.hidden_size);
}

}  // namespace

void Batch::check(const NodeConfig& config) const {
  require(!spans.empty(), "a step needs at least one span");
  const size_t tokens = num_tokens(config.hidden_size);
  require(tokens <= config.max_tokens, "a step has more tokens than max_tokens");
  require(pages.size() <= config.num_pages, "a step has too many page changes");
  size_t counted = 0;
  std::vector<bool> seen(config.num_slots);
  for (const Span& span : spans) {
    require(in_range(span.slot, config.num_slots), "span slot out of range");
    require(!seen[static_cast<size_t>(span.slot)], "a slot has two spans in one step");
    seen[static_cast<size_t>(span.slot)] = true;
    require(span.num_tokens > 0 && span.first_position >= 0, "span positions out of range");
    counted += static_cast<size_t>(span.num_tokens);
  }
  require(counted == tokens && embeddings.size() == tokens * config.hidden_size, "spans and embeddings disagree");
  for (const PageChange& change : pages) {
    require(in_range(change.slot, config.num_slots) && in_range(change.page, config.num_pages) &&
                in_range(change.page_idx, config.num_pages),
            "page change out of range");
  }
  int32_t last_row = -1;
  for (const Want& want : wants) {
    require(in_range(want.row, tokens) && want.row > last_row, "wanted rows must ascend within the step");
    require(want.kind == WantKind::Logits || want.kind == WantKind::Score, "unknown kind of want");
    require(want.kind == WantKind::Logits || in_range(want.token, config.vocab_size), "token to score out of range");
    last_row = want.row;
  }
}

void Batch::check_pages(const KvCache& cache) const {
  std::map<int32_t, std::set<size_t>> changed;  // page indices by slot
  for (const PageChange& change : pages) changed[change.slot].insert(static_cast<size_t>(change.page_idx));
  for (const Span& span : spans) {
    const auto last = static_cast<size_t>(span.first_position) + static_cast<size_t>(span.num_tokens) - 1;
    require(cache.covers(static_cast<size_t>(span.slot), last, changed[span.slot]),
            "a span has positions without pages");
  }
}

std::vector<std::byte> Batch::to_frame(const Kernels& kernels, DType wire) const {
  const size_t hidden_rows = embeddings.size();
  std::vector<std::byte> frame(sizeof(FrameCounts) + spans.size() * sizeof(Span) + pages.size() * sizeof(PageChange) +
                               wants.size() * sizeof(Want) + wire_bytes(wire, hidden_rows));
  size_t tokens = 0;
  for (const Span& span : spans) tokens += static_cast<size_t>(span.num_tokens);
  const FrameCounts counts{static_cast<uint32_t>(spans.size()), static_cast<uint32_t>(pages.size()),
                           static_cast<uint32_t>(wants.size()), static_cast<uint32_t>(tokens), scatter};
  std::memcpy(frame.data(), &counts, sizeof(counts));
  std::byte* out = append(frame.data() + sizeof(counts), spans);
  out = append(out, pages);
  out = append(out, wants);
  to_wire(kernels, wire, embeddings.data(), hidden_rows, out);
  return frame;
}

Batch Batch::from_frame(const Kernels& kernels, const NodeConfig& config, std::span<const std::byte> frame) {
  FrameCounts counts;
  require(frame.size() >= sizeof(counts), "a step frame is too short");
  std::memcpy(&counts, frame.data(), sizeof(counts));
  require(counts.scatter <= 1, "a step frame has an unknown way of exchange");
  require(counts.tokens <= config.max_tokens && frame.size() == frame_bytes(counts, config),
          "a step frame's counts disagree with its length");
  Batch batch;
  batch.scatter = counts.scatter != 0;
  const std::byte* data = take(frame.data() + sizeof(counts), batch.spans, counts.spans);
  data = take(data, batch.pages, counts.pages);
  data = take(data, batch.wants, counts.wants);
  batch.embeddings.resize(counts.tokens * config.hidden_size);
  from_wire(kernels, config.wire_type, data, batch.embeddings.size(), batch.embeddings.data());
  return batch;
}

size_t Batch::max_frame_bytes(const NodeConfig& config) {
  const auto limit = static_cast<uint32_t>(config.max_tokens);
  const auto pages = static_cast<uint32_t>(config.num_pages);
  return frame_bytes({limit, pages, limit, limit, 0}, config);
}

}  // namespace dllama
