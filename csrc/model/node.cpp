#include "model/node.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/os_cpu.h"
#include "kernels/dispatch.h"

namespace dllama {

namespace {

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

void Node::run(const Batch& batch) {
  Step step{kernels_, config_, shard_, weights_, cache_, buffers_, pool_, *group_};
  forward(step, batch, outputs_);
  ++steps_;
  tokens_ += step.num_tokens;
}

const Outputs& Node::step(Batch batch) {
  const uint64_t start_ns = now_ns();
  require(group_->is_root(), "only rank 0 starts steps");
  accept(batch);  // before anyone else hears of it
  if (group_->world_size() > 1) {
    // Rank 0 takes the embeddings as the wire carries them, so every rank starts from the same bits.
    const auto frame = batch.to_frame(kernels_, config_.wire_type);
    batch = Batch::from_frame(kernels_, config_, frame);
    group_->command(FrameType::Step, frame);
  }
  run(batch);
  step_ns_ += now_ns() - start_ns;
  return outputs_;
}

void Node::follow() {
  require(!group_->is_root(), "rank 0 does not follow");
  std::vector<std::byte> frame;
  const size_t max_frame = Batch::max_frame_bytes(config_);
  while (true) {
    if (group_->receive_command(frame, max_frame) == FrameType::Stop) return;
    const uint64_t start_ns = now_ns();
    run(receive(frame));
    step_ns_ += now_ns() - start_ns;
  }
}

Batch Node::receive(std::span<const std::byte> frame) {
  try {
    Batch batch = Batch::from_frame(kernels_, config_, frame);
    accept(batch);
    return batch;
  } catch (const InvalidArgument& error) {
    group_->reject(0, group_->name_of(0) + " sent a step that cannot be: " + error.what());
  }
}

void Node::stop() {
  require(group_->is_root(), "only rank 0 stops the group");
  group_->command(FrameType::Stop, {});
}

StepCounters Node::counters() const {
  StepCounters counters;
  counters.steps = steps_;
  counters.tokens = tokens_;
  counters.traffic = group_->counters();
  const uint64_t step_ns = step_ns_;
  counters.compute_ns = step_ns > counters.traffic.wait_ns ? step_ns - counters.traffic.wait_ns : 0;
  return counters;
}

}  // namespace dllama
