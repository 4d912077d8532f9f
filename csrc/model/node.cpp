#include "model/node.h"

#include <algorithm>

#include "base/clock.h"
#include "base/errors.h"
#include "base/os_cpu.h"
#include "kernels/dispatch.h"
#include "model/layer.h"
#include "model/products.h"
#include "net/bytes.h"

namespace dllama {

namespace {

// Payload of a Probe.
struct ProbeFrame {
  uint32_t num_tokens;
  uint32_t scatter;
};

void check(const ProbeFrame& frame, const NodeConfig& config) {
  require(frame.num_tokens > 0 && frame.num_tokens <= config.max_tokens, "a probe has 1 to max_tokens tokens");
  require(frame.scatter <= 1, "unknown way of exchange");
  check_exchange(config, frame.scatter != 0);
}

// Payload of a SendRow.
struct RowFrame {
  uint32_t query;
};

// Payload of a Draw: by whom, and at which part of the sum of its slice.
struct DrawFrame {
  uint32_t query;
  uint32_t rank;
  double fraction;
};

template <typename T>
std::span<const std::byte> bytes_of(const T& frame) {
  return std::as_bytes(std::span(&frame, 1));
}

// Adds the time until its end to a total.
class Stopwatch {
 public:
  explicit Stopwatch(std::atomic<uint64_t>& total_ns) : total_ns_(total_ns) {}
  ~Stopwatch() { total_ns_ += now_ns() - start_ns_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::atomic<uint64_t>& total_ns_;
  uint64_t start_ns_ = now_ns();
};

NodeConfig checked(NodeConfig config, const Group& group) {
  config.validate();
  require(config.shards.size() == group.world_size(), "one shard per rank is needed");
  return config;
}

}  // namespace

Node::Node(NodeConfig config, std::shared_ptr<Group> group)
    : config_(checked(std::move(config), *group)),
      group_(std::move(group)),
      kernels_(kernels()),
      shard_(config_.shards[group_->rank()]),
      pool_(config_.num_threads),
      weights_(kernels_, config_, shard_),
      cache_(kernels_, config_, shard_),
      buffers_(kernels_, config_, shard_) {
  group_->set_busy_polling(config_.num_threads <= allowed_cpus());
  weights_.allocate();
}

size_t Node::buffer_bytes(const NodeConfig& config, size_t rank) {
  const size_t tables = config.num_slots * config.num_pages * sizeof(int32_t);
  const size_t batch = config.shards.size() > 1 ? Batch::bytes(config) : 0;
  return Activations::bytes(kernels(), config, config.shards[rank]) + Outputs::bytes(config, rank) +
         Weights::table_bytes(config) + tables + batch;
}

void Node::load_rows(const std::string& name, size_t first_row, size_t num_rows, const std::byte* data, size_t size) {
  weights_.load_rows(pool_, name, first_row, num_rows, data, size);
}

void Node::accept(const Batch& batch) {
  batch.check(config_);
  batch.check_pages(cache_);
  for (const PageChange& change : batch.pages) {
    cache_.set_page(static_cast<size_t>(change.slot), static_cast<size_t>(change.page_idx), change.page);
  }
}

Step Node::make_step(bool scatter) {
  return {kernels_, config_, shard_, weights_, cache_, buffers_, pool_, *group_, scatter};
}

void Node::run(const Batch& batch) {
  Step step = make_step(batch.scatter);
  forward(step, batch, outputs_);
  ++steps_;
  tokens_ += step.num_tokens;
}

void Node::run_probe(size_t num_tokens, bool scatter) {
  Step step = make_step(scatter);
  step.num_tokens = num_tokens;
  pool_.run([&](size_t thread) { probe_exchange(step, thread); });
  if (step.failed) std::rethrow_exception(step.error);
}

// Runs what other ranks take part in. If it fails here, they cannot end it either, and what is queued on the links may
// point to memory that is gone.
template <typename Work>
auto Node::together(const Work& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    group_->abort(error.what());
    throw;
  }
}

// --- rank 0 ---

const Outputs& Node::step(Batch batch) {
  const Stopwatch stopwatch(busy_ns_);
  require(group_->is_root(), "only rank 0 starts steps");
  accept(batch);  // before anyone else hears of it
  if (group_->world_size() == 1) {
    run(batch);
    return outputs_;
  }
  batch.scatter = scatter_from_ != 0 && batch.num_tokens(config_.hidden_size) >= scatter_from_;
  // Rank 0 takes the embeddings as the wire carries them, so every rank starts from the same bits.
  const auto frame = batch.to_frame(kernels_, config_);
  batch = Batch::from_frame(kernels_, config_, frame);
  together([&] {
    group_->command(FrameType::Step, frame);
    run(batch);
  });
  return outputs_;
}

void Node::set_scatter_from(size_t num_tokens) {
  check_exchange(config_, num_tokens != 0);
  scatter_from_ = num_tokens;
}

double Node::probe(size_t num_tokens, bool scatter) {
  const Stopwatch stopwatch(busy_ns_);
  require(group_->is_root(), "only rank 0 starts probes");
  const ProbeFrame frame{static_cast<uint32_t>(std::min<size_t>(num_tokens, UINT32_MAX)), scatter};
  check(frame, config_);
  return together([&] {
    group_->command(FrameType::Probe, bytes_of(frame));
    const uint64_t start_ns = now_ns();
    run_probe(num_tokens, scatter);
    return static_cast<double>(now_ns() - start_ns) * 1e-9;
  });
}

double Node::time_products(size_t num_tokens) {
  require(num_tokens > 0 && num_tokens <= config_.max_tokens, "products have 1 to max_tokens tokens");
  Step step = make_step(false);
  step.num_tokens = num_tokens;
  const uint64_t start_ns = now_ns();
  pool_.run([&](size_t thread) { run_products(step, thread); });
  return static_cast<double>(now_ns() - start_ns) * 1e-9;
}

void Node::check_query(size_t query) const {
  require(query < outputs_.queries.size(), "the last step had no such query");
}

void Node::full_logits(size_t query, float* out) {
  const Stopwatch stopwatch(busy_ns_);
  require(group_->is_root(), "only rank 0 asks for logits");
  check_query(query);
  const RowFrame frame{static_cast<uint32_t>(query)};
  together([&] {
    group_->command(FrameType::SendRow, bytes_of(frame));
    gather_row(*group_, config_, outputs_, query, out);
  });
}

TokenLogit Node::draw_here(size_t query, double fraction) {
  const Range slice = vocab_slice(config_, group_->rank());
  return draw_from_slice(kernels_, outputs_.queries[query], slice, outputs_.kept_slice(query), fraction);
}

TokenLogit Node::draw(size_t query, double coin) {
  const Stopwatch stopwatch(busy_ns_);
  require(group_->is_root(), "only rank 0 draws");
  check_query(query);
  require(coin >= 0.0 && coin < 1.0, "a coin is in [0, 1)");
  const SliceShare share = slice_at(outputs_.queries[query], outputs_.answers[query], coin);
  if (share.slice == 0) return draw_here(query, share.fraction);
  const DrawFrame frame{static_cast<uint32_t>(query), static_cast<uint32_t>(share.slice), share.fraction};
  TokenLogit token;
  together([&] {
    group_->command(FrameType::Draw, bytes_of(frame));
    group_->begin_exchange();
    group_->receive(share.slice, FrameType::Token, std::as_writable_bytes(std::span(&token, 1)));
    group_->wait();
  });
  try {
    check_token(outputs_.queries[query], vocab_slice(config_, share.slice), token);
  } catch (const InvalidArgument& error) {
    group_->reject(share.slice, group_->name_of(share.slice) + " sent " + error.what());
  }
  return token;
}

void Node::stop() {
  require(group_->is_root(), "only rank 0 stops the group");
  group_->command(FrameType::Stop, {});
}

// --- other ranks ---

void Node::follow() {
  require(!group_->is_root(), "rank 0 does not follow");
  std::vector<std::byte> frame;
  const size_t max_frame = Batch::max_frame_bytes(config_);
  while (true) {
    const FrameType command = group_->receive_command(frame, max_frame);
    if (command == FrameType::Stop) return;
    const Stopwatch stopwatch(busy_ns_);
    try {
      obey(command, frame);
    } catch (const InvalidArgument& error) {
      group_->reject(0, group_->name_of(0) + " sent a command that cannot be: " + error.what());
    } catch (const std::exception& error) {
      group_->abort(error.what());
      throw;
    }
  }
}

void Node::obey(FrameType command, std::span<const std::byte> frame) {
  if (command == FrameType::Step) {
    const Batch batch = Batch::from_frame(kernels_, config_, frame);
    accept(batch);
    return run(batch);
  }
  if (command == FrameType::Probe) {
    const auto probe = read_one<ProbeFrame>(frame);
    check(probe, config_);
    return run_probe(probe.num_tokens, probe.scatter != 0);
  }
  if (command == FrameType::SendRow) {
    const auto row = read_one<RowFrame>(frame);
    check_query(row.query);
    return gather_row(*group_, config_, outputs_, row.query, nullptr);
  }
  const auto draw = read_one<DrawFrame>(frame);
  check_query(draw.query);
  require(draw.fraction >= 0.0 && draw.fraction <= 1.0, "a draw's fraction is out of range");
  if (draw.rank != group_->rank()) return;
  const TokenLogit token = draw_here(draw.query, draw.fraction);
  group_->begin_exchange();
  group_->send(0, FrameType::Token, bytes_of(token));
  group_->wait();
}

StepCounters Node::counters() const {
  StepCounters counters;
  counters.steps = steps_;
  counters.tokens = tokens_;
  counters.traffic = group_->counters();
  const uint64_t busy_ns = busy_ns_;  // without the command that is under way
  counters.compute_ns = busy_ns > counters.traffic.wait_ns ? busy_ns - counters.traffic.wait_ns : 0;
  return counters;
}

}  // namespace dllama
