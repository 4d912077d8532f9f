#include "net/group.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/errors.h"

namespace dllama {

namespace {

// A peer on the same switch answers in about 100 us, and waking a sleeping core costs 50. Longer waits are a peer's
// work, during which this core rests.
constexpr uint64_t kSpinNs = 200'000;

std::byte* bytes_of(FrameHeader& header) {
  return reinterpret_cast<std::byte*>(&header);
}

}  // namespace

Group::Group(size_t rank, std::span<const int> fds, std::span<const std::string> names) : rank_(rank) {
  require(rank <= fds.size(),
          "rank " + std::to_string(rank) + " is outside a group of " + std::to_string(fds.size() + 1) + " nodes");
  require(names.empty() || names.size() == fds.size(), "a group needs one name per link, or none");
  for (size_t link = 0; link < fds.size(); ++link) {
    const size_t peer = link < rank ? link : link + 1;
    links_.push_back({peer, Socket(fds[link], names.empty() ? "rank " + std::to_string(peer) : names[link])});
  }
}

// --- failing ---

void Group::abort(const std::string& reason) {
  {
    const std::lock_guard lock(failure_mutex_);
    if (reason_.empty()) reason_ = reason;
  }
  aborted_.store(true, std::memory_order_release);
  wake_up_.raise();
}

void Group::reject(size_t rank, const std::string& reason) {
  note_failure(rank);
  abort(reason);
  throw GroupFailed(reason);
}

std::optional<size_t> Group::failed_rank() const {
  const std::lock_guard lock(failure_mutex_);
  return failed_rank_;
}

void Group::note_failure(size_t rank) {
  const std::lock_guard lock(failure_mutex_);
  if (reason_.empty() && !failed_rank_) failed_rank_ = rank;
}

void Group::check_abort() {
  if (!aborted_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(failure_mutex_);
  throw GroupFailed(reason_);
}

// Runs `work`, whose failure ends the group.
template <typename Work>
void Group::guarded(Work work) {
  check_abort();
  try {
    work();
  } catch (const std::exception& error) {
    abort(error.what());
    throw;
  }
}

void Group::check_header(const Link& link, const FrameHeader& got, const FrameHeader& expected) const {
  if (std::memcmp(&got, &expected, sizeof(got)) == 0) return;
  throw GroupFailed(link.socket.peer() + " sent frame type " + std::to_string(static_cast<int>(got.type)) +
                    " of step " + std::to_string(got.step) + "/" + std::to_string(got.layer) + " with " +
                    std::to_string(got.length) + " bytes, expected type " +
                    std::to_string(static_cast<int>(expected.type)) + " of step " + std::to_string(expected.step) +
                    "/" + std::to_string(expected.layer) + " with " + std::to_string(expected.length));
}

// --- moving bytes ---

size_t Group::send_some(Link& link) {
  size_t sent = 0;
  while (!link.out.empty()) {
    Message& message = link.out.messages[link.out.first];
    const Socket::Piece pieces[] = {{bytes_of(message.header), sizeof(FrameHeader)},
                                    {message.payload, message.header.length}};
    const size_t n = link.socket.send_some(pieces, link.out.moved);
    sent += n;
    link.out.moved += n;
    if (link.out.moved < sizeof(FrameHeader) + message.header.length) break;
    ++link.out.first;
    link.out.moved = 0;
  }
  sent_bytes_ += sent;
  return sent;
}

size_t Group::receive_some(Link& link) {
  size_t received = 0;
  while (!link.in.empty()) {
    const Message& message = link.in.messages[link.in.first];
    const Socket::Piece pieces[] = {{bytes_of(link.got), sizeof(FrameHeader)},
                                    {message.payload, message.header.length}};
    const size_t n = link.socket.receive_some(pieces, link.in.moved);
    received += n;
    link.in.moved += n;
    if (n == 0 || link.in.moved < sizeof(FrameHeader)) break;
    check_header(link, link.got, message.header);
    if (link.in.moved < sizeof(FrameHeader) + message.header.length) break;
    ++link.in.first;
    link.in.moved = 0;
  }
  received_bytes_ += received;
  return received;
}

// Sends and receives what goes now; whether anything moved.
bool Group::move_link(Link& link) {
  try {
    const size_t sent = send_some(link);
    return receive_some(link) + sent != 0;
  } catch (const GroupFailed&) {
    note_failure(link.rank);
    throw;
  }
}

bool Group::move_links() {
  bool moved = false;
  for (Link& link : links_) moved |= move_link(link);
  return moved;
}

// Calls `move`, which says whether anything moved, until `done`; sleeps on waiting() when nothing did for a while.
void Group::wait_until(const auto& done, const auto& move, const auto& waiting) {
  uint64_t idle_since = 0;
  while (!done()) {
    check_abort();
    if (move()) {
      idle_since = 0;
      continue;
    }
    const uint64_t now = now_ns();
    if (idle_since == 0) idle_since = now;
    if (now - idle_since < spin_ns_) continue;
    waiting_.assign(1, {wake_up_.fd(), false, true});
    waiting();
    wait_any(waiting_);
  }
}

void Group::wait_links(const auto& is_done) {
  const uint64_t start_ns = now_ns();
  guarded([&] {
    wait_until([&] { return std::all_of(links_.begin(), links_.end(), is_done); }, [&] { return move_links(); },
               [&] {
                 for (const Link& link : links_) {
                   const bool is_done = link.out.empty() && link.in.empty();  // one that hung up would wake us for ever
                   if (!is_done) waiting_.push_back({link.socket.fd(), !link.out.empty(), !link.in.empty()});
                 }
               });
  });
  wait_ns_ += now_ns() - start_ns;
}

void Group::set_busy_polling(bool enabled) {
  spin_ns_ = enabled ? kSpinNs : 0;
}

// --- messages ---

FrameHeader Group::next_header(FrameType type, size_t length) const {
  FrameHeader header;
  header.type = type;
  header.step = step_;
  header.layer = exchange_;
  header.length = length;
  return header;
}

uint32_t Group::begin_exchange() {
  return ++exchange_;
}

void Group::send(size_t rank, FrameType type, std::span<const std::byte> payload) {
  // Only read from, but what is sent and what is received share a type.
  links_[link_of(rank)].out.messages.push_back(
      {next_header(type, payload.size()), const_cast<std::byte*>(payload.data())});
}

void Group::receive(size_t rank, FrameType type, std::span<std::byte> payload) {
  links_[link_of(rank)].in.messages.push_back({next_header(type, payload.size()), payload.data()});
}

void Group::poke() {
  const auto is_idle = [](const Link& link) { return link.out.empty() && link.in.empty(); };
  if (std::all_of(links_.begin(), links_.end(), is_idle)) return;
  const uint64_t start_ns = now_ns();
  guarded([&] { move_links(); });
  wait_ns_ += now_ns() - start_ns;
}

void Group::wait_received(uint32_t exchange) {
  wait_links(
      [=](const Link& link) { return link.in.empty() || link.in.messages[link.in.first].header.layer > exchange; });
}

void Group::wait() {
  wait_links([](const Link& link) { return link.in.empty() && link.out.empty(); });
  for (Link& link : links_) {
    link.in.clear();
    link.out.clear();
  }
}

// --- commands ---

void Group::command(FrameType type, std::span<const std::byte> payload) {
  ++step_;
  exchange_ = 0;
  for (const Link& link : links_) send(link.rank, type, payload);
  if (!links_.empty()) wait();
}

// Receives from the root into data[0..size); `done` says how far it is. Whether anything came.
bool Group::receive_from_root(const Socket& root, std::span<std::byte> data, size_t& done) {
  const Socket::Piece pieces[] = {{data.data(), data.size()}};
  const size_t received = root.receive_some(pieces, done);
  received_bytes_ += received;
  done += received;
  return received != 0;
}

void Group::fill_from_root(std::span<std::byte> data) {
  const Socket& root = links_[link_of(0)].socket;
  size_t done = 0;
  wait_until([&] { return done == data.size(); }, [&] { return receive_from_root(root, data, done); },
             [&] { waiting_.push_back({root.fd(), false, true}); });
}

FrameType Group::receive_command(std::vector<std::byte>& payload, size_t max_length) {
  ++step_;
  exchange_ = 0;
  FrameHeader header;
  const Link& root = links_[link_of(0)];
  guarded([&] {
    try {
      fill_from_root({bytes_of(header), sizeof(header)});
      check_header(root, header, next_header(is_command(header.type) ? header.type : FrameType::Step, header.length));
      if (header.length > max_length) {
        throw GroupFailed(root.socket.peer() + " sent a command of " + std::to_string(header.length) +
                          " bytes, expected at most " + std::to_string(max_length));
      }
      payload.resize(header.length);
      fill_from_root(payload);
    } catch (const GroupFailed&) {
      note_failure(0);  // unless this is an abort
      throw;
    }
  });
  return header.type;
}

TrafficCounters Group::counters() const {
  return {sent_bytes_.load(), received_bytes_.load(), wait_ns_.load()};
}

}  // namespace dllama
