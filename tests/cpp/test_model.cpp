// Nodes as a whole: one rank against several over socket pairs, chunks of any size, neighbours, and hostile batches.
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/errors.h"
#include "base/os_memory.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "model/experts.h"
#include "model/node.h"
#include "ops/sample.h"

using namespace dllama;

namespace {

constexpr size_t kHidden = 128, kHeadDim = 16, kHeads = 8, kKvHeads = 2, kFfn = 160, kVocab = 77, kExperts = 11;

// Any cut of 8 query heads (units of two: 2 x 16 = 32 outputs), 5 blocks of FFN columns and 77 rows. The two KV heads
// are replicated where their query heads are split; the last of five ranks has no heads at all.
std::vector<Shard> make_shards(size_t ranks) {
  if (ranks == 1) return {{kHeads, kKvHeads, kFfn, 0, kVocab}};
  if (ranks == 2) return {{4, 1, 96, 0, 32}, {4, 1, 64, 32, kVocab}};
  if (ranks == 3) return {{4, 1, 32, 0, 32}, {2, 1, 96, 32, 64}, {2, 1, 32, 64, kVocab}};
  if (ranks == 4) return {{2, 1, 32, 0, 20}, {2, 1, 32, 20, 40}, {2, 1, 64, 40, 60}, {2, 1, 32, 60, kVocab}};
  return {{2, 1, 32, 0, 16}, {2, 1, 32, 16, 32}, {2, 1, 32, 32, 48}, {2, 1, 32, 48, 64}, {0, 0, 32, 64, kVocab}};
}

NodeConfig make_config(size_t ranks, DType weights, DType wire, size_t threads = 2) {
  NodeConfig config;
  config.hidden_size = kHidden;
  config.head_dim = kHeadDim;
  config.vocab_size = kVocab;
  config.rms_norm_eps = 1e-5f;
  for (size_t j = 0; j < kHeadDim / 2; ++j) {
    config.rope_frequencies.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(j) / kHeadDim));
  }
  config.layers.resize(2);
  config.layers[1].qk_norm = QkNorm::Head;
  config.weight_type = weights;
  config.kv_type = DType::F32;
  config.wire_type = wire;
  config.shards = make_shards(ranks);
  for (size_t rank = 1, heads = 0; rank < ranks; ++rank) {
    heads += config.shards[rank - 1].num_heads;
    config.shards[rank].kv_head_begin = heads / (kHeads / kKvHeads);
  }
  config.num_threads = threads;
  config.max_tokens = 200;
  config.num_pages = 12;
  config.max_rows = 200;
  config.num_slots = 3;
  return config;
}

// The same with all that a family may ask for.
NodeConfig make_rich_config(size_t ranks, DType weights, DType wire) {
  NodeConfig config = make_config(ranks, weights, wire);
  config.layers.resize(3);
  config.layers[0].qk_norm = config.layers[2].qk_norm = QkNorm::All;
  config.layers[0].has_input_norms = false;
  for (const size_t layer : {0, 1}) config.layers[layer].has_output_norms = true;
  for (const size_t layer : {0, 1}) config.layers[layer].has_qkv_bias = true;
  config.layers[0].window = 70;
  config.layers[1].window = 5;
  config.layers[1].has_local_rope = true;
  config.rope_frequencies.resize(kHeadDim / 2 - 2);
  config.rope_factor = 1.2f;
  for (const float frequency : config.rope_frequencies) config.local_rope_frequencies.push_back(std::sqrt(frequency));
  config.activation = Activation::GeluTanh;
  config.embedding_multiplier = 0.7f;
  config.attention_multiplier = 0.2f;
  config.residual_multiplier = 0.6f;
  config.logits_multiplier = 0.5f;
  config.attention_softcap = 5.0f;
  config.logits_softcap = 7.0f;
  if (weights == DType::Q40) config.q80_tensors = {"layers.0.v_proj", "layers.1.gate_proj", "layers.2.down_proj"};
  return config;
}

// The first layer has experts, each of the FFN's size.
NodeConfig make_expert_config(size_t ranks, DType weights, DType wire, size_t threads = 2) {
  NodeConfig config = make_config(ranks, weights, wire, threads);
  config.layers[0].has_experts = true;
  config.num_experts = kExperts;
  config.num_experts_per_tok = 3;
  for (Shard& shard : config.shards) shard.expert_intermediate_size = shard.intermediate_size;
  return config;
}

std::vector<float> random_values(size_t n, size_t seed, float scale) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

// The whole model's rows of a tensor, the same for every rank: [rows, cols].
struct Whole {
  std::vector<float> values;
  size_t cols;
};

bool ends_with(const std::string& name, const char* end) {
  return name.ends_with(end);
}

size_t vector_size(const std::string& name, const NodeConfig& config) {
  const bool is_query = ends_with(name, "q_norm") || ends_with(name, "q_bias");
  if (!is_query && (name == "norm" || ends_with(name, "layernorm") || ends_with(name, "output_norm"))) return kHidden;
  const LayerSpec& layer = config.layers[static_cast<size_t>(name[std::strlen("layers.")] - '0')];
  if (ends_with(name, "norm") && layer.qk_norm == QkNorm::Head) return kHeadDim;
  return (is_query ? kHeads : kKvHeads) * kHeadDim;
}

bool is_vector(const std::string& name) {
  return ends_with(name, "norm") || ends_with(name, "_bias");
}

Whole whole_tensor(const std::string& name, const NodeConfig& config) {
  const size_t seed = std::hash<std::string>{}(name);
  if (is_vector(name)) {
    auto values = random_values(vector_size(name, config), seed, 0.2f);
    for (float& v : values) v += ends_with(name, "norm") ? 1.0f : 0.0f;
    return {values, values.size()};
  }
  size_t rows = kHidden, cols = kHidden;
  if (ends_with(name, "q_proj")) rows = kHeads * kHeadDim;
  if (ends_with(name, "k_proj") || ends_with(name, "v_proj")) rows = kKvHeads * kHeadDim;
  if (ends_with(name, "gate_proj") || ends_with(name, "up_proj")) rows = kFfn;
  if (ends_with(name, "o_proj")) cols = kHeads * kHeadDim;
  if (ends_with(name, "down_proj")) cols = kFfn;
  if (name == "lm_head") rows = kVocab;
  if (ends_with(name, "router")) rows = kExperts;
  return {random_values(rows * cols, seed, 1.5f / std::sqrt(static_cast<float>(cols))), cols};
}

std::vector<std::byte> canonical(DType type, const std::vector<float>& values, size_t cols) {
  std::vector<std::byte> bytes(values.size() / cols * row_bytes(type, cols));
  if (type == DType::F32) std::memcpy(bytes.data(), values.data(), bytes.size());
  if (type == DType::F16) kernels().f32_to_f16(values.data(), reinterpret_cast<uint16_t*>(bytes.data()), values.size());
  if (type == DType::Q40) {
    kernels().quantize_q40(values.data(), reinterpret_cast<BlockQ40*>(bytes.data()), values.size() / kBlockSize);
  }
  if (type == DType::Q80) {
    kernels().quantize_q80(values.data(), reinterpret_cast<BlockQ80*>(bytes.data()), values.size() / kBlockSize);
  }
  return bytes;
}

// Where a rank's slice of a tensor begins: (first row, first column).
std::pair<size_t, size_t> slice_start(const std::string& name, const NodeConfig& config, size_t rank) {
  size_t heads = 0, ffn = 0;
  for (size_t r = 0; r < rank; ++r) {
    heads += config.shards[r].num_heads;
    ffn += config.shards[r].intermediate_size;
  }
  if (is_vector(name)) {
    const size_t size = vector_size(name, config);
    const size_t kv_head = config.shards[rank].kv_head_begin;
    if (size == kHeads * kHeadDim && name.find(".q_") != std::string::npos) return {0, heads * kHeadDim};
    return {0, size == kKvHeads * kHeadDim ? kv_head * kHeadDim : 0};
  }
  if (ends_with(name, "q_proj")) return {heads * kHeadDim, 0};
  if (ends_with(name, "k_proj") || ends_with(name, "v_proj")) return {heads / (kHeads / kKvHeads) * kHeadDim, 0};
  if (ends_with(name, "gate_proj") || ends_with(name, "up_proj")) return {ffn, 0};
  if (ends_with(name, "o_proj")) return {0, heads * kHeadDim};
  if (ends_with(name, "down_proj")) return {0, ffn};
  if (name == "lm_head") return {config.shards[rank].vocab_begin, 0};
  return {0, 0};
}

void load_slices(Node& node, size_t rank) {
  for (const std::string& name : node.weights().names()) {
    const Whole whole = whole_tensor(name, node.config());
    const auto shape = node.weights().shape(name);
    const size_t rows = is_vector(name) ? 1 : shape[0], cols = shape.back();
    const auto [first_row, first_col] = slice_start(name, node.config(), rank);
    std::vector<float> slice;
    for (size_t row = 0; row < rows; ++row) {
      const float* start = whole.values.data() + (first_row + row) * whole.cols + first_col;
      slice.insert(slice.end(), start, start + cols);
    }
    const auto bytes = canonical(is_vector(name) ? DType::F32 : node.config().matrix_type(name), slice, cols);
    node.load_rows(name, 0, rows, bytes.data(), bytes.size());
  }
}

// A group of nodes in one process, rank 0 driven by the test, the others following in threads.
class Cluster {
 public:
  explicit Cluster(const NodeConfig& config) {
    const size_t size = config.shards.size();
    std::vector<std::vector<int>> mesh(size, std::vector<int>(size, -1));
    for (size_t a = 0; a < size; ++a) {
      for (size_t b = a + 1; b < size; ++b) {
        int ends[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
        mesh[a][b] = ends[0];
        mesh[b][a] = ends[1];
      }
    }
    for (size_t rank = 0; rank < size; ++rank) {
      std::vector<int> fds;
      for (size_t peer = 0; peer < size; ++peer) {
        if (peer != rank) fds.push_back(mesh[rank][peer]);
      }
      groups_.push_back(std::make_shared<Group>(rank, fds));
      for (const int fd : fds) close(fd);
      nodes_.push_back(std::make_unique<Node>(config, groups_.back()));
      load_slices(*nodes_.back(), rank);
    }
    for (size_t rank = 1; rank < size; ++rank) {
      followers_.emplace_back([this, rank] {
        try {
          nodes_[rank]->follow();
        } catch (const GroupFailed&) {  // the root left without a word: some tests do
          is_lost_[rank] = true;
        }
      });
    }
  }
  ~Cluster() {
    try {
      if (nodes_[0]) root().stop();
    } catch (const GroupFailed&) {
    }
    for (auto& thread : followers_) thread.join();
  }
  // Ends the root without a word, and waits for the others to notice.
  void lose_root() {
    nodes_[0].reset();
    groups_[0].reset();
    for (auto& thread : followers_) thread.join();
    followers_.clear();
  }
  bool is_lost(size_t rank) const { return is_lost_[rank]; }
  Node& root() { return *nodes_[0]; }
  Group& group(size_t rank) { return *groups_[rank]; }

 private:
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::array<std::atomic<bool>, 8> is_lost_{};  // by rank: follow() threw
  std::vector<std::thread> followers_;
};

std::vector<float> embedding(size_t token) {
  return random_values(kHidden, 1000 + token, 1.0f);
}

// Feeds `tokens` to `slot` (its pages are 4 * slot + index) in chunks, and gives the logits of all positions.
std::vector<float> logits_of(Node& node, const std::vector<size_t>& tokens, size_t chunk, int32_t slot = 0) {
  std::vector<float> logits;
  for (size_t first = 0; first < tokens.size(); first += chunk) {
    const size_t count = std::min(chunk, tokens.size() - first);
    Batch batch;
    batch.spans = {{slot, static_cast<int32_t>(first), static_cast<int32_t>(count)}};
    for (size_t t = 0; t < count; ++t) {
      const auto row = embedding(tokens[first + t]);
      batch.embeddings.insert(batch.embeddings.end(), row.begin(), row.end());
      batch.wants.push_back({static_cast<int32_t>(t), WantKind::Logits, 0});
    }
    for (size_t page = first / kPageSize; page <= (first + count - 1) / kPageSize; ++page) {
      batch.pages.push_back({slot, static_cast<int32_t>(page), 4 * slot + static_cast<int32_t>(page)});
    }
    const Outputs& outputs = node.step(std::move(batch));
    for (size_t row = 0; row < count; ++row) {
      const float* start = outputs.logits->as<float>() + row * outputs.stride;
      logits.insert(logits.end(), start, start + kVocab);
    }
  }
  return logits;
}

// The same in one step of which nothing is wanted.
void run_prompt(Node& node, const std::vector<size_t>& tokens) {
  Batch batch;
  batch.spans = {{0, 0, static_cast<int32_t>(tokens.size())}};
  for (const size_t token : tokens) {
    const auto row = embedding(token);
    batch.embeddings.insert(batch.embeddings.end(), row.begin(), row.end());
  }
  for (int32_t page = 0; page <= static_cast<int32_t>((tokens.size() - 1) / kPageSize); ++page) {
    batch.pages.push_back({0, page, page});
  }
  node.step(std::move(batch));
}

std::vector<size_t> some_tokens(size_t count) {
  std::vector<size_t> tokens;
  for (size_t i = 0; i < count; ++i) tokens.push_back((i * 31 + 7) % kVocab);
  return tokens;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0.0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) largest = std::max(largest, std::abs(double{a[i]} - b[i]));
  return largest;
}

}  // namespace

// F32 throughout: only the order of summation differs between node counts. Logits are about 1.5 * 8 = 12 at most and
// pass some 10 sums of up to 160 terms, so 1e-4 is far above rounding and far below any mistake in slicing.
TEST(several_ranks_compute_what_one_computes) {
  const auto tokens = some_tokens(150);
  Cluster one(make_config(1, DType::F32, DType::F32));
  const auto expected = logits_of(one.root(), tokens, 150);
  for (const size_t ranks : {2, 3, 4, 5}) {
    const check::Scope scope("ranks", ranks);
    Cluster cluster(make_config(ranks, DType::F32, DType::F32));
    CHECK_NEAR(largest_difference(logits_of(cluster.root(), tokens, 150), expected), 0.0, 1e-4);
    CHECK_NEAR(largest_difference(logits_of(cluster.root(), tokens, 3, 1), expected), 0.0, 1e-4);
  }
}

// The same of a model with all features, whose sums are normed. Caps and multipliers keep logits below 7.
TEST(features_are_the_same_on_several_ranks) {
  const auto tokens = some_tokens(150);
  Cluster one(make_rich_config(1, DType::F32, DType::F32));
  const auto expected = logits_of(one.root(), tokens, 150);
  for (const size_t ranks : {2, 3, 4, 5}) {
    const check::Scope scope("ranks", ranks);
    Cluster cluster(make_rich_config(ranks, DType::F32, DType::F32));
    CHECK_NEAR(largest_difference(logits_of(cluster.root(), tokens, 150), expected), 0.0, 1e-4);
    CHECK_NEAR(largest_difference(logits_of(cluster.root(), tokens, 3, 1), expected), 0.0, 1e-4);
  }
}

TEST(features_have_the_same_bits_in_any_chunks) {
  const auto tokens = some_tokens(140);
  for (const size_t ranks : {1, 3}) {
    Cluster cluster(make_rich_config(ranks, DType::Q40, DType::Q80));
    const auto expected = logits_of(cluster.root(), tokens, 140);
    for (const size_t chunk : {1, 21, 139}) {
      const check::Scope scope("ranks", ranks, "chunk", chunk);
      CHECK(check::same_bits(logits_of(cluster.root(), tokens, chunk), expected));
    }
  }
}

TEST(sums_that_are_normed_are_exchanged_directly) {
  Cluster cluster(make_rich_config(3, DType::Q40, DType::Q80));
  CHECK_THROWS(cluster.root().set_scatter_from(1), InvalidArgument, "directly");
  CHECK_THROWS(cluster.root().probe(1, true), InvalidArgument, "directly");
  CHECK(cluster.root().probe(1, false) > 0.0);
  Batch batch;  // as a root that is hostile might send it
  batch.spans = {{0, 0, 1}};
  batch.embeddings.resize(kHidden);
  batch.check(cluster.root().config());
  batch.scatter = true;
  CHECK_THROWS(batch.check(cluster.root().config()), InvalidArgument, "directly");
}

// Of two ranks with the same KV head the second has nothing to add to sums over keys.
TEST(shared_kv_heads_are_counted_once) {
  const NodeConfig config = make_config(5, DType::F32, DType::F32);
  CHECK_EQ(config.num_heads(), kHeads);
  CHECK_EQ(config.num_kv_heads(), kKvHeads);
  const std::vector<size_t> shared{0, 1, 0, 1, 0};
  for (size_t rank = 0; rank < shared.size(); ++rank) CHECK_EQ(config.shared_kv_heads(rank), shared[rank]);
}

TEST(matrix_types_go_by_name) {
  NodeConfig config = make_config(1, DType::Q40, DType::Q80);
  config.q80_tensors = {"layers.1.experts.down_proj", "lm_head"};
  CHECK(config.matrix_type("layers.1.experts.17.down_proj") == DType::Q80);
  CHECK(config.matrix_type("layers.1.experts.17.up_proj") == DType::Q40);
  CHECK(config.matrix_type("layers.11.experts.1.down_proj") == DType::Q40);
  CHECK(config.matrix_type("lm_head") == DType::Q80);
  CHECK(config.matrix_type("layers.1.router") == DType::F32);
}

// Which way the ranks exchange their sums, in how many pieces a step is cut for it, and how it is cut into chunks: no
// bit depends on it. With 5 ranks one owns no block of the hidden size.
TEST(scatter_gives_the_bits_of_direct_exchange) {
  const auto tokens = some_tokens(140);
  for (const DType wire : {DType::F32, DType::F16, DType::Q80}) {
    for (const size_t ranks : {2, 3, 4, 5}) {
      const check::Scope scope("wire", static_cast<int>(wire), "ranks", ranks);
      const DType weights = wire == DType::F32 ? DType::F32 : DType::Q40;
      Cluster cluster(make_config(ranks, weights, wire, ranks == 2 ? 2 : 1));
      const auto expected = logits_of(cluster.root(), tokens, 140);
      for (const size_t chunk : {21, 139}) {  // the second leaves a step of one token
        cluster.root().set_scatter_from(0);
        CHECK(check::same_bits(logits_of(cluster.root(), tokens, chunk), expected));
        cluster.root().set_scatter_from(1);
        CHECK(check::same_bits(logits_of(cluster.root(), tokens, chunk), expected));
      }
    }
  }
}

// The same of experts, whose tokens are gathered from all of a step or from a few.
TEST(experts_on_several_ranks) {
  const auto tokens = some_tokens(150);
  Cluster one(make_expert_config(1, DType::F32, DType::F32));
  const auto expected = logits_of(one.root(), tokens, 150);
  for (const size_t ranks : {2, 3, 5}) {
    const check::Scope scope("ranks", ranks);
    Cluster cluster(make_expert_config(ranks, DType::F32, DType::F32));
    CHECK_NEAR(largest_difference(logits_of(cluster.root(), tokens, 150), expected), 0.0, 1e-4);
  }
}

TEST(experts_give_the_same_bits_in_chunks_of_any_size_and_by_any_exchange) {
  const auto tokens = some_tokens(140);
  for (const size_t ranks : {1, 3}) {
    for (const size_t threads : {1, 3}) {
      const check::Scope scope("ranks", ranks, "threads", threads);
      Cluster cluster(make_expert_config(ranks, DType::Q40, DType::Q80, threads));
      const auto expected = logits_of(cluster.root(), tokens, 140);
      for (const size_t chunk : {1, 21, 139}) {
        for (const size_t scatter_from : {0, 1}) {
          cluster.root().set_scatter_from(scatter_from);
          CHECK(check::same_bits(logits_of(cluster.root(), tokens, chunk), expected));
        }
      }
      CHECK(cluster.root().time_products(140) > 0.0);
    }
  }
}

TEST(scatter_saves_bytes_from_three_ranks_on) {
  const auto tokens = some_tokens(140);
  Cluster cluster(make_config(4, DType::Q40, DType::Q80, 1));
  uint64_t bytes[2];
  for (const size_t scatter : {0, 1}) {
    const uint64_t before = cluster.group(1).counters().sent_bytes;
    cluster.root().set_scatter_from(scatter);
    run_prompt(cluster.root(), tokens);
    bytes[scatter] = cluster.group(1).counters().sent_bytes - before;
  }
  CHECK(static_cast<double>(bytes[1]) < 0.6 * static_cast<double>(bytes[0]));
}

TEST(probes_of_either_way_leave_sequences_alone) {
  const auto tokens = some_tokens(70);
  Cluster cluster(make_config(3, DType::Q40, DType::Q80));
  const auto expected = logits_of(cluster.root(), tokens, 70);
  for (const bool scatter : {false, true}) {
    for (const size_t count : {1, 200}) CHECK(cluster.root().probe(count, scatter) > 0.0);
  }
  CHECK_THROWS(cluster.root().probe(0, false), InvalidArgument, "tokens");
  CHECK_THROWS(cluster.root().probe(201, true), InvalidArgument, "tokens");
  CHECK(check::same_bits(logits_of(cluster.root(), tokens, 70), expected));
}

// Quantized weights and wire: every exchange adds at most half a Q80 step (1/254 of a block's largest value) per rank,
// and so does every activation; over 4 exchanges that stays far below a tenth of the logits' spread (about 1.5).
TEST(quantized_ranks_stay_close_to_one) {
  const auto tokens = some_tokens(80);
  for (const DType weights : {DType::Q40, DType::Q80, DType::F16}) {
    Cluster one(make_config(1, weights, DType::Q80));
    const auto expected = logits_of(one.root(), tokens, 80);
    Cluster three(make_config(3, weights, DType::Q80));
    const auto got = logits_of(three.root(), tokens, 80);
    double squares = 0;
    for (size_t i = 0; i < got.size(); ++i) squares += std::pow(double{got[i]} - expected[i], 2);
    CHECK_NEAR(std::sqrt(squares / static_cast<double>(got.size())), 0.0, 0.1);
  }
}

TEST(chunks_and_threads_do_not_change_a_bit) {
  const auto tokens = some_tokens(140);
  for (const DType weights : {DType::F32, DType::Q40, DType::Q80, DType::F16}) {
    Cluster cluster(make_config(1, weights, DType::F32, 1));
    const auto expected = logits_of(cluster.root(), tokens, 140);
    for (const size_t threads : {1, 2, 3}) {
      Cluster other(make_config(1, weights, DType::F32, threads));
      for (const size_t chunk : {1, 4, 5, 7, 64, 140}) {
        const check::Scope scope("weights", static_cast<int>(weights), "threads", threads, "chunk", chunk);
        CHECK(check::same_bits(logits_of(other.root(), tokens, chunk), expected));
      }
    }
  }
}

TEST(neighbours_do_not_change_a_bit) {
  const auto tokens = some_tokens(70), others = some_tokens(90);
  Cluster cluster(make_config(1, DType::Q40, DType::F32));
  const auto expected = logits_of(cluster.root(), tokens, 70);
  const auto expected_other = logits_of(cluster.root(), others, 90, 1);
  Batch batch;
  batch.spans = {{1, 0, 90}, {0, 0, 70}};
  for (const auto& list : {others, tokens}) {
    for (const size_t token : list) {
      const auto row = embedding(token);
      batch.embeddings.insert(batch.embeddings.end(), row.begin(), row.end());
    }
  }
  batch.wants = {{89, WantKind::Logits, 0}, {100, WantKind::Score, 5}, {159, WantKind::Logits, 0}};
  const Outputs& outputs = cluster.root().step(batch);
  const float* rows = outputs.logits->as<float>();
  CHECK(std::equal(rows, rows + kVocab, expected_other.end() - kVocab));
  CHECK(std::equal(rows + outputs.stride, rows + outputs.stride + kVocab, expected.end() - kVocab));
  const float* scored = expected.data() + (100 - 90) * kVocab;
  CHECK_NEAR(outputs.scores[0], scored[5] - log_sum_exp(kernels(), scored, kVocab), 1e-6);
}

TEST(scores_are_log_probabilities_of_any_number_of_rows) {
  const auto tokens = some_tokens(101);  // more than three tiles of rows
  for (const size_t ranks : {1, 2}) {
    Cluster cluster(make_config(ranks, DType::F32, DType::F32));
    const auto logits = logits_of(cluster.root(), tokens, 101);
    Batch batch;
    batch.spans = {{0, 0, 101}};
    for (size_t t = 0; t < 101; ++t) {
      const auto row = embedding(tokens[t]);
      batch.embeddings.insert(batch.embeddings.end(), row.begin(), row.end());
      batch.wants.push_back({static_cast<int32_t>(t), WantKind::Score, static_cast<int32_t>(t % kVocab)});
    }
    const Outputs& outputs = cluster.root().step(batch);
    CHECK_EQ(outputs.scores.size(), size_t{101});
    for (size_t t = 0; t < 101; ++t) {
      const float* row = logits.data() + t * kVocab;
      CHECK_NEAR(outputs.scores[t], row[t % kVocab] - log_sum_exp(kernels(), row, kVocab), 1e-5);
    }
  }
}

TEST(batches_out_of_range_are_refused_and_do_no_harm) {
  Cluster cluster(make_config(1, DType::F32, DType::F32));
  Batch good;
  good.spans = {{0, 0, 1}};
  good.pages = {{0, 0, 3}};
  good.wants = {{0, WantKind::Logits, 0}};
  good.embeddings = embedding(3);
  const auto refused = [&](auto change, const char* message) {
    Batch bad = good;
    change(bad);
    CHECK_THROWS(cluster.root().step(bad), InvalidArgument, message);
  };
  refused([](Batch& b) { b.spans.clear(); }, "at least one span");
  refused([](Batch& b) { b.spans[0].slot = 3; }, "slot");
  refused([](Batch& b) { b.spans[0].slot = -1; }, "slot");
  refused([](Batch& b) { b.spans[0].num_tokens = 0; }, "positions");
  refused([](Batch& b) { b.spans[0].num_tokens = 2; }, "disagree");
  refused([](Batch& b) { b.spans[0].first_position = -5; }, "positions");
  refused([](Batch& b) { b.spans[0].first_position = 2000000000; }, "without pages");
  refused([](Batch& b) { b.spans[0].slot = 2; }, "without pages");
  refused([](Batch& b) { b.pages[0].page = 12; }, "page change");
  refused([](Batch& b) { b.pages[0].page_idx = -1; }, "page change");
  refused([](Batch& b) { b.wants[0].row = 1; }, "rows");
  refused([](Batch& b) { b.wants.push_back({0, WantKind::Logits, 0}); }, "ascend");
  refused([](Batch& b) { b.wants[0] = {0, WantKind::Score, 77}; }, "score");
  refused([](Batch& b) { b.wants[0].kind = static_cast<WantKind>(9); }, "kind");
  refused([](Batch& b) { b.embeddings.resize(201 * kHidden); }, "max_tokens");
  // Pages of a refused step are not set: were they, this one would find its second page.
  refused([](Batch& b) { b.pages.push_back({0, 1, 4}), b.wants[0].row = 9; }, "rows");
  refused([](Batch& b) { b.pages = {{0, 1, 4}, {0, 0, 3}}, b.spans[0].first_position = 128; }, "without pages");
  refused([](Batch& b) { b.spans[0].first_position = 64; }, "without pages");
  CHECK_EQ(cluster.root().step(good).num_logits, size_t{1});
}

// Memory is planned for so many rows, candidates and ids; scores need none.
TEST(a_step_wants_no_more_than_is_planned) {
  NodeConfig config = make_config(1, DType::F32, DType::F32);
  config.max_tokens = 2000;
  config.max_rows = 1800;
  const auto batch = [&](int32_t rows, WantKind kind) {
    Batch some;
    some.spans = {{0, 0, 2000}};
    some.embeddings.resize(2000 * kHidden);
    for (int32_t row = 0; row < rows; ++row) {
      some.wants.push_back({row, kind, kind == WantKind::Candidates ? row : 0});
      if (kind == WantKind::Candidates) some.queries.push_back({1, kVocab, 1.0f, {}});
    }
    return some;
  };
  batch(2000, WantKind::Score).check(config);
  batch(1800, WantKind::Logits).check(config);
  CHECK_THROWS(batch(1801, WantKind::Logits).check(config), InvalidArgument, "max_rows");
  Batch mixed = batch(1800, WantKind::Candidates);
  mixed.check(config);
  mixed.wants.push_back({1999, WantKind::Logits, 0});
  CHECK_THROWS(mixed.check(config), InvalidArgument, "max_rows");
  Batch many = batch(kMaxCandidates / 64, WantKind::Candidates);
  for (CandidateQuery& query : many.queries) query.count = 64;
  many.check(config);
  many.queries[0].count = 65;
  CHECK_THROWS(many.check(config), InvalidArgument, "too many candidates");
  Batch named = batch(1800, WantKind::Candidates);
  for (CandidateQuery& query : named.queries) {
    for (int32_t id = 0; id < 73; ++id) query.ids.push_back(id);
  }
  CHECK_THROWS(named.check(config), InvalidArgument, "too many ids");
  named.queries.resize(kMaxQueryIds / 73);
  named.wants.resize(kMaxQueryIds / 73);
  named.check(config);
}

TEST(buffers_of_the_plan_grow_with_what_may_be_wanted) {
  NodeConfig one = make_config(2, DType::F32, DType::F32), more = one;
  one.max_rows = 1;
  more.max_rows = 11;
  // Rows are padded to 64 values, one more at least: 77 on the root and 32 of a slice. A slice's row of candidates too.
  CHECK_EQ(Node::buffer_bytes(more, 0) - Node::buffer_bytes(one, 0), 10 * (128 + 64) * 4 + 10 * size_t{16});
  CHECK_EQ(Node::buffer_bytes(more, 1) - Node::buffer_bytes(one, 1), 10 * (64 + 64) * 4 + 10 * size_t{16});
  CHECK(Node::buffer_bytes(one, 1) > Batch::max_frame_bytes(one) + kMaxCandidates * 8 + kMaxQueryIds * 4);
}

// Rows are tokens with one of their experts. A tensor's tables hold its name, among others.
TEST(buffers_of_the_plan_grow_with_experts) {
  const NodeConfig few = make_expert_config(1, DType::F32, DType::F32);
  NodeConfig more = few;
  more.num_experts_per_tok += 1;
  const auto routing_bytes = [](const NodeConfig& config) {
    return Routing::bytes(kExperts, config.max_tokens * config.num_experts_per_tok, kGateTokens);
  };
  const size_t per_thread = routing_bytes(more) - routing_bytes(few) + kRedundantTokens * sizeof(ExpertChoice);
  const size_t per_row = sizeof(ExpertChoice) + kFfn * sizeof(float);
  CHECK_EQ(Node::buffer_bytes(more, 0) - Node::buffer_bytes(few, 0), 2 * per_thread + few.max_tokens * per_row);

  NodeConfig many = few;
  many.num_experts += 100;
  size_t name_bytes = 0;
  for (const auto& name : Weights(kernels(), many, many.shards[0]).names()) name_bytes += sizeof(name) + name.size();
  CHECK(Weights::table_bytes(many) > name_bytes);
  CHECK(Node::buffer_bytes(many, 0) - Node::buffer_bytes(few, 0) >
        Weights::table_bytes(many) - Weights::table_bytes(few));
}

// A thread that waits fetches what it reads first, if that is anything, and no more than fits L2.
TEST(routers_are_fetched_in_part) {
  NodeConfig config = make_expert_config(1, DType::Q40, DType::F32, 4);
  config.hidden_size = 4096;
  config.max_tokens = 1;
  Weights weights(kernels(), config, config.shards[0]);
  weights.allocate();
  KvCache cache(kernels(), config, config.shards[0]);
  Activations buffers(kernels(), config, config.shards[0]);
  ThreadPool pool(config.num_threads);
  Group group(0, {});
  const Step step{kernels(), config, config.shards[0], weights, cache, buffers, pool, group};
  const auto first = [&](size_t thread) { return first_router_weights(step, thread, weights.layers[0]); };
  CHECK(first(0).empty() && first(2).empty());  // eight of the eleven experts, and the other three, are a part each
  const auto* router = reinterpret_cast<const std::byte*>(weights.layers[0].router);
  CHECK(first(1).data() == router && first(1).size() == size_t{64} << 10);
  CHECK(first(3).data() == router + 8 * 4096 * sizeof(float) && first(3).size() == 3 * 4096 * sizeof(float));
}

TEST(a_refused_step_leaves_the_ranks_together) {
  Cluster cluster(make_config(2, DType::F32, DType::F32));
  Batch bad;
  bad.spans = {{0, 64, 1}};
  bad.pages = {{0, 0, 1}};
  bad.embeddings = embedding(3);
  CHECK_THROWS(cluster.root().step(bad), InvalidArgument, "without pages");
  CHECK_EQ(logits_of(cluster.root(), some_tokens(70), 70).size(), 70 * kVocab);
}

TEST(frames_carry_batches_and_lies_are_refused) {
  const NodeConfig config = make_config(2, DType::Q40, DType::F32);
  Batch batch;
  batch.spans = {{1, 0, 2}};
  batch.pages = {{1, 0, 3}};
  batch.wants = {{1, WantKind::Score, 9}};
  batch.embeddings = random_values(2 * kHidden, 1, 1.0f);
  const auto frame = batch.to_frame(kernels(), config);
  const Batch back = Batch::from_frame(kernels(), config, frame);
  CHECK(check::same_bits(back.embeddings, batch.embeddings));
  CHECK_EQ(back.wants[0].value, 9);
  CHECK(frame.size() <= Batch::max_frame_bytes(config));
  for (size_t size = 0; size < frame.size(); ++size) {
    CHECK_THROWS(Batch::from_frame(kernels(), config, std::span(frame).first(size)), InvalidArgument, "");
  }
  for (size_t i = 0; i < 28; ++i) {  // the counts
    auto lie = frame;
    lie[i] ^= std::byte{0x81};
    CHECK_THROWS(Batch::from_frame(kernels(), config, lie), InvalidArgument, "");
  }
}

// --- what is wanted of rows on several ranks ------------------------------------------------------------------------

namespace {

// One token of slot 0 whose candidates are wanted.
Batch candidate_batch(CandidateQuery query) {
  Batch batch;
  batch.spans = {{0, 0, 1}};
  batch.pages = {{0, 0, 3}};
  batch.wants = {{0, WantKind::Candidates, 0}};
  batch.embeddings = embedding(3);
  batch.queries = {std::move(query)};
  return batch;
}

}  // namespace

TEST(candidates_of_any_number_of_ranks_are_the_best_of_the_row) {
  for (const size_t ranks : {1, 2, 5}) {
    const check::Scope scope("ranks", ranks);
    Cluster cluster(make_config(ranks, DType::F32, DType::F32, 1));
    const auto row = logits_of(cluster.root(), {3}, 1);
    const CandidateQuery query{4, 70, 0.8f, {2, 50, 76}};
    const Outputs& outputs = cluster.root().step(candidate_batch(query));
    const std::vector<Range> whole{{0, kVocab}};
    const std::vector<SliceAnswer> answers{answer(kernels(), query, whole[0], row.data())};
    const SliceAnswer expected = joined(query, whole, answers);
    const SliceAnswer& got = outputs.candidates[0];
    CHECK(got.best.size() >= 4);
    for (size_t i = 0; i < 4; ++i) CHECK_EQ(got.best[i].id, expected.best[i].id);
    CHECK(check::same_bits(got.values, expected.values));
    CHECK_EQ(got.candidates.max, expected.candidates.max);
    CHECK_NEAR(got.candidates.sum, expected.candidates.sum, 1e-6 * expected.candidates.sum);
    CHECK_NEAR(log_of(got.all), log_of(expected.all), 1e-6);

    std::vector<float> fetched(kVocab);
    cluster.root().full_logits(0, fetched.data());
    CHECK(check::same_bits(fetched, row));
    std::vector<double> cumulative{0.0};
    for (int32_t id = 0; id < 70; ++id) {
      const bool is_candidate = id != 2 && id != 50;
      const double weight =
          is_candidate ? std::exp((double{row[static_cast<size_t>(id)]} - got.candidates.max) / 0.8) : 0;
      cumulative.push_back(cumulative.back() + weight);
    }
    for (double coin = 0.004; coin < 1.0; coin += 0.05) {
      const TokenLogit token = cluster.root().draw(0, coin);
      const auto id = static_cast<size_t>(token.id);
      CHECK_EQ(token.logit, row[id]);
      CHECK(cumulative[id] <= coin * cumulative.back() * (1 + 1e-6));
      CHECK(cumulative[id + 1] >= coin * cumulative.back() * (1 - 1e-6));
    }
  }
}

TEST(a_step_without_queries_has_no_candidates) {
  for (const size_t ranks : {1, 2}) {
    Cluster cluster(make_config(ranks, DType::F32, DType::F32, 1));
    CHECK_EQ(cluster.root().step(candidate_batch({2, kVocab, 1.0f, {}})).candidates.size(), size_t{1});
    Batch batch = candidate_batch({2, kVocab, 1.0f, {}});
    batch.queries.clear();
    for (const bool has_logits : {true, false}) {
      batch.wants = {{0, WantKind::Logits, 0}};
      if (!has_logits) batch.wants.clear();
      CHECK_EQ(cluster.root().step(batch).candidates.size(), size_t{0});
    }
  }
}

TEST(queries_out_of_range_are_refused_and_do_no_harm) {
  Cluster cluster(make_config(2, DType::F32, DType::F32, 1));
  const auto refused = [&](auto change, const char* message) {
    Batch bad = candidate_batch({2, kVocab, 1.0f, {5}});
    change(bad);
    CHECK_THROWS(cluster.root().step(bad), InvalidArgument, message);
  };
  refused([](Batch& b) { b.queries[0].count = 0; }, "candidates");
  refused([](Batch& b) { b.queries[0].count = kVocab + 1; }, "candidates");
  refused([](Batch& b) { b.queries[0].limit = kVocab + 1; }, "limit");
  refused([](Batch& b) { b.queries[0].temperature = 0.0f; }, "temperature");
  refused([](Batch& b) { b.queries[0].temperature = std::nanf(""); }, "temperature");
  refused([](Batch& b) { b.queries[0].ids = {5, 5}; }, "ascend");
  refused([](Batch& b) { b.queries[0].ids = {-1}; }, "ascend");
  refused([](Batch& b) { b.queries[0].ids = {static_cast<int32_t>(kVocab)}; }, "ascend");
  refused([](Batch& b) { b.queries.clear(); }, "every query");
  refused([](Batch& b) { b.wants.clear(); }, "every query");
  refused([](Batch& b) { b.wants[0].value = 1; }, "order");
  std::vector<float> row(kVocab);
  CHECK_THROWS(cluster.root().full_logits(0, row.data()), InvalidArgument, "no such query");
  CHECK_THROWS(cluster.root().draw(0, 0.5), InvalidArgument, "no such query");
  cluster.root().step(candidate_batch({2, kVocab, 1.0f, {5}}));
  CHECK_THROWS(cluster.root().full_logits(1, row.data()), InvalidArgument, "no such query");
  CHECK_THROWS(cluster.root().draw(0, 1.0), InvalidArgument, "coin");
  CHECK_THROWS(cluster.root().draw(0, -0.1), InvalidArgument, "coin");
  CHECK(cluster.root().draw(0, 0.999).id < static_cast<int32_t>(kVocab));
}

// --- a peer that speaks, but lies -----------------------------------------------------------------------------------

namespace {

// One node of a pair, and the bare socket in place of the other.
struct HalfPair {
  int ends[2];
  std::shared_ptr<Group> group;
  std::unique_ptr<Node> node;
  FrameHeader header;

  HalfPair(size_t rank, NodeConfig config) {
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    const std::vector<std::string> names{rank == 0 ? "worker a" : "the root"};
    group = std::make_shared<Group>(rank, std::vector<int>{ends[0]}, names);
    close(ends[0]);
    node = std::make_unique<Node>(std::move(config), group);
    load_slices(*node, rank);
  }
  ~HalfPair() { close(ends[1]); }

  void send(FrameType type, uint32_t layer, std::span<const std::byte> payload) {
    header.type = type;
    header.layer = layer;
    header.length = payload.size();
    CHECK_EQ(write(ends[1], &header, sizeof(header)), static_cast<ssize_t>(sizeof(header)));
    CHECK_EQ(write(ends[1], payload.data(), payload.size()), static_cast<ssize_t>(payload.size()));
  }
};

}  // namespace

TEST(commands_that_cannot_be_end_a_follower_with_the_reason) {
  const auto refused = [](FrameType type, std::vector<uint32_t> words, const char* message) {
    HalfPair pair(1, make_config(2, DType::F32, DType::F32, 1));
    pair.header.step = 1;
    pair.send(type, 0, std::as_bytes(std::span(words)));
    CHECK_THROWS(pair.node->follow(), GroupFailed, message);
    CHECK(pair.group->failed_rank() == size_t{0});
  };
  refused(FrameType::Probe, {0, 0}, "the root sent a command that cannot be: a probe");
  refused(FrameType::Probe, {201, 0}, "a probe");
  refused(FrameType::Probe, {1, 2}, "unknown way");
  refused(FrameType::Probe, {1}, "wrong length");
  refused(FrameType::SendRow, {0}, "no such query");
  refused(FrameType::SendRow, {0, 0}, "wrong length");
  refused(FrameType::Draw, {0, 1, 0, 0}, "no such query");
  refused(FrameType::Draw, {0, 1}, "wrong length");
  refused(FrameType::Step, {1, 0, 0, 1, 0, 0, 0}, "disagree");
  refused(FrameType::Step, {0, 0, 0, 0, 0, 0, 0}, "at least one span");
  refused(FrameType::Step, {0, 0, 0, 0, 0, 0, 2}, "unknown way");
  refused(FrameType::Step, {0, 0, 0, 0, 1, 0, 0, 1, 7, 0x3f800000, 3}, "disagree with its counts");
  refused(FrameType::Sums, {0}, "frame type 16");
}

// A well-formed step of a root that knows no bounds.
TEST(steps_that_want_more_than_is_planned_end_a_follower) {
  const auto refused = [](std::vector<Want> wants, std::vector<CandidateQuery> queries) {
    NodeConfig config = make_config(2, DType::F32, DType::F32, 1);
    Batch batch;
    batch.spans = {{0, 0, 5}};
    batch.pages = {{0, 0, 3}};
    batch.embeddings = random_values(5 * kHidden, 1, 1.0f);
    batch.wants = std::move(wants);
    batch.queries = std::move(queries);
    const auto frame = batch.to_frame(kernels(), config);
    config.max_rows = 2;
    HalfPair pair(1, config);
    pair.header.step = 1;
    pair.send(FrameType::Step, 0, frame);
    CHECK_THROWS(pair.node->follow(), GroupFailed, "the root sent a command that cannot be: a step wants");
    CHECK(pair.group->failed_rank() == size_t{0});
  };
  const CandidateQuery query{1, kVocab, 1.0f, {}};
  refused({{0, WantKind::Logits, 0}, {1, WantKind::Logits, 0}, {4, WantKind::Logits, 0}}, {});
  refused({{0, WantKind::Candidates, 0}, {1, WantKind::Logits, 0}, {4, WantKind::Candidates, 1}}, {query, query});
}

namespace {

// As answers to a query travel: sums and largest values of the candidates and of all, the best, and the one logit.
struct Answer {
  double sum = 1.5, all_sum = 1.5;
  float max = 2.0f, all_max = 2.0f;
  TokenLogit best[2] = {{2.0f, 40}, {1.0f, 41}};
  float value = 0.5f;
  static constexpr size_t kBytes = 44;
};

// A root whose worker answers one step with sums of zero, and then so.
struct AnsweredStep : HalfPair {
  explicit AnsweredStep(const Answer& answer) : HalfPair(0, make_config(2, DType::F32, DType::F32, 1)) {
    header.step = 1;
    const std::vector<std::byte> sums(kHidden * sizeof(float));
    for (uint32_t layer = 1; layer <= 4; ++layer) send(FrameType::Sums, layer, sums);
    send(FrameType::Results, 5, std::as_bytes(std::span(&answer, 1)).first(Answer::kBytes));
  }
  const Outputs& step() { return node->step(candidate_batch({2, kVocab, 1.0f, {50}})); }
};

}  // namespace

TEST(sums_that_cannot_be_end_the_root_with_the_workers_name) {
  const auto refused = [](auto change, const char* message) {
    Answer answer;
    change(answer);
    AnsweredStep step(answer);
    CHECK_THROWS(step.step(), GroupFailed, message);
    CHECK(step.group->failed_rank() == size_t{1});
  };
  AnsweredStep(Answer()).step();
  refused([](Answer& a) { a.sum = -1.5; }, "worker a sent sums that cannot be");
  refused([](Answer& a) { a.sum = 0.0; }, "sums that cannot be");
  refused([](Answer& a) { a.sum = 1e9; }, "sums that cannot be");
  refused([](Answer& a) { a.sum = INFINITY; }, "sums that cannot be");
  refused([](Answer& a) { a.all_sum = -INFINITY; }, "sums that cannot be");
  refused([](Answer& a) { a.max = 1e30f; }, "sums that are not those of its candidates");
  refused([](Answer& a) { a.max = INFINITY; }, "sums that are not those of its candidates");
  refused([](Answer& a) { a.max = 1e30f, a.sum = NAN; }, "sums that are not those of its candidates");
  refused([](Answer& a) { a.max = -INFINITY, a.sum = 0.0; }, "sums that are not those of its candidates");
  refused([](Answer& a) { a.best[1].id = 50; }, "no candidate");  // its logit was asked for as it is
}

// Logits of a worker that are no numbers are told from lies: the sampler says so.
TEST(sums_of_what_is_no_number_arrive_as_such) {
  Answer answer;
  answer.sum = answer.all_sum = NAN;
  AnsweredStep step(answer);
  CHECK(std::isnan(step.step().candidates[0].candidates.sum));
  CHECK_THROWS(step.node->draw(0, 0.5), InvalidArgument, "not finite");
}

TEST(a_drawn_token_that_cannot_be_ends_the_root_with_the_workers_name) {
  for (const int32_t id : {31, 50, 77, -1}) {
    Answer answer;  // so likely that every coin falls there
    answer.max = answer.all_max = answer.best[0].logit = 200.0f;
    AnsweredStep step(answer);
    step.step();
    step.header.step = 2;
    const TokenLogit token{200.0f, id};
    step.send(FrameType::Token, 1, std::as_bytes(std::span(&token, 1)));
    CHECK_THROWS(step.node->draw(0, 0.5), GroupFailed, "worker a sent a token that is no candidate");
    CHECK(step.group->failed_rank() == size_t{1});
  }
}

TEST(candidates_that_cannot_be_end_the_root_with_the_workers_name) {
  const auto answered = [](std::vector<TokenLogit> best) {
    Answer answer;
    std::copy(best.begin(), best.end(), answer.best);
    AnsweredStep step(answer);
    step.step();
    return step.node->counters().steps;
  };
  CHECK_EQ(answered({{2.0f, 40}, {2.0f, 41}}), uint64_t{1});
  CHECK_THROWS(answered({{2.0f, 40}, {2.0f, 40}}), GroupFailed, "worker a sent candidates out of order");
  CHECK_THROWS(answered({{1.0f, 40}, {2.0f, 41}}), GroupFailed, "worker a sent candidates out of order");
  CHECK_THROWS(answered({{2.0f, 31}, {1.0f, 41}}), GroupFailed, "worker a sent a token that is no candidate");
  CHECK_THROWS(answered({{2.0f, 77}, {1.0f, 41}}), GroupFailed, "no candidate");
  CHECK_THROWS(answered({{2.0f, -1}, {1.0f, 41}}), GroupFailed, "no candidate");
  CHECK_THROWS(answered({{std::nanf(""), 40}, {1.0f, 41}}), GroupFailed, "no candidate");
}

TEST(an_answer_of_another_length_ends_the_root) {
  HalfPair pair(0, make_config(2, DType::F32, DType::F32, 1));
  pair.header.step = 1;
  const std::vector<std::byte> sums(kHidden * sizeof(float));
  for (uint32_t layer = 1; layer <= 4; ++layer) pair.send(FrameType::Sums, layer, sums);
  pair.send(FrameType::Results, 5, std::vector<std::byte>(32));
  CHECK_THROWS(pair.node->step(candidate_batch({2, kVocab, 1.0f, {}})), GroupFailed, "worker a sent frame type 18");
}

// Sanitizers need more address space than a limit leaves.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(memory_that_is_refused_within_a_step_ends_the_group) {
  NodeConfig config = make_config(2, DType::Q40, DType::Q80, 1);
  config.vocab_size = size_t{1} << 22;
  config.shards[1].vocab_end = config.vocab_size;
  Batch batch;
  batch.spans = {{0, 0, 150}};
  batch.pages = {{0, 0, 0}, {0, 1, 1}, {0, 2, 2}};
  batch.embeddings = random_values(150 * kHidden, 1, 1.0f);
  for (int32_t row = 0; row < 150; ++row) batch.wants.push_back({row, WantKind::Logits, 0});  // 2.3 GiB
  int ends[2];
  socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
  Node root(config, std::make_shared<Group>(0, std::vector<int>{ends[0]}));
  rlimit before;
  getrlimit(RLIMIT_AS, &before);
  const rlimit less{size_t{2} << 30, before.rlim_max};
  setrlimit(RLIMIT_AS, &less);
  bool is_heeded = false;  // QEMU's emulation of programs does not
  try {
    const Buffer more(size_t{3} << 30);
  } catch (const OutOfMemory&) {
    is_heeded = true;
  }
  if (is_heeded) {
    CHECK_THROWS(root.step(batch), OutOfMemory, "");
    CHECK_THROWS(root.step(batch), GroupFailed, "");
  }
  setrlimit(RLIMIT_AS, &before);
  for (const int end : ends) close(end);
}
#endif

TEST(a_follower_outlives_a_root_that_leaves) {
  Cluster cluster(make_config(3, DType::F32, DType::F32));
  logits_of(cluster.root(), some_tokens(5), 5);
  cluster.lose_root();
  for (size_t rank = 1; rank < 3; ++rank) {
    CHECK(cluster.is_lost(rank));
    CHECK(cluster.group(rank).failed_rank() == size_t{0});
  }
}

TEST(an_aborted_group_fails_its_steps) {
  Cluster cluster(make_config(3, DType::F32, DType::F32));
  logits_of(cluster.root(), some_tokens(5), 5);
  for (size_t rank = 0; rank < 3; ++rank) cluster.group(rank).abort("the test ends it");
  CHECK_THROWS(logits_of(cluster.root(), some_tokens(5), 5), GroupFailed, "the test ends it");
}

namespace {

// Passes on what two nodes send each other, until the worker has sent so many bytes.
void pass_on_until(int root, int worker, size_t most) {
  std::vector<char> data(1 << 16);
  pollfd polled[2] = {{root, POLLIN, 0}, {worker, POLLIN, 0}};
  while (most != 0 && poll(polled, 2, -1) > 0) {
    for (const size_t from : {size_t{0}, size_t{1}}) {
      if (polled[from].revents == 0) continue;
      const ssize_t got = read(polled[from].fd, data.data(), from == 1 ? std::min(most, data.size()) : data.size());
      if (got <= 0) return;
      if (from == 1) most -= static_cast<size_t>(got);
      for (ssize_t done = 0; done < got;) {
        const ssize_t sent =
            send(polled[1 - from].fd, data.data() + done, static_cast<size_t>(got - done), MSG_NOSIGNAL);
        if (sent <= 0) return;
        done += sent;
      }
    }
  }
}

}  // namespace

// Wherever in a step of several pieces the link breaks: all threads of both nodes leave it together.
TEST(a_link_that_is_cut_within_a_step_ends_it_on_both_sides) {
  for (const size_t threads : {2, 3}) {
    for (const size_t scatter_from : {0, 1}) {
      for (const size_t bytes : {1, 40, 70000, 100000, 143000, 220000, 286000}) {
        const check::Scope scope("threads", threads, "scatter", scatter_from, "bytes", bytes);
        int upper[2], lower[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, upper);
        socketpair(AF_UNIX, SOCK_STREAM, 0, lower);
        const NodeConfig config = make_config(2, DType::F32, DType::F32, threads);
        std::vector<std::unique_ptr<Node>> nodes;
        for (const size_t rank : {size_t{0}, size_t{1}}) {
          const int fd = rank == 0 ? upper[0] : lower[0];
          nodes.push_back(std::make_unique<Node>(config, std::make_shared<Group>(rank, std::vector<int>{fd})));
          close(fd);
          load_slices(*nodes.back(), rank);
        }
        nodes[0]->set_scatter_from(scatter_from);
        std::thread follower([&] { CHECK_THROWS(nodes[1]->follow(), GroupFailed, "rank 0"); });
        std::thread cutter([&] {
          pass_on_until(upper[1], lower[1], bytes);
          close(upper[1]);
          close(lower[1]);
        });
        CHECK_THROWS(logits_of(*nodes[0], some_tokens(140), 140), GroupFailed, "rank 1");
        cutter.join();
        follower.join();
      }
    }
  }
}

TEST(rows_of_wrong_names_ranges_or_sizes_are_refused) {
  Cluster cluster(make_config(1, DType::Q40, DType::F32));
  Node& node = cluster.root();
  const size_t group = kernels().row_group;
  const std::vector<std::byte> rows(group * row_bytes(DType::Q40, kHidden));
  CHECK_THROWS(node.load_rows("layers.2.q_proj", 0, group, rows.data(), rows.size()), InvalidArgument, "no weight");
  CHECK_THROWS(node.load_rows("layers.0.q_proj", 4, group, rows.data(), rows.size()), InvalidArgument, "row group");
  CHECK_THROWS(node.load_rows("layers.0.q_proj", 128, group, rows.data(), rows.size()), InvalidArgument, "outside");
  CHECK_THROWS(node.load_rows("layers.0.q_proj", 0, SIZE_MAX, rows.data(), rows.size()), InvalidArgument, "outside");
  CHECK_THROWS(node.load_rows("layers.0.q_proj", 0, group, rows.data(), rows.size() - 1), InvalidArgument, "size");
  CHECK_THROWS(node.load_rows("norm", 0, 1, rows.data(), 4), InvalidArgument, "F32 row");
  CHECK_THROWS(node.load_rows("norm", 1, 1, rows.data(), 4 * kHidden), InvalidArgument, "outside");
}

TEST(routers_are_loaded_by_rows) {
  Cluster cluster(make_expert_config(1, DType::Q40, DType::F32));
  Node& node = cluster.root();
  const std::vector<std::byte> rows(kExperts * kHidden * sizeof(float));
  CHECK(node.weights().shape("layers.0.router") == std::vector<size_t>({kExperts, kHidden}));
  CHECK_THROWS(node.load_rows("layers.0.router", 0, kExperts, rows.data(), rows.size() - 1), InvalidArgument,
               "F32 row");
  CHECK_THROWS(node.load_rows("layers.0.router", 1, kExperts, rows.data(), rows.size()), InvalidArgument, "outside");
  CHECK_THROWS(node.load_rows("layers.0.router", 2, SIZE_MAX, rows.data(), rows.size()), InvalidArgument, "outside");
  node.load_rows("layers.0.router", kExperts - 1, 1, rows.data(), kHidden * sizeof(float));
}

TEST(configs_that_do_not_fit_together_are_refused) {
  const auto refused = [](auto change, const char* message) {
    NodeConfig config = make_config(1, DType::Q40, DType::Q80);
    change(config);
    CHECK_THROWS(config.validate(), InvalidArgument, message);
  };
  refused([](NodeConfig& c) { c.hidden_size = 0; }, "sizes");
  refused([](NodeConfig& c) { c.hidden_size = SIZE_MAX; }, "sizes");
  refused([](NodeConfig& c) { c.shards[0].num_heads = c.shards[0].num_kv_heads = size_t{1} << 59; }, "out of range");
  refused([](NodeConfig& c) { c.shards[0].intermediate_size = size_t{1} << 60; }, "out of range");
  refused([](NodeConfig& c) { c.layers.resize(5000); }, "layers");
  refused([](NodeConfig& c) { c.hidden_size = 48; }, "hidden_size");
  refused([](NodeConfig& c) { c.head_dim = 15; }, "head_dim");
  refused([](NodeConfig& c) { c.layers.clear(); }, "layer");
  refused([](NodeConfig& c) { c.rope_frequencies.clear(); }, "rope_frequencies");
  refused([](NodeConfig& c) { c.rope_frequencies.resize(kHeadDim); }, "rope_frequencies");
  refused([](NodeConfig& c) { c.layers[0].has_local_rope = true; }, "local_rope_frequencies");
  refused([](NodeConfig& c) { c.local_rope_frequencies.resize(8); }, "local_rope_frequencies");
  refused([](NodeConfig& c) { c.layers[0].has_input_norms = false; }, "output norms");
  refused([](NodeConfig& c) { c.layers[0].qk_norm = static_cast<QkNorm>(3); }, "norm of queries");
  refused([](NodeConfig& c) { c.activation = static_cast<Activation>(2); }, "activation");
  refused([](NodeConfig& c) { c.residual_multiplier = 0.0f; }, "multipliers");
  refused([](NodeConfig& c) { c.logits_softcap = NAN; }, "caps");
  refused([](NodeConfig& c) { c.rope_factor = INFINITY; }, "rope_factor");
  refused([](NodeConfig& c) { c.weight_type = DType::F16, c.q80_tensors = {"lm_head"}; }, "Q80 tensors");
  refused([](NodeConfig& c) { c.layers[0].has_experts = true; }, "num_experts");
  refused([](NodeConfig& c) { c.shards[0].expert_intermediate_size = 32; }, "expert");
  refused(
      [](NodeConfig& c) {
        c = make_expert_config(1, DType::Q40, DType::Q80);
        c.max_tokens = size_t{1} << 24;
        c.num_experts = c.num_experts_per_tok = 257;
      },
      "at most 2^32");
  refused([](NodeConfig& c) { c.shards[0].kv_head_begin = SIZE_MAX; }, "out of range");
  refused([](NodeConfig& c) { c.shards[0].kv_head_begin = 1; }, "follow each other");
  refused([](NodeConfig& c) { c = make_config(2, DType::Q40, DType::Q80), c.shards[1].kv_head_begin = 2; }, "follow");
  refused([](NodeConfig& c) { c = make_config(3, DType::Q40, DType::Q80), c.shards[2].kv_head_begin = 0; }, "follow");
  refused([](NodeConfig& c) { c.kv_type = DType::Q40; }, "kv_type");
  refused([](NodeConfig& c) { c.wire_type = DType::Q40; }, "wire_type");
  refused([](NodeConfig& c) { c.shards.clear(); }, "shard");
  refused([](NodeConfig& c) { c.shards[0].num_heads = 7; }, "multiple");
  refused([](NodeConfig& c) { c.shards[0].num_heads = 0; }, "or neither");
  refused([](NodeConfig& c) { c.shards[0].num_kv_heads = 0; }, "or neither");
  refused([](NodeConfig& c) { c.shards[0].intermediate_size = 33; }, "FFN");
  refused([](NodeConfig& c) { c.shards[0].vocab_end = 70; }, "vocab");
}

CHECK_MAIN()
