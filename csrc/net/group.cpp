#include "net/group.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/errors.h"

namespace dllama {

// One frame out to, and one in from, the peer of a link; either may be absent (no pieces, no buffer).
struct Group::Transfer {
  size_t link = 0;
  FrameHeader out_header;
  std::span<const std::byte> out;
  bool sends = false;
  FrameHeader in_header;    // what is expected
  std::byte* in = nullptr;  // in_header.length bytes
  bool receives = false;

  size_t sent = 0;
  size_t received = 0;
  FrameHeader got;

  bool done() const { return !to_send() && !to_receive(); }
  bool to_send() const { return sends && sent < sizeof(FrameHeader) + out.size(); }
  bool to_receive() const { return receives && received < sizeof(FrameHeader) + in_header.length; }
};

Group::Group(size_t rank, std::span<const int> fds) : rank_(rank) {
  require(rank <= fds.size(),
          "rank " + std::to_string(rank) + " is outside a group of " + std::to_string(fds.size() + 1) + " nodes");
  for (const int fd : fds) links_.emplace_back(fd);
  received_.resize(links_.size());
}

void Group::abort(const std::string& reason) {
  {
    const std::lock_guard lock(reason_mutex_);
    if (reason_.empty()) reason_ = reason;
  }
  aborted_.store(true, std::memory_order_release);
  wake_up_.raise();
}

void Group::check_abort() {
  if (!aborted_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(reason_mutex_);
  throw GroupFailed(reason_);
}

TrafficCounters Group::counters() const {
  return {sent_bytes_.load(), received_bytes_.load(), wait_ns_.load()};
}

void Group::begin_step() {
  ++step_;
  exchange_ = 0;
}

FrameHeader Group::next_header(FrameType type, size_t length) const {
  FrameHeader header;
  header.type = type;
  header.step = step_;
  header.layer = exchange_;
  header.length = length;
  return header;
}

void Group::check_header(const FrameHeader& got, const FrameHeader& expected) {
  if (std::memcmp(&got, &expected, sizeof(got)) == 0) return;
  throw GroupFailed("a node sent frame type " + std::to_string(static_cast<int>(got.type)) + " of step " +
                    std::to_string(got.step) + "/" + std::to_string(got.layer) + " with " + std::to_string(got.length) +
                    " bytes, expected type " + std::to_string(static_cast<int>(expected.type)) + " of step " +
                    std::to_string(expected.step) + "/" + std::to_string(expected.layer) + " with " +
                    std::to_string(expected.length));
}

// Sends and receives what goes now; whether anything moved.
bool Group::move_some(Transfer& t) {
  const Socket& socket = links_[t.link];
  size_t moved = 0;
  if (t.to_send()) {
    const Socket::Piece pieces[] = {{reinterpret_cast<const std::byte*>(&t.out_header), sizeof(FrameHeader)},
                                    {t.out.data(), t.out.size()}};
    moved = socket.send_some(pieces, t.sent);
    t.sent += moved;
  }
  if (t.to_receive()) {
    const bool in_header = t.received < sizeof(FrameHeader);
    const size_t done = in_header ? t.received : t.received - sizeof(FrameHeader);
    std::byte* target = in_header ? reinterpret_cast<std::byte*>(&t.got) : t.in;
    const size_t size = in_header ? sizeof(FrameHeader) : t.in_header.length;
    const size_t received = socket.receive_some(target + done, size - done);
    t.received += received;
    moved += received;
    if (in_header && t.received == sizeof(FrameHeader)) check_header(t.got, t.in_header);
  }
  return moved != 0;
}

void Group::move_all(std::span<Transfer> transfers) {
  constexpr int kBusyRounds = 200;  // brief busy polling before sleeping: a peer on the same switch answers in ~100 us
  int idle_rounds = 0;
  std::vector<Waiting> waiting;
  const auto is_done = [](const Transfer& t) { return t.done(); };
  while (!std::all_of(transfers.begin(), transfers.end(), is_done)) {
    check_abort();
    bool moved = false;
    for (Transfer& t : transfers) moved |= move_some(t);
    idle_rounds = moved ? 0 : idle_rounds + 1;
    if (idle_rounds < kBusyRounds) continue;
    waiting.assign(1, {wake_up_.fd(), false, true});
    for (const Transfer& t : transfers) {
      if (!t.done()) waiting.push_back({links_[t.link].fd(), t.to_send(), t.to_receive()});
    }
    wait_any(waiting);
  }
}

void Group::exchange(std::span<Transfer> transfers) {
  const uint64_t start_ns = now_ns();
  check_abort();
  try {
    move_all(transfers);
  } catch (const GroupFailed& error) {
    abort(error.what());
    throw;
  }
  for (const Transfer& t : transfers) {
    sent_bytes_ += t.sent;
    received_bytes_ += t.received;
  }
  wait_ns_ += now_ns() - start_ns;
  ++exchange_;
}

void Group::broadcast(FrameType type, std::span<const std::byte> payload) {
  std::vector<Transfer> transfers(links_.size());
  for (size_t link = 0; link < links_.size(); ++link) {
    transfers[link].link = link;
    transfers[link].out_header = next_header(type, payload.size());
    transfers[link].out = payload;
    transfers[link].sends = true;
  }
  if (!transfers.empty()) exchange(transfers);
}

FrameType Group::receive_broadcast(std::vector<std::byte>& payload, size_t max_length) {
  // The header's type and length are not known before it is here, so it comes as a payload of its own first.
  const Socket& root = links_[link_of(0)];
  FrameHeader header;
  const auto fill = [&](std::byte* data, size_t size) {
    for (size_t done = 0; done < size;) {
      check_abort();
      const size_t n = root.receive_some(data + done, size - done);
      done += n;
      const Waiting waiting[] = {{wake_up_.fd(), false, true}, {root.fd(), false, true}};
      if (n == 0) wait_any(waiting);
    }
    received_bytes_ += size;
  };
  try {
    fill(reinterpret_cast<std::byte*>(&header), sizeof(header));
    check_header(header,
                 next_header(header.type == FrameType::Stop ? FrameType::Stop : FrameType::Step, header.length));
    if (header.length > max_length) {
      throw GroupFailed("the root sent a step of " + std::to_string(header.length) + " bytes, expected at most " +
                        std::to_string(max_length));
    }
    payload.resize(header.length);
    fill(payload.data(), payload.size());
  } catch (const GroupFailed& error) {
    abort(error.what());
    throw;
  }
  ++exchange_;
  return header.type;
}

void Group::all_reduce(const Kernels& kernels, DType wire, float* x, size_t n) {
  if (links_.empty()) return;
  const size_t bytes = wire_bytes(wire, n);
  sent_.resize(bytes);
  unpacked_.resize(n);
  to_wire(kernels, wire, x, n, sent_.data());
  std::vector<Transfer> transfers(links_.size());
  for (size_t link = 0; link < links_.size(); ++link) {
    received_[link].resize(bytes);
    const FrameHeader header = next_header(FrameType::Sum, bytes);
    transfers[link] = {link, header, sent_, true, header, received_[link].data(), true, 0, 0, {}};
  }
  exchange(transfers);
  std::fill_n(x, n, 0.0f);
  for (size_t rank = 0; rank < world_size(); ++rank) {
    from_wire(kernels, wire, rank == rank_ ? sent_.data() : received_[link_of(rank)].data(), n, unpacked_.data());
    kernels.add(x, unpacked_.data(), n);
  }
}

void Group::gather_rows(const float* rows, size_t num_rows, std::span<const size_t> columns,
                        std::span<const size_t> first_columns, float* out, size_t stride) {
  if (links_.empty()) return;
  const auto bytes = [&](size_t rank) { return num_rows * columns[rank] * sizeof(float); };
  if (!is_root()) {
    Transfer transfer;
    transfer.link = link_of(0);
    transfer.out_header = next_header(FrameType::Logits, bytes(rank_));
    transfer.out = {reinterpret_cast<const std::byte*>(rows), bytes(rank_)};
    transfer.sends = true;
    return exchange({&transfer, 1});
  }
  std::vector<Transfer> transfers(links_.size());
  for (size_t rank = 1; rank < world_size(); ++rank) {
    Transfer& transfer = transfers[link_of(rank)];
    received_[link_of(rank)].resize(bytes(rank));
    transfer.link = link_of(rank);
    transfer.in_header = next_header(FrameType::Logits, bytes(rank));
    transfer.in = received_[link_of(rank)].data();
    transfer.receives = true;
  }
  exchange(transfers);
  for (size_t rank = 1; rank < world_size(); ++rank) {
    for (size_t row = 0; row < num_rows; ++row) {
      const size_t row_size = columns[rank] * sizeof(float);
      std::memcpy(out + row * stride + first_columns[rank], received_[link_of(rank)].data() + row * row_size, row_size);
    }
  }
}

size_t wire_bytes(DType wire, size_t n) {
  if (wire == DType::Q80) return n / kBlockSize * sizeof(BlockQ80);
  return n * (wire == DType::F16 ? sizeof(uint16_t) : sizeof(float));
}

void to_wire(const Kernels& kernels, DType wire, const float* x, size_t n, std::byte* out) {
  if (wire == DType::Q80) return kernels.quantize_q80(x, reinterpret_cast<BlockQ80*>(out), n / kBlockSize);
  if (wire == DType::F16) return kernels.f32_to_f16(x, reinterpret_cast<uint16_t*>(out), n);
  std::memcpy(out, x, n * sizeof(float));
}

void from_wire(const Kernels& kernels, DType wire, const std::byte* data, size_t n, float* out) {
  if (wire == DType::Q80) return kernels.dequantize_q80(reinterpret_cast<const BlockQ80*>(data), out, n / kBlockSize);
  if (wire == DType::F16) return kernels.f16_to_f32(reinterpret_cast<const uint16_t*>(data), out, n);
  std::memcpy(out, data, n * sizeof(float));
}

}  // namespace dllama
