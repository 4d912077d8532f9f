// The nodes that run a model together, and the messages between them. A group of one has nobody to exchange anything
// with, so no caller asks whether it is distributed. Knows ranks and frames; not what the bytes in them mean.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "net/frame.h"
#include "net/socket.h"

namespace dllama {

// Bytes, headers included, and time spent in exchanges since the start; a follower's wait for the root's next command
// is no exchange.
struct TrafficCounters {
  uint64_t sent_bytes = 0;
  uint64_t received_bytes = 0;
  uint64_t wait_ns = 0;
};

// But for abort(), failed_rank() and counters(), for one thread at a time.
//
// An exchange is begun, then messages to and from other ranks are queued, in the same order on both ends of a link.
// They move in poke() and wait(), so that work can be done while they travel; their memory must stay until wait().
class Group {
 public:
  // `fds`: connected sockets to every other rank, ascending by rank; they are duplicated. `names`: of the same ranks,
  // for error texts; empty: "rank N".
  Group(size_t rank, std::span<const int> fds, std::span<const std::string> names = {});

  size_t rank() const { return rank_; }
  size_t world_size() const { return links_.size() + 1; }
  bool is_root() const { return rank_ == 0; }
  const std::string& name_of(size_t rank) const { return links_[link_of(rank)].socket.peer(); }

  // Ends any wait of this group now and fails every later one, from any thread. Closes no link: that is the owner's.
  // A failed exchange aborts its group by itself, because a frame may have been sent in part.
  void abort(const std::string& reason);
  // Throws GroupFailed for what `rank` sent, after it was found to be impossible, and aborts the group.
  [[noreturn]] void reject(size_t rank, const std::string& reason);
  // The rank whose link failed first; none if nothing failed, or the group was aborted before.
  std::optional<size_t> failed_rank() const;

  // Whether a wait begins by asking again and again: quicker than sleeping, but only right if a CPU is free for it.
  void set_busy_polling(bool enabled);

  // Root: starts a new step on every other rank by a command; exchanges are numbered within it.
  void command(FrameType type, std::span<const std::byte> payload);
  // Others: receives the root's next command into `payload`; at most `max_length` bytes, else GroupFailed.
  FrameType receive_command(std::vector<std::byte>& payload, size_t max_length);

  // Begins the next exchange of the step; returns its number, which messages queued from now on carry.
  uint32_t begin_exchange();
  void send(size_t rank, FrameType type, std::span<const std::byte> payload);
  void receive(size_t rank, FrameType type, std::span<std::byte> payload);
  // Moves what goes without waiting.
  void poke();
  // Waits until what was to be received in exchanges up to this one is here.
  void wait_received(uint32_t exchange);
  // Waits until nothing is queued.
  void wait();

  TrafficCounters counters() const;

 private:
  struct Message {
    FrameHeader header;  // of what is sent, or what must come
    std::byte* payload;
  };
  // Messages in order; `moved` bytes of the first that is not done are through.
  struct Queue {
    std::vector<Message> messages;
    size_t first = 0;
    size_t moved = 0;
    bool empty() const { return first == messages.size(); }
    void clear() {  // keeps the memory
      messages.clear();
      first = 0;
    }
  };
  struct Link {
    size_t rank;
    Socket socket;
    Queue out = {};
    Queue in = {};
    FrameHeader got = {};
  };
  size_t link_of(size_t rank) const { return rank < rank_ ? rank : rank - 1; }
  FrameHeader next_header(FrameType type, size_t length) const;
  template <typename Work>
  void guarded(Work work);
  void wait_until(const auto& done, const auto& move, const auto& waiting);
  void wait_links(const auto& is_done);
  bool move_links();
  bool move_link(Link& link);
  size_t send_some(Link& link);
  size_t receive_some(Link& link);
  void fill_from_root(std::span<std::byte> data);
  bool receive_from_root(const Socket& root, std::span<std::byte> data, size_t& done);
  void note_failure(size_t rank);
  void check_abort();
  void check_header(const Link& link, const FrameHeader& got, const FrameHeader& expected) const;

  size_t rank_;
  std::vector<Link> links_;
  WakeUp wake_up_;
  uint64_t spin_ns_ = 0;
  std::atomic<bool> aborted_{false};
  mutable std::mutex failure_mutex_;  // of the next two
  std::string reason_;
  std::optional<size_t> failed_rank_;
  uint64_t step_ = 0;
  uint32_t exchange_ = 0;
  std::vector<Waiting> waiting_;
  std::atomic<uint64_t> sent_bytes_{0};
  std::atomic<uint64_t> received_bytes_{0};
  std::atomic<uint64_t> wait_ns_{0};
};

}  // namespace dllama
