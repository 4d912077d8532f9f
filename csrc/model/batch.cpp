#include "model/batch.h"

#include <cmath>
#include <map>
#include <set>

#include "base/errors.h"
#include "net/bytes.h"
#include "net/wire.h"

namespace dllama {

namespace {

struct FrameCounts {
  uint32_t spans;
  uint32_t pages;
  uint32_t wants;
  uint32_t tokens;
  uint32_t queries;
  uint32_t query_ids;  // of all queries together
  uint32_t scatter;
};

struct QueryHeader {
  uint32_t count;
  uint32_t limit;
  float temperature;
  uint32_t num_ids;
};

constexpr size_t kSetNodeBytes = 64;  // of a page index while check_pages() looks at it

bool in_range(int32_t value, size_t limit) {
  return value >= 0 && static_cast<size_t>(value) < limit;
}

size_t frame_bytes(const FrameCounts& counts, const NodeConfig& config) {
  return sizeof(FrameCounts) + counts.spans * sizeof(Span) + counts.pages * sizeof(PageChange) +
         counts.wants * sizeof(Want) + counts.queries * sizeof(QueryHeader) + counts.query_ids * sizeof(int32_t) +
         wire_bytes(config.wire_type, counts.tokens * config.hidden_size);
}

void check_query(const CandidateQuery& query, size_t vocab_size) {
  require(query.count >= 1 && query.count <= vocab_size, "a query asks for 1 to vocab_size candidates");
  require(query.limit <= vocab_size, "a query's limit is at most vocab_size");
  require(query.temperature > 0.0f && std::isfinite(query.temperature), "a query's temperature must be positive");
  int32_t last = -1;
  for (const int32_t id : query.ids) {
    require(id > last && in_range(id, vocab_size), "a query's ids must ascend within the vocabulary");
    last = id;
  }
}

std::vector<CandidateQuery> take_queries(ByteReader& data, const FrameCounts& counts) {
  const auto headers = data.take<QueryHeader>(counts.queries);
  const auto ids = data.take<int32_t>(counts.query_ids);
  std::vector<CandidateQuery> queries;
  size_t first = 0;
  for (const QueryHeader& header : headers) {
    require(header.num_ids <= ids.size() - first, "a step frame's queries disagree with its counts");
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(first);
    queries.push_back({header.count, header.limit, header.temperature, {begin, begin + header.num_ids}});
    first += header.num_ids;
  }
  require(first == ids.size(), "a step frame's queries disagree with its counts");
  return queries;
}

// The memory they take, here and in every answer, is what the node was planned with.
void check_queries(const std::vector<CandidateQuery>& queries, size_t vocab_size) {
  size_t num_candidates = 0, num_ids = 0;
  for (const CandidateQuery& query : queries) {
    check_query(query, vocab_size);
    num_candidates += query.count;
    num_ids += query.ids.size();
  }
  require(num_candidates <= kMaxCandidates, "a step's queries ask for too many candidates");
  require(num_ids <= kMaxQueryIds, "a step's queries name too many ids");
}

}  // namespace

void check_exchange(const NodeConfig& config, bool scatter) {
  require(!scatter || !config.has_output_norms(), "a model that norms sums exchanges them directly");
}

void Batch::check(const NodeConfig& config) const {
  require(!spans.empty(), "a step needs at least one span");
  const size_t tokens = num_tokens(config.hidden_size);
  require(tokens <= config.max_tokens, "a step has more tokens than max_tokens");
  check_exchange(config, scatter);
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
  int32_t num_queries = 0;
  size_t num_rows = 0;
  for (const Want& want : wants) {
    require(in_range(want.row, tokens) && want.row > last_row, "wanted rows must ascend within the step");
    const bool is_candidates = want.kind == WantKind::Candidates;
    require(want.kind == WantKind::Logits || want.kind == WantKind::Score || is_candidates, "unknown kind of want");
    require(want.kind != WantKind::Score || in_range(want.value, config.vocab_size), "token to score out of range");
    require(!is_candidates || want.value == num_queries++, "wants of candidates name the queries in their order");
    if (want.kind != WantKind::Score) ++num_rows;
    last_row = want.row;
  }
  require(static_cast<size_t>(num_queries) == queries.size(), "every query needs a want of candidates");
  require(num_rows <= config.max_rows, "a step wants logits or candidates of more rows than max_rows");
  check_queries(queries, config.vocab_size);
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

std::vector<std::byte> Batch::to_frame(const Kernels& kernels, const NodeConfig& config) const {
  std::vector<QueryHeader> headers;
  std::vector<int32_t> ids;
  for (const CandidateQuery& query : queries) {
    headers.push_back({static_cast<uint32_t>(query.count), static_cast<uint32_t>(query.limit), query.temperature,
                       static_cast<uint32_t>(query.ids.size())});
    ids.insert(ids.end(), query.ids.begin(), query.ids.end());
  }
  FrameCounts counts{};
  counts.spans = static_cast<uint32_t>(spans.size());
  counts.pages = static_cast<uint32_t>(pages.size());
  counts.wants = static_cast<uint32_t>(wants.size());
  counts.tokens = static_cast<uint32_t>(num_tokens(config.hidden_size));
  counts.queries = static_cast<uint32_t>(headers.size());
  counts.query_ids = static_cast<uint32_t>(ids.size());
  counts.scatter = scatter;
  std::vector<std::byte> frame(frame_bytes(counts, config));
  ByteWriter out(frame);
  out.put_one(counts);
  out.put(spans);
  out.put(pages);
  out.put(wants);
  out.put(headers);
  out.put(ids);
  to_wire(kernels, config.wire_type, embeddings.data(), embeddings.size(), out.rest().data());
  return frame;
}

Batch Batch::from_frame(const Kernels& kernels, const NodeConfig& config, std::span<const std::byte> frame) {
  ByteReader data(frame);
  const auto counts = data.take_one<FrameCounts>();
  require(counts.scatter <= 1, "a step frame has an unknown way of exchange");
  require(counts.tokens <= config.max_tokens && frame.size() == frame_bytes(counts, config),
          "a step frame's counts disagree with its length");
  Batch batch;
  batch.scatter = counts.scatter != 0;
  batch.spans = data.take<Span>(counts.spans);
  batch.pages = data.take<PageChange>(counts.pages);
  batch.wants = data.take<Want>(counts.wants);
  batch.queries = take_queries(data, counts);
  batch.embeddings.resize(counts.tokens * config.hidden_size);
  from_wire(kernels, config.wire_type, data.rest().data(), batch.embeddings.size(), batch.embeddings.data());
  return batch;
}

size_t Batch::bytes(const NodeConfig& config) {
  return max_frame_bytes(config) + config.max_tokens * config.hidden_size * sizeof(float) +
         2 * kMaxQueryIds * sizeof(int32_t) + config.num_pages * (sizeof(PageChange) + kSetNodeBytes);
}

size_t Batch::max_frame_bytes(const NodeConfig& config) {
  const auto tokens = static_cast<uint32_t>(config.max_tokens);
  const auto pages = static_cast<uint32_t>(config.num_pages);
  const auto rows = static_cast<uint32_t>(config.max_rows);
  return frame_bytes({tokens, pages, tokens, tokens, rows, kMaxQueryIds, 0}, config);
}

}  // namespace dllama
