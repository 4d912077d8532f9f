// Exchanges between ranks over socket pairs, honest ones and broken ones.
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
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
  auto x = random_values(64, 1);
  const auto before = x;
  group.all_reduce(kernels(), DType::Q80, x.data(), x.size());
  CHECK(check::same_bits(x, before));
  group.broadcast(FrameType::Stop, {});
  CHECK_EQ(group.counters().sent_bytes, uint64_t{0});
}

// Every rank must hold the same bits: the sum, in rank order, of what the wire type makes of each partial sum.
TEST(sums_are_the_same_bits_on_every_rank) {
  constexpr size_t kValues = 32 * 8 * 700;  // larger than a socket's buffer: both directions must flow at once
  for (const size_t size : {2, 3, 4}) {
    for (const DType wire : {DType::F32, DType::F16, DType::Q80}) {
      const check::Scope scope("ranks", size, "wire", static_cast<int>(wire));
      auto groups = make_groups(size);
      std::vector<float> expected(kValues, 0.0f), unpacked(kValues);
      std::vector<std::vector<float>> x;
      for (size_t rank = 0; rank < size; ++rank) {
        x.push_back(random_values(kValues, static_cast<unsigned>(rank + 1)));
        std::vector<std::byte> bytes(wire_bytes(wire, kValues));
        to_wire(kernels(), wire, x[rank].data(), kValues, bytes.data());
        from_wire(kernels(), wire, bytes.data(), kValues, unpacked.data());
        kernels().add(expected.data(), unpacked.data(), kValues);
      }
      on_every_rank(size, [&](size_t rank) {
        groups[rank]->begin_step();
        groups[rank]->all_reduce(kernels(), wire, x[rank].data(), kValues);
      });
      for (const auto& sum : x) CHECK(check::same_bits(sum, expected));
      const auto counters = groups[0]->counters();
      CHECK_EQ(counters.sent_bytes, (size - 1) * (sizeof(FrameHeader) + wire_bytes(wire, kValues)));
      CHECK_EQ(counters.received_bytes, counters.sent_bytes);
    }
  }
}

TEST(rows_are_gathered_on_the_root) {
  auto groups = make_groups(3);
  const std::vector<size_t> columns{4, 3, 2}, first{0, 4, 7};
  std::vector<float> out(2 * 16, -1.0f);
  on_every_rank(3, [&](size_t rank) {
    std::vector<float> rows(2 * columns[rank]);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(100 * rank + i);
    groups[rank]->begin_step();
    groups[rank]->gather_rows(rows.data(), 2, columns, first, out.data(), 16);
  });
  CHECK_EQ(out[4], 100.0f);
  CHECK_EQ(out[16 + 6], 105.0f);
  CHECK_EQ(out[8], 201.0f);
  CHECK_EQ(out[16 + 8], 203.0f);
  CHECK_EQ(out[9], -1.0f);  // nothing beyond the last slice
}

TEST(a_broadcast_arrives_whole) {
  auto groups = make_groups(2);
  std::vector<std::byte> payload(1 << 20), received;
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * 7);
  on_every_rank(2, [&](size_t rank) {
    groups[rank]->begin_step();
    if (rank == 0) {
      groups[0]->broadcast(FrameType::Step, payload);
    } else {
      CHECK(groups[1]->receive_broadcast(received, payload.size()) == FrameType::Step);
    }
  });
  CHECK(received == payload);
}

// --- peers that break the rules -------------------------------------------------------------------------------------

namespace {

// Rank 1 of two, whose root is these bytes and then silence (the socket stays open until the end).
void expect_failure(const std::vector<std::byte>& bytes, bool close_after, const char* message) {
  const Pair pair;
  Group group(1, std::vector<int>{pair.ends[0]});
  close(pair.ends[0]);
  CHECK_EQ(write(pair.ends[1], bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  if (close_after) close(pair.ends[1]);
  std::vector<std::byte> payload;
  group.begin_step();
  CHECK_THROWS(group.receive_broadcast(payload, 1000), GroupFailed, message);
  CHECK_THROWS(group.receive_broadcast(payload, 1000), GroupFailed, message);  // and it stays so
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
  expect_failure(bytes_of(header), false, "a node sent frame");
  expect_failure(std::vector<std::byte>(5), true, "closed its connection");
  expect_failure({}, true, "closed its connection");
}

TEST(a_peer_that_dies_in_an_exchange_is_noticed) {
  const Pair pair;
  Group group(0, std::vector<int>{pair.ends[0]});
  close(pair.ends[0]);
  std::thread killer([&] {
    std::byte some[100];
    CHECK(read(pair.ends[1], some, sizeof(some)) > 0);
    close(pair.ends[1]);
  });
  auto x = random_values(32 * 100000, 3);
  group.begin_step();
  CHECK_THROWS(group.all_reduce(kernels(), DType::F32, x.data(), x.size()), GroupFailed, "");
  killer.join();
}

TEST(abort_ends_a_wait_at_once) {
  auto groups = make_groups(2);
  std::thread aborter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    groups[0]->abort("worker 10.0.0.2 is silent");
  });
  auto x = random_values(32, 5);
  groups[0]->begin_step();
  CHECK_THROWS(groups[0]->all_reduce(kernels(), DType::F32, x.data(), x.size()), GroupFailed, "10.0.0.2 is silent");
  CHECK_THROWS(groups[0]->all_reduce(kernels(), DType::F32, x.data(), x.size()), GroupFailed, "10.0.0.2 is silent");
  aborter.join();
}

TEST(links_are_checked) {
  CHECK_THROWS(Group(0, std::vector<int>{-1}), InvalidArgument, "open socket");
  CHECK_THROWS(Group(3, std::vector<int>{}), InvalidArgument, "rank 3");
}

CHECK_MAIN()
