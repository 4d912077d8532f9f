#include "net/socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/errors.h"

namespace dllama {

namespace {

// `error`: errno, taken before `what` was put together, which may change it.
[[noreturn]] void fail(int error, const std::string& what) {
  throw GroupFailed(what + ": " + std::strerror(error));
}

bool is_transient(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

void set_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) fail(errno, "cannot make a link non-blocking");
}

int duplicate(int fd) {
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  const int error = errno;
  if (copy >= 0) return copy;
  if (error == EBADF) throw InvalidArgument("a link needs an open socket, found descriptor " + std::to_string(fd));
  fail(error, "cannot duplicate a link");
}

// A message's pieces from byte `skip` on, as the system takes them.
struct Vectors {
  static constexpr size_t kMaxItems = 4;
  iovec items[kMaxItems];
  msghdr message{};

  Vectors(std::span<const Socket::Piece> pieces, size_t skip) {
    message.msg_iov = items;
    for (const Socket::Piece& piece : pieces) {
      if (skip >= piece.size) {
        skip -= piece.size;
        continue;
      }
      if (message.msg_iovlen == kMaxItems) break;
      items[message.msg_iovlen++] = {piece.data + skip, piece.size - skip};
      skip = 0;
    }
  }
};

}  // namespace

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

Socket::Socket(int fd, std::string peer) : fd_(duplicate(fd)), peer_(std::move(peer)) {
  set_nonblocking(fd_.get());
}

size_t Socket::send_some(std::span<const Piece> pieces, size_t skip) const {
  Vectors vectors(pieces, skip);
  if (vectors.message.msg_iovlen == 0) return 0;
  const ssize_t sent = sendmsg(fd_.get(), &vectors.message, MSG_NOSIGNAL);
  if (sent >= 0) return static_cast<size_t>(sent);
  const int error = errno;
  if (is_transient(error)) return 0;
  fail(error, "sending to " + peer_ + " failed");
}

size_t Socket::receive_some(std::span<const Piece> pieces, size_t skip) const {
  Vectors vectors(pieces, skip);
  if (vectors.message.msg_iovlen == 0) return 0;
  const ssize_t received = recvmsg(fd_.get(), &vectors.message, 0);
  if (received > 0) return static_cast<size_t>(received);
  if (received == 0) throw GroupFailed(peer_ + " closed its connection");
  const int error = errno;
  if (is_transient(error)) return 0;
  fail(error, "receiving from " + peer_ + " failed");
}

WakeUp::WakeUp() {
  int ends[2];
  if (pipe(ends) != 0) fail(errno, "cannot create a pipe");
  read_end_ = UniqueFd(ends[0]);
  write_end_ = UniqueFd(ends[1]);
  for (const int end : ends) {
    set_nonblocking(end);
    fcntl(end, F_SETFD, FD_CLOEXEC);
  }
}

void WakeUp::raise() const {
  const char byte = 1;
  // A full pipe is already readable, which is all a raise wants.
  [[maybe_unused]] const ssize_t written = write(write_end_.get(), &byte, 1);
}

void wait_any(std::span<const Waiting> waiting) {
  if (waiting.empty()) return;
  std::vector<pollfd> polled;
  for (const Waiting& w : waiting) {
    const int events = (w.to_send ? POLLOUT : 0) | (w.to_receive ? POLLIN : 0);
    polled.push_back({w.fd, static_cast<short>(events), 0});
  }
  if (poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) fail(errno, "waiting for the other nodes failed");
}

}  // namespace dllama
