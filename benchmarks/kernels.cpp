// Speed of the kernels on one core, for each instruction-set level this machine has.
//
// Prints GMAC/s of the Q40 product for several token counts, then GB/s of its 1-token form over weights that no cache
// holds, beside a plain read of the same memory. Every number is the best of several runs: other work on the machine
// can only make a run slower. Usage: bench_kernels [level]
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace {

using namespace dllama;

constexpr size_t kHugePage = 2 << 20;
constexpr int kRounds = 7;

// Anonymous memory on huge pages where the system grants them; lives as long as the process.
uint8_t* huge_buffer(size_t bytes) {
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) std::exit(1);
  auto address = (reinterpret_cast<uintptr_t>(raw) + kHugePage - 1) & ~(kHugePage - 1);
  madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<uint8_t*>(address);
}

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Inputs {
  std::vector<ActivationQ80> x;  // [tokens, blocks]
  std::vector<float> out;        // [tokens, rows]
};

Inputs make_inputs(const Kernels& k, size_t rows, size_t cols, size_t tokens) {
  std::vector<float> x(cols * tokens);
  uint32_t state = 1;
  for (float& value : x) value = static_cast<float>(state = state * 1664525u + 1013904223u) * 0x1p-32f - 0.5f;
  Inputs inputs{std::vector<ActivationQ80>(x.size() / kBlockSize), std::vector<float>(rows * tokens)};
  k.quantize_activation(x.data(), inputs.x.data(), inputs.x.size());
  return inputs;
}

// Fills with finite scales and arbitrary nibbles: packed weights of any level.
void fill_weights(uint8_t* w, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) w[i] = static_cast<uint8_t>(i * 37 % 53);
}

void bench_tokens(const Kernels& k, uint8_t* w, size_t rows, size_t cols) {
  std::printf("%s, Q40 %zu x %zu, GMAC/s per core:", k.isa, rows, cols);
  const size_t groups = rows / k.row_group;
  for (size_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 64, 512}) {
    Inputs in = make_inputs(k, rows, cols, tokens);
    const size_t repeats = std::max<size_t>(1, 64 / tokens);
    double best = 1e9;
    for (int round = 0; round < kRounds; round++) {
      best = std::min(best, seconds([&] {
                        for (size_t i = 0; i < repeats; i++) {
                          k.matmul_q40(w, groups, cols, in.x.data(), cols / kBlockSize, tokens, in.out.data(), rows);
                        }
                      }));
    }
    std::printf("  %zu: %.1f", tokens, static_cast<double>(rows * cols * tokens * repeats) / best * 1e-9);
    std::fflush(stdout);
  }
  std::printf("\n");
}

void bench_memory(const Kernels& k, uint8_t* w, size_t rows, size_t cols) {
  const size_t groups = rows / k.row_group;
  const size_t bytes = groups * k.group_bytes(DType::Q40, cols);
  Inputs in = make_inputs(k, rows, cols, 1);
  double product = 1e9, read = 1e9;
  uint64_t checksum = 0;
  for (int round = 0; round < kRounds; round++) {  // in turns, so that a slow spell of the machine hits both
    read = std::min(read, seconds([&] { checksum += k.read_memory(w, bytes / 64 * 64); }));
    product = std::min(product, seconds([&] {
                         k.matmul_q40(w, groups, cols, in.x.data(), cols / kBlockSize, 1, in.out.data(), rows);
                       }));
  }
  const double gb = static_cast<double>(bytes) * 1e-9;
  std::printf("%s, 1 token over %.0f MB: %.1f GB/s, plain read %.1f GB/s (%.0f %%) [%llx]\n", k.isa, gb * 1e3,
              gb / product, gb / read, 100 * read / product, static_cast<unsigned long long>(checksum));
}

}  // namespace

int main(int argc, char** argv) {
  constexpr size_t kCols = 2048;
  constexpr size_t kManyRows = 557056;  // 557056 x 2048 Q40 = 642 MB
  const size_t bytes = kManyRows * kCols / kBlockSize * sizeof(BlockQ40);
  uint8_t* w = huge_buffer(bytes + kHugePage);
  fill_weights(w, bytes + kHugePage);
  for (const std::string& isa : supported_isas()) {
    if (argc > 1 && isa != argv[1]) continue;
    const Kernels& k = kernels_for(isa);
    if (isa != "generic" || argc > 1) {
      bench_tokens(k, w, 2048, kCols);
      bench_tokens(k, w, 8192, kCols);
      bench_tokens(k, w, 2048, 8192);
    }
    bench_memory(k, w, kManyRows, kCols);
  }
  return 0;
}
