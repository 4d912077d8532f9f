// Exchanges between ranks over socket pairs, honest ones and broken ones.
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/errors.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "net/group.h"
#include "net/wire.h"

using namespace dllama;

namespace {

struct Pair {
  int ends[2];
  Pair() { socketpair(AF_UNIX, SOCK_STREAM, 0, ends); }
};

// A full mesh of `size` groups over socket pairs.
std::vector<std::unique_ptr<Group>> make_groups(size_t size) {
  std::vector<std::vector<int>> fds(size);
  std::vector<std::vector<int>> mesh(size, std::vector<int>(size, -1));
  for (size_t a = 0; a < size; ++a) {
    for (size_t b = a + 1; b < size; ++b) {
      const Pair pair;
      mesh[a][b] = pair.ends[0];
      mesh[b][a] = pair.ends[1];
    }
  }
  std::vector<std::unique_ptr<Group>> groups;
  for (size_t rank = 0; rank < size; ++rank) {
    for (size_t peer = 0; peer < size; ++peer) {
      if (peer != rank) fds[rank].push_back(mesh[rank][peer]);
    }
    groups.push_back(std::make_unique<Group>(rank, fds[rank]));
    for (const int fd : fds[rank]) close(fd);
  }
  return groups;
}

void on_every_rank(size_t size, const std::function<void(size_t rank)>& work) {
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < size; ++rank) threads.emplace_back(work, rank);
  for (auto& thread : threads) thread.join();
}

std::vector<float> random_values(size_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

}  // namespace

TEST(a_group_of_one_exchanges_nothing) {
  Group group(0, {});
  group.begin_exchange();
  group.poke();
  group.wait();
  group.command(FrameType::Stop, {});
  CHECK_EQ(group.counters().sent_bytes, uint64_t{0});
}

// Messages larger than a socket's buffer: both directions must flow at once, and several exchanges can be under way.
TEST(messages_of_several_exchanges_arrive_in_order) {
  for (const size_t size : {2, 3, 5}) {
    constexpr size_t kBytes = 1 << 20;
    auto groups = make_groups(size);
    on_every_rank(size, [&](size_t rank) {
      Group& group = *groups[rank];
      std::vector<std::byte> out[2], in[2];
      uint32_t numbers[2];
      for (size_t round = 0; round < 2; ++round) {
        out[round].assign(kBytes, static_cast<std::byte>(16 * round + rank));
        in[round].resize(kBytes * size);
        numbers[round] = group.begin_exchange();
        for (size_t peer = 0; peer < size; ++peer) {
          if (peer == rank) continue;
          group.send(peer, FrameType::Sums, out[round]);
          group.receive(peer, FrameType::Sums, std::span(in[round]).subspan(peer * kBytes, kBytes));
        }
        group.poke();
      }
      for (size_t round = 0; round < 2; ++round) {
        group.wait_received(numbers[round]);
        for (size_t peer = 0; peer < size; ++peer) {
          const auto expected = static_cast<std::byte>(16 * round + peer);
          if (peer != rank)
            CHECK(in[round][peer * kBytes] == expected && in[round][(peer + 1) * kBytes - 1] == expected);
        }
      }
      group.wait();
      const auto counters = group.counters();
      CHECK_EQ(counters.sent_bytes, 2 * (size - 1) * (sizeof(FrameHeader) + kBytes));
      CHECK_EQ(counters.received_bytes, counters.sent_bytes);
    });
  }
}

TEST(a_command_arrives_whole) {
  auto groups = make_groups(2);
  std::vector<std::byte> payload(1 << 20), received;
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * 7);
  on_every_rank(2, [&](size_t rank) {
    if (rank == 0) {
      groups[0]->command(FrameType::Step, payload);
    } else {
      CHECK(groups[1]->receive_command(received, payload.size()) == FrameType::Step);
    }
  });
  CHECK(received == payload);
  CHECK_EQ(groups[1]->counters().wait_ns, uint64_t{0});  // waiting for work is no exchange
}

TEST(values_survive_the_wire) {
  const auto x = random_values(32 * 9, 3);
  for (const DType wire : {DType::F32, DType::F16, DType::Q80}) {
    std::vector<std::byte> bytes(wire_bytes(wire, x.size()));
    std::vector<float> back(x.size());
    to_wire(kernels(), wire, x.data(), x.size(), bytes.data());
    from_wire(kernels(), wire, bytes.data(), x.size(), back.data());
    // Half a step of 1/127 of the largest value; F16 keeps 11 bits.
    const double tolerance = wire == DType::F32 ? 0.0 : wire == DType::F16 ? 4.0 / 2048 : 4.0 / 254;
    for (size_t i = 0; i < x.size(); ++i) CHECK_NEAR(back[i], x[i], tolerance);
  }
}

// A sum of q80 parts is off by at most half a step of each part's block, 1/127 of its largest value, and what rounding
// the step itself to F16 moves 127 of them: 127 / 2048 of half a step. F32 additions come on top.
TEST(a_sum_over_ranks_is_within_the_bound_of_its_parts) {
  constexpr size_t kRanks = 5, kBlocks = 40, kValues = kBlocks * kBlockSize;
  std::vector<float> sum(kValues), part(kValues);
  std::vector<double> exact(kValues), bound(kValues);
  for (unsigned rank = 0; rank < kRanks; ++rank) {
    auto x = random_values(kValues, 20 + rank);
    for (size_t i = 0; i < kValues; ++i) x[i] *= std::ldexp(1.0f, static_cast<int>(i / kBlockSize % 13) - 6);
    std::vector<std::byte> bytes(wire_bytes(DType::Q80, kValues));
    to_wire(kernels(), DType::Q80, x.data(), kValues, bytes.data());
    from_wire(kernels(), DType::Q80, bytes.data(), kValues, part.data());
    kernels().add(sum.data(), part.data(), kValues);
    for (size_t block = 0; block < kBlocks; ++block) {
      double largest = 0.0;
      for (size_t i = block * kBlockSize; i < (block + 1) * kBlockSize; ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(x[i])));
        exact[i] += static_cast<double>(x[i]);
      }
      const double step = largest / 127;
      for (size_t i = block * kBlockSize; i < (block + 1) * kBlockSize; ++i) {
        bound[i] += step / 2 + 127 * step / 2048 + kRanks * largest * 0x1p-23;
      }
    }
  }
  double worst = 0.0;
  for (size_t i = 0; i < kValues; ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(sum[i]) - exact[i]) / bound[i]);
  }
  CHECK(worst <= 1.0);
  CHECK(worst > 0.5);  // the bound is not far from what happens
}

// --- peers that break the rules -------------------------------------------------------------------------------------

namespace {

// Rank 1 of two, whose root is these bytes and then silence (the socket stays open until the end).
void expect_failure(const std::vector<std::byte>& bytes, bool close_after, const char* message) {
  const Pair pair;
  Group group(1, std::vector<int>{pair.ends[0]}, std::vector<std::string>{"the root"});
  close(pair.ends[0]);
  CHECK_EQ(write(pair.ends[1], bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  if (close_after) close(pair.ends[1]);
  std::vector<std::byte> payload;
  CHECK_THROWS(group.receive_command(payload, 1000), GroupFailed, message);
  CHECK_THROWS(group.receive_command(payload, 1000), GroupFailed, message);  // and it stays so
  CHECK(group.failed_rank() == size_t{0});
  if (!close_after) close(pair.ends[1]);
}

std::vector<std::byte> bytes_of(const FrameHeader& header) {
  std::vector<std::byte> bytes(sizeof(header));
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

}  // namespace

TEST(strange_frames_end_the_group_with_the_reason) {
  FrameHeader header;
  header.step = 1;
  header.length = uint64_t{1} << 62;
  expect_failure(bytes_of(header), false, "expected at most 1000");
  header.length = 10;
  header.step = 7;
  expect_failure(bytes_of(header), false, "of step 7");
  header.magic = 0x20544547;  // "GET "
  expect_failure(bytes_of(header), false, "the root sent frame");
  expect_failure(std::vector<std::byte>(5), true, "the root closed its connection");
  expect_failure({}, true, "the root closed its connection");
}

namespace {

// Queues an exchange of these many bytes with every peer, and waits for it.
void exchange(Group& group, std::vector<std::byte>& out, std::vector<std::byte>& in) {
  group.begin_exchange();
  const size_t part = in.size() / group.world_size();
  for (size_t peer = 0; peer < group.world_size(); ++peer) {
    if (peer == group.rank()) continue;
    group.send(peer, FrameType::Sums, out);
    group.receive(peer, FrameType::Sums, std::span(in).subspan(peer * part, part));
  }
  group.wait();
}

}  // namespace

TEST(a_peer_that_dies_in_an_exchange_is_noticed_and_named) {
  const Pair first, second;
  const std::vector<std::string> names{"worker a", "worker b"};
  Group group(0, std::vector<int>{first.ends[0], second.ends[0]}, names);
  close(first.ends[0]);
  close(second.ends[0]);
  std::thread killer([&] {
    std::byte some[100];
    CHECK(read(second.ends[1], some, sizeof(some)) > 0);
    close(second.ends[1]);
  });
  std::vector<std::byte> out(1 << 22), in(3 << 22);
  CHECK_THROWS(exchange(group, out, in), GroupFailed, "worker b");
  CHECK(group.failed_rank() == size_t{2});
  killer.join();
  close(first.ends[1]);
}

TEST(a_message_of_another_length_or_kind_ends_the_group) {
  for (const size_t wrong : {size_t{0}, size_t{1}, size_t{2}}) {
    const Pair pair;
    Group group(0, std::vector<int>{pair.ends[0]});
    close(pair.ends[0]);
    FrameHeader header;
    header.type = wrong == 0 ? FrameType::Logits : FrameType::Sums;
    header.layer = wrong == 1 ? 2 : 1;
    header.length = wrong == 2 ? 65 : 64;
    auto bytes = bytes_of(header);
    bytes.resize(bytes.size() + 65);
    CHECK_EQ(write(pair.ends[1], bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    std::vector<std::byte> out(64), in(128);
    CHECK_THROWS(exchange(group, out, in), GroupFailed, "rank 1 sent frame type");
    close(pair.ends[1]);
  }
}

TEST(abort_ends_every_wait_at_once) {
  for (const bool is_follower : {false, true}) {
    auto groups = make_groups(2);
    Group& group = *groups[is_follower ? 1 : 0];
    std::thread aborter([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      group.abort("worker 10.0.0.2 is silent");
    });
    std::vector<std::byte> out(64), in(128);
    const auto wait = [&] { is_follower ? static_cast<void>(group.receive_command(in, 9)) : exchange(group, out, in); };
    CHECK_THROWS(wait(), GroupFailed, "10.0.0.2 is silent");
    CHECK_THROWS(wait(), GroupFailed, "10.0.0.2 is silent");
    CHECK(!group.failed_rank());
    aborter.join();
  }
}

// Not only what is wrong with a link: whatever ends a wait in the middle leaves a frame in part.
TEST(any_failure_within_an_exchange_ends_the_group) {
  const Pair pair;
  Group group(1, std::vector<int>{pair.ends[0]});
  close(pair.ends[0]);
  FrameHeader header;
  header.step = 1;
  header.length = SIZE_MAX;
  CHECK_EQ(write(pair.ends[1], &header, sizeof(header)), static_cast<ssize_t>(sizeof(header)));
  std::vector<std::byte> payload;
  CHECK_THROWS(group.receive_command(payload, SIZE_MAX), std::length_error, "");
  group.begin_exchange();
  group.send(0, FrameType::Sums, payload);
  CHECK_THROWS(group.poke(), GroupFailed, "");
  close(pair.ends[1]);
}

TEST(a_lack_of_descriptors_is_no_wrong_descriptor) {
  const Pair pair;
  rlimit before;
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{1, before.rlim_max};  // descriptor 0 is taken
  setrlimit(RLIMIT_NOFILE, &none);
  CHECK_THROWS(Socket(pair.ends[0], "rank 1"), GroupFailed, "Too many open files");
  setrlimit(RLIMIT_NOFILE, &before);
  CHECK_THROWS(Socket(-1, "rank 1"), InvalidArgument, "descriptor -1");
  for (const int end : pair.ends) close(end);
}

TEST(links_are_checked) {
  CHECK_THROWS(Group(0, std::vector<int>{-1}), InvalidArgument, "open socket");
  CHECK_THROWS(Group(3, std::vector<int>{}), InvalidArgument, "rank 3");
  CHECK_THROWS(Group(0, std::vector<int>{0}, std::vector<std::string>{"a", "b"}), InvalidArgument, "one name per link");
}

CHECK_MAIN()
