// One rank: its slices, its pages and its threads. Rank 0 is told what to do by Python; the others follow it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "model/forward.h"

namespace dllama {

struct StepCounters {
  uint64_t steps = 0;
  uint64_t tokens = 0;
  uint64_t compute_ns = 0;  // wall time of all the root commands, less the time in exchanges
  TrafficCounters traffic;
};

class Node {
 public:
  // Reserves all memory. Throws InvalidArgument or OutOfMemory.
  Node(NodeConfig config, std::shared_ptr<Group> group);
  // The most that a rank needs beside weights and KV pages, whatever the root asks of it.
  static size_t buffer_bytes(const NodeConfig& config, size_t rank);

  const NodeConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  void load_rows(const std::string& name, size_t first_row, size_t num_rows, const std::byte* data, size_t size);

  // Rank 0: runs one step on every rank. The result is valid until the next step.
  const Outputs& step(Batch batch);
  // Rank 0: steps of at least so many tokens exchange their sums by scatter (sync.h); 0: none does, as it must be where
  // sums are normed (else InvalidArgument).
  void set_scatter_from(size_t num_tokens);
  size_t scatter_from() const { return scatter_from_; }
  // Rank 0: seconds that one exchange behind a product takes for so many tokens. Disturbs no sequence.
  double probe(size_t num_tokens, bool scatter);
  // Seconds that this rank's products of a step of so many tokens take by themselves. Disturbs no sequence.
  double time_products(size_t num_tokens);
  // Rank 0, of query `query` of the last step: its whole row of logits into out[vocab_size], and a draw from all its
  // candidates: the first, in token order, at which the cumulative probability exceeds `coin`, which is in [0, 1).
  void full_logits(size_t query, float* out);
  TokenLogit draw(size_t query, double coin);
  // Other ranks: run rank 0's steps until it stops the group (returns) or is lost (throws GroupFailed).
  void follow();
  // Rank 0: ends follow() on the others.
  void stop();

  // May be called from any thread.
  StepCounters counters() const;

 private:
  template <typename Work>
  auto together(const Work& work);
  void accept(const Batch& batch);  // checks all of it, then sets its pages; or throws, changing nothing
  void obey(FrameType command, std::span<const std::byte> frame);
  Step make_step(bool scatter);
  void run(const Batch& batch);
  void run_probe(size_t num_tokens, bool scatter);
  void check_query(size_t query) const;
  TokenLogit draw_here(size_t query, double fraction);

  NodeConfig config_;
  std::shared_ptr<Group> group_;
  const Kernels& kernels_;
  const Shard& shard_;
  ThreadPool pool_;
  Weights weights_;
  KvCache cache_;
  Activations buffers_;
  Outputs outputs_;
  size_t scatter_from_ = 0;
  std::atomic<uint64_t> steps_{0};
  std::atomic<uint64_t> tokens_{0};
  std::atomic<uint64_t> busy_ns_{0};
};

}  // namespace dllama
