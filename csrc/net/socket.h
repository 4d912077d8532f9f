// Non-blocking stream sockets and waiting for several of them: the only file that speaks to the system about sockets.
// Connecting, listening and authenticating are Python's.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace dllama {

// Owns one file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd();
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// A connected stream socket in non-blocking mode. Errors throw GroupFailed with the peer's name and the system's words.
class Socket {
 public:
  // Duplicates `fd`: the caller keeps its own, which becomes non-blocking too (the mode is the connection's).
  // Throws InvalidArgument if it is no descriptor, GroupFailed if the system gives no other.
  Socket(int fd, std::string peer);
  int fd() const { return fd_.get(); }
  const std::string& peer() const { return peer_; }

  // One piece of a message: memory to send from, or to receive into.
  struct Piece {
    std::byte* data;
    size_t size;
  };
  // Sends what the system takes now of the pieces laid end to end, from byte `skip` on; returns how much (0: none now).
  size_t send_some(std::span<const Piece> pieces, size_t skip) const;
  // Receives what is there into the pieces laid end to end, from byte `skip` on; returns how much (0: none now).
  // A closed peer throws GroupFailed.
  size_t receive_some(std::span<const Piece> pieces, size_t skip) const;

 private:
  UniqueFd fd_;
  std::string peer_;
};

// A flag that another thread can raise and a poll can see.
class WakeUp {
 public:
  WakeUp();
  void raise() const;
  int fd() const { return read_end_.get(); }

 private:
  UniqueFd read_end_;
  UniqueFd write_end_;
};

// What to wait for on one descriptor.
struct Waiting {
  int fd = -1;
  bool to_send = false;
  bool to_receive = false;
};

// Sleeps until one of them is ready. Returns at once if `waiting` is empty.
void wait_any(std::span<const Waiting> waiting);

}  // namespace dllama
