#include "ops/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/clock.h"
#include "base/os_memory.h"
#include "base/thread_pool.h"

namespace dllama {

double read_bandwidth(const Kernels& kernels, size_t bytes, size_t num_threads, double seconds) {
  constexpr size_t kLine = 64;
  const size_t lines = std::max<size_t>(bytes / kLine, num_threads);
  const Buffer buffer(lines * kLine);
  ThreadPool pool(num_threads);
  std::atomic<uint64_t> checksum{0};  // consumed, so that no compiler drops the reads
  const auto part = [&](size_t thread) {
    const Range range = split(lines, num_threads, thread);
    return std::pair{buffer.data() + range.begin * kLine, range.size() * kLine};
  };
  pool.run([&](size_t thread) {
    const auto [start, size] = part(thread);
    std::memset(start, 1, size);
  });
  const uint64_t end = now_ns() + static_cast<uint64_t>(seconds * 1e9);
  uint64_t best_ns = UINT64_MAX;
  do {
    const uint64_t start_ns = now_ns();
    pool.run([&](size_t thread) {
      const auto [start, size] = part(thread);
      checksum += kernels.read_memory(start, size);
    });
    best_ns = std::min(best_ns, now_ns() - start_ns);
  } while (now_ns() < end);
  return static_cast<double>(lines * kLine) * 1e9 / static_cast<double>(best_ns);
}

}  // namespace dllama
