// Speed of the kernels on one core, for each instruction-set level this machine has.
//
// Prints GMAC/s of the Q40 product for several token counts, then GB/s of its 1-token form over weights that no cache
// holds, beside a plain read of the same memory; then the same of attention, for prompts and for one token. Work is
// timed in slices of under a millisecond and the best of many counts: other work on the machine can only make a slice
// slower. Usage: bench_kernels [level]
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace {

using namespace dllama;

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kCols = 2048;
constexpr size_t kChunkRows = 16384;  // 19 MB of Q40 weights, under a millisecond
constexpr size_t kChunks = 34;        // 642 MB
constexpr double kBudget = 0.2;       // seconds per number

// Anonymous memory on huge pages where the system grants them; lives as long as the process.
uint8_t* huge_buffer(size_t bytes) {
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) std::exit(1);
  const uintptr_t address = (reinterpret_cast<uintptr_t>(raw) + kHugePage - 1) & ~(kHugePage - 1);
  madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<uint8_t*>(address);
}

template <typename Work>
double seconds(Work work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Activations of `tokens` tokens and room for their results.
struct Inputs {
  Inputs(const Kernels& k, size_t rows, size_t cols, size_t tokens)
      : x(tokens * cols / kBlockSize), out(tokens * rows) {
    std::vector<float> values(tokens * cols);
    uint32_t state = 1;
    for (float& v : values) v = static_cast<float>(state = state * 1664525u + 1013904223u) * 0x1p-32f - 0.5f;
    k.quantize_activation(values.data(), x.data(), x.size());
  }

  std::vector<ActivationQ80> x;  // [tokens, cols / kBlockSize]
  std::vector<float> out;        // [tokens, rows]
};

void multiply(const Kernels& k, const uint8_t* w, size_t rows, size_t cols, size_t tokens, Inputs& in) {
  k.matmul_q40(w, rows / k.row_group, cols, in.x.data(), cols / kBlockSize, tokens, in.out.data(), rows);
}

void bench_tokens(const Kernels& k, const uint8_t* w, size_t rows, size_t cols) {
  std::printf("%s, Q40 %zu x %zu, GMAC/s by tokens:", k.isa, rows, cols);
  for (size_t tokens : {1, 2, 3, 4, 5, 8, 64, 512}) {
    Inputs in(k, rows, cols, tokens);
    double best = 1e9;
    for (double spent = 0; spent < kBudget;) {
      const double t = seconds([&] { multiply(k, w, rows, cols, tokens, in); });
      best = std::min(best, t);
      spent += t;
    }
    std::printf("  %zu: %.1f", tokens, static_cast<double>(rows * cols * tokens) / best * 1e-9);
    std::fflush(stdout);
  }
  std::printf("\n");
}

// Passes over all chunks in turns, so that each is long out of the caches when its turn comes, and sums the best time
// of each chunk.
void bench_memory(const Kernels& k, const uint8_t* w) {
  const size_t chunk_bytes = kChunkRows / k.row_group * k.group_bytes(DType::Q40, kCols);
  Inputs in(k, kChunkRows, kCols, 1);
  std::vector<double> read(kChunks, 1e9), product(kChunks, 1e9);
  volatile uint64_t checksum = 0;
  for (int round = 0; round < 10; round++) {
    for (size_t c = 0; c < kChunks; c++) {
      const uint8_t* chunk = w + c * chunk_bytes;
      read[c] = std::min(read[c], seconds([&] { checksum = checksum + k.read_memory(chunk, chunk_bytes / 64 * 64); }));
    }
    for (size_t c = 0; c < kChunks; c++) {
      const uint8_t* chunk = w + c * chunk_bytes;
      product[c] = std::min(product[c], seconds([&] { multiply(k, chunk, kChunkRows, kCols, 1, in); }));
    }
  }
  double read_time = 0, product_time = 0;
  for (size_t c = 0; c < kChunks; c++) {
    read_time += read[c];
    product_time += product[c];
  }
  const double gb = static_cast<double>(kChunks * chunk_bytes) * 1e-9;
  std::printf("%s, 1 token over %.0f MB: %.1f GB/s; plain read %.1f GB/s; ratio %.0f %%\n", k.isa, gb * 1e3,
              gb / product_time, gb / read_time, 100 * read_time / product_time);
}

constexpr size_t kHeadDim = 64;
constexpr size_t kGroupRows = 4;    // query heads of a KV head
constexpr size_t kPromptRows = 48;  // of a tile
constexpr size_t kPages = 64;       // 4096 positions
constexpr size_t kHeads = 128;      // KV heads of all layers, whose pages alternate as in the KV cache

// Query rows of one KV head, and what attention keeps of them.
struct Queries {
  explicit Queries(size_t rows)
      : q(rows * kHeadDim, 0.01f),
        valid(rows, kPageSize),
        max(rows),
        sum(rows),
        acc(rows * kHeadDim),
        q_quants(rows * kHeadDim, 1000),
        q_scales(rows, 1e-5f) {}

  AttentionRows fresh() {
    std::fill(max.begin(), max.end(), -std::numeric_limits<float>::infinity());
    AttentionRows rows{q.data(), valid.data(), max.data(), sum.data(), acc.data(), valid.size(), kHeadDim};
    rows.q_quants = q_quants.data();
    rows.q_scales = q_scales.data();
    return rows;
  }

  std::vector<float> q;  // [rows, kHeadDim]
  std::vector<uint32_t> valid;
  std::vector<float> max, sum, acc;
  std::vector<int16_t> q_quants;  // of Q80 pages
  std::vector<float> q_scales;
};

// Pages of F16 (Element uint16_t) or Q80 (int8_t): [kPages, kHeads, (K, V)].
template <typename Element>
struct Pages {
  static constexpr bool kQuantized = sizeof(Element) == 1;
  static constexpr const char* kName = kQuantized ? "Q80" : "F16";
  static constexpr size_t kHalfBytes = kPageSize * (kHeadDim * sizeof(Element) + (kQuantized ? sizeof(float) : 0));
  static constexpr size_t kStride = kHeads * 2 * kHalfBytes;
  static constexpr size_t kBytes = kPages * kStride;

  // All pages of one head.
  static void attend(const Kernels& k, const uint8_t* keys, Queries& queries) {
    const auto attend_page = [&] {
      if constexpr (kQuantized) {
        return k.attend_q80;
      } else {
        return k.attend_f16;
      }
    }();
    AttentionRows rows = queries.fresh();
    for (size_t page = 0; page < kPages; page++, keys += kStride) {
      rows.next_k = page + 1 < kPages ? keys + kStride : nullptr;
      rows.next_v = page + 1 < kPages ? keys + kStride + kHalfBytes : nullptr;
      attend_page(rows, reinterpret_cast<const Element*>(keys), reinterpret_cast<const Element*>(keys + kHalfBytes));
    }
  }
};

// Two multiply-adds per row, position and dimension.
double attention_macs(size_t rows) {
  return 2.0 * static_cast<double>(rows * kPages * kPageSize * kHeadDim);
}

template <typename Element>
void bench_prompt_attention(const Kernels& k, const uint8_t* pages) {
  Queries queries(kPromptRows);
  double best = 1e9;
  for (double spent = 0; spent < kBudget;) {
    const double t = seconds([&] { Pages<Element>::attend(k, pages, queries); });
    best = std::min(best, t);
    spent += t;
  }
  std::printf("%s, attention of %zu rows, %s: %.1f GMAC/s\n", k.isa, kPromptRows, Pages<Element>::kName,
              attention_macs(kPromptRows) / best * 1e-9);
}

template <typename Element>
void bench_decode_attention(const Kernels& k, const uint8_t* pages) {
  constexpr size_t kPart = Pages<Element>::kBytes / kHeads;
  Queries queries(kGroupRows);
  std::vector<double> read(kHeads, 1e9), attention(kHeads, 1e9);
  volatile uint64_t checksum = 0;
  for (int round = 0; round < 10; round++) {
    for (size_t h = 0; h < kHeads; h++) {
      read[h] = std::min(read[h], seconds([&] { checksum = checksum + k.read_memory(pages + h * kPart, kPart); }));
    }
    for (size_t h = 0; h < kHeads; h++) {
      const uint8_t* keys = pages + h * 2 * Pages<Element>::kHalfBytes;
      attention[h] = std::min(attention[h], seconds([&] { Pages<Element>::attend(k, keys, queries); }));
    }
  }
  double read_time = 0, time = 0;
  for (size_t h = 0; h < kHeads; h++) {
    read_time += read[h];
    time += attention[h];
  }
  const double gb = static_cast<double>(Pages<Element>::kBytes) * 1e-9;
  std::printf("%s, attention of %zu rows, %s: %.1f GB/s, %.1f GMAC/s; plain read %.1f GB/s; ratio %.0f %%\n", k.isa,
              kGroupRows, Pages<Element>::kName, gb / time, kHeads * attention_macs(kGroupRows) / time * 1e-9,
              gb / read_time, 100 * read_time / time);
}

template <typename Element>
void bench_attention(const Kernels& k, const uint8_t* pages) {
  bench_prompt_attention<Element>(k, pages);
  bench_decode_attention<Element>(k, pages);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t bytes = kChunks * kChunkRows * kCols / kBlockSize * sizeof(BlockQ40);  // the same in every layout so far
  uint8_t* w = huge_buffer(bytes);
  for (size_t i = 0; i < bytes; i++) w[i] = static_cast<uint8_t>(i * 37 % 53);  // finite scales wherever they lie
  for (const std::string& isa : argc > 1 ? std::vector<std::string>{argv[1]} : supported_isas()) {
    const Kernels& k = kernels_for(isa);
    bench_tokens(k, w, 2048, kCols);
    bench_tokens(k, w, 8192, kCols);
    bench_memory(k, w);
    bench_attention<uint16_t>(k, w);
    bench_attention<int8_t>(k, w);
  }
  return 0;
}
