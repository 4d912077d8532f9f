// How fast this machine reads memory, measured without any of dllama's code: to check what `dllama bench` reports as
// read_bandwidth (they should agree within 3 %).
//
//   g++ -O3 -march=native -std=c++20 -pthread benchmarks/bandwidth_probe.cpp -o build/bandwidth_probe
//   build/bandwidth_probe [threads] [MiB]
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Lanes = uint64_t __attribute__((vector_size(32)));
constexpr size_t kStep = 8;       // vectors per round: 256 bytes, four cache lines
constexpr size_t kAhead = 2048;   // bytes that the prefetch runs ahead
constexpr double kSeconds = 2.0;  // at least this long
constexpr size_t kHugePage = 2 << 20;

uint64_t read_all(const Lanes* data, size_t count) {
  Lanes sums[kStep] = {};
  for (size_t i = 0; i + kStep <= count; i += kStep) {
    for (size_t line = 0; line < kStep; line += 2) {
      __builtin_prefetch(reinterpret_cast<const char*>(data + i + line) + kAhead);
    }
    for (size_t j = 0; j < kStep; ++j) sums[j] ^= data[i + j];
  }
  for (size_t j = 1; j < kStep; ++j) sums[0] ^= sums[j];
  return sums[0][0] ^ sums[0][1] ^ sums[0][2] ^ sums[0][3];
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : std::thread::hardware_concurrency();
  const size_t mib = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1024;
  if (threads < 1 || mib < threads) {
    std::fprintf(stderr, "usage: bandwidth_probe [threads] [MiB]\n");
    return 2;
  }
  const size_t part = (mib << 20) / threads / kHugePage * kHugePage;
  std::barrier gate(static_cast<std::ptrdiff_t>(threads) + 1);
  std::vector<std::thread> readers;
  std::vector<uint64_t> results(threads * 8);
  bool stop = false;
  for (size_t t = 0; t < threads; ++t) {
    readers.emplace_back([&, t] {
      void* memory = mmap(nullptr, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      madvise(memory, part, MADV_HUGEPAGE);
      std::memset(memory, 1, part);
      gate.arrive_and_wait();
      for (;;) {
        gate.arrive_and_wait();
        if (stop) break;
        results[t * 8] += read_all(static_cast<const Lanes*>(memory), part / sizeof(Lanes));
        gate.arrive_and_wait();
      }
    });
  }
  gate.arrive_and_wait();
  double best = 0;
  const double end = seconds_now() + kSeconds;
  while (seconds_now() < end) {
    const double start = seconds_now();  // before the gate: behind it this thread may wake late
    gate.arrive_and_wait();
    gate.arrive_and_wait();
    best = std::max(best, static_cast<double>(part * threads) / (seconds_now() - start));
  }
  stop = true;
  gate.arrive_and_wait();
  for (std::thread& reader : readers) reader.join();
  uint64_t total = 0;
  for (const uint64_t result : results) total += result;
  std::printf("%.2f GB/s with %zu threads over %zu MiB (checksum %llu)\n", best / 1e9, threads, part * threads >> 20,
              static_cast<unsigned long long>(total));
  return 0;
}
