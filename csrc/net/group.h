// The nodes that run a model together, and what they exchange. A group of one makes every exchange a no-op, so no
// caller asks whether it is distributed. Knows ranks, frames and number types; not what the numbers mean.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "net/frame.h"
#include "net/socket.h"

namespace dllama {

// Bytes and time spent in exchanges since the start.
struct TrafficCounters {
  uint64_t sent_bytes = 0;
  uint64_t received_bytes = 0;
  uint64_t wait_ns = 0;
};

class Group {
 public:
  // `fds`: connected sockets to every other rank, ascending by rank. They are duplicated.
  Group(size_t rank, std::span<const int> fds);

  size_t rank() const { return rank_; }
  size_t world_size() const { return links_.size() + 1; }
  bool is_root() const { return rank_ == 0; }

  // Ends any wait of this group now and fails every later one, from any thread. Closes no link: that is the owner's.
  // A failed exchange aborts its group by itself, because a frame may have been sent in part.
  void abort(const std::string& reason);

  // Root: sends a frame to every other rank.
  void broadcast(FrameType type, std::span<const std::byte> payload);
  // Others: receives the root's next frame into `payload`; at most `max_length` bytes, else GroupFailed.
  FrameType receive_broadcast(std::vector<std::byte>& payload, size_t max_length);

  // x[n] := the sum over ranks of their x, each as `wire` carries it, added in rank order: the same bits on every rank.
  // n is a multiple of kBlockSize. One message to and from each peer.
  void all_reduce(const Kernels& kernels, DType wire, float* x, size_t n);

  // Root: receives from each other rank r its rows [num_rows, columns(r)] into out[row * stride + first_column(r)].
  // Others: sends `rows` to the root. `columns` and `first_columns` are per rank.
  void gather_rows(const float* rows, size_t num_rows, std::span<const size_t> columns,
                   std::span<const size_t> first_columns, float* out, size_t stride);

  // Starts a new step: exchanges are numbered within it.
  void begin_step();

  TrafficCounters counters() const;

 private:
  struct Transfer;
  size_t link_of(size_t rank) const { return rank < rank_ ? rank : rank - 1; }
  FrameHeader next_header(FrameType type, size_t length) const;
  void exchange(std::span<Transfer> transfers);
  void move_all(std::span<Transfer> transfers);
  bool move_some(Transfer& transfer);
  void check_abort();
  static void check_header(const FrameHeader& got, const FrameHeader& expected);

  size_t rank_;
  std::vector<Socket> links_;
  WakeUp wake_up_;
  std::atomic<bool> aborted_{false};
  std::mutex reason_mutex_;
  std::string reason_;
  uint64_t step_ = 0;
  uint32_t exchange_ = 0;
  std::vector<std::vector<std::byte>> received_;  // [link] payloads of all_reduce, kept between calls
  std::vector<std::byte> sent_;
  std::vector<float> unpacked_;
  std::atomic<uint64_t> sent_bytes_{0};
  std::atomic<uint64_t> received_bytes_{0};
  std::atomic<uint64_t> wait_ns_{0};
};

// Bytes of n floats (a multiple of kBlockSize) as `wire` carries them; to the wire and back.
size_t wire_bytes(DType wire, size_t n);
void to_wire(const Kernels& kernels, DType wire, const float* x, size_t n, std::byte* out);
void from_wire(const Kernels& kernels, DType wire, const std::byte* data, size_t n, float* out);

}  // namespace dllama
