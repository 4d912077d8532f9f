// Instructions that the kernels of a level take for fixed inputs, counted one by one: the same on every run.
//
// Under valgrind it marks each kernel for callgrind, whose dumps tools/bench_check.py reads. Otherwise it prints a line
// for each, `count name`, by stepping a child through it: for the instructions that valgrind does not know.
// Usage: count_instructions LEVEL | --levels | --compiler
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "quant/codec.h"

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#define CALLGRIND_TOGGLE_COLLECT
#define CALLGRIND_DUMP_STATS_AT(name) static_cast<void>(name)
#endif

namespace {

using namespace dllama;

constexpr size_t kRows = 48, kCols = 512, kMaxTokens = 16, kHeadDim = 64;

std::vector<float> some_floats(size_t n) {
  std::vector<float> x(n);
  uint32_t state = 1;
  for (float& v : x) v = static_cast<float>(state = state * 1664525u + 1013904223u) * 0x1p-31f - 1.0f;
  return x;
}

struct Case {
  std::string name;
  std::function<void()> run;
};

// What the kernels of one level read and write, and the cases over it.
class Cases {
 public:
  explicit Cases(const Kernels& kernels) : k_(kernels) {
    k_.quantize_activation(x_.data(), activations_.data(), activations_.size());
    add_products("q40", DType::Q40, k_.matmul_q40, activations_.data(), kCols / kBlockSize);
    add_products("q80", DType::Q80, k_.matmul_q80, activations_.data(), kCols / kBlockSize);
    add_products("f16", DType::F16, k_.matmul_f16, x_.data(), kCols);
    add_attention("attend_f16, 4 rows", 4, kPageSize);
    add_attention("attend_f16, 32 rows of a prompt", 32, kPageSize / 2);
    add_q80_attention();
    add_vectors();
  }

  const std::vector<Case>& all() const { return cases_; }

 private:
  template <typename Product, typename Input>
  void add_products(const char* type_name, DType type, Product product, const Input* x, size_t stride) {
    const std::vector<uint8_t> canonical(kRows * row_bytes(type, kCols), 0x11);
    packed_.emplace_back(kRows / k_.row_group * k_.group_bytes(type, kCols));
    k_.pack(type, canonical.data(), kRows, kCols, packed_.back().data());
    for (size_t tokens : {1, 4, 16}) {
      const std::string name =
          "matmul_" + std::string(type_name) + ", " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens");
      cases_.push_back({name, [=, this, w = packed_.back()] {
                          product(w.data(), kRows / k_.row_group, kCols, x, stride, tokens, out_.data(), kRows);
                        }});
    }
  }

  // Rows of four heads each; every next four see a position more.
  void add_attention(const char* name, size_t rows, size_t first_valid) {
    std::vector<uint32_t> valid;
    for (size_t row = 0; row < rows; row++) valid.push_back(static_cast<uint32_t>(first_valid + row / 4));
    cases_.push_back({name, [=, this]() mutable {
                        k_.attend_f16({x_.data(), valid.data(), max_.data(), sum_.data(), out_.data(), rows, kHeadDim},
                                      page_.data(), page_.data());
                      }});
  }

  void add_q80_attention() {
    cases_.push_back({"quantize_query", [this] { q_scales_[0] = k_.quantize_query(x_.data(), kHeadDim, q_.data()); }});
    cases_.push_back({"attend_q80, 4 rows", [this] {
                        AttentionRows rows{x_.data(), valid_.data(), max_.data(), sum_.data(), out_.data(),
                                           4,         kHeadDim};
                        rows.q_quants = q_.data();
                        rows.q_scales = q_scales_.data();
                        const auto* page = reinterpret_cast<const int8_t*>(q80_page_.data());
                        k_.attend_q80(rows, page, page);
                      }});
  }

  void add_vectors() {
    constexpr size_t kSize = 2048;
    cases_.push_back({"quantize_activation",
                      [this] { k_.quantize_activation(x_.data(), activations_.data(), kSize / kBlockSize); }});
    cases_.push_back({"sum_squares", [this] { out_[0] = k_.sum_squares(x_.data(), kSize); }});
    cases_.push_back({"scale_mul", [this] { k_.scale_mul(x_.data(), x_.data(), 0.5f, out_.data(), kSize); }});
    cases_.push_back({"silu_mul", [this] { k_.silu_mul(x_.data(), x_.data(), out_.data(), kSize); }});
    cases_.push_back({"gelu_mul", [this] { k_.gelu_mul(x_.data(), x_.data(), out_.data(), kSize); }});
    cases_.push_back({"exp_sum", [this] { k_.exp_sum(x_.data(), 1.0f, 1.0f, out_.data(), kSize); }});
    cases_.push_back({"dots", [this] { k_.dots(x_.data(), 8, x_.data(), 4, kCols, out_.data(), 8); }});
    cases_.push_back({"rotate_half", [this] { k_.rotate_half(out_.data(), x_.data(), x_.data(), kHeadDim / 2); }});
  }

  const Kernels& k_;
  std::vector<float> x_ = some_floats(kMaxTokens * kCols), out_ = x_;
  std::vector<ActivationQ80> activations_{kMaxTokens * kCols / kBlockSize};
  std::vector<std::vector<uint8_t>> packed_;
  std::vector<uint16_t> page_ = std::vector<uint16_t>(kPageSize * kHeadDim, 0x3000);
  std::vector<float> q80_page_ = std::vector<float>(kPageSize * (kHeadDim / sizeof(float) + 1), 0.5f);
  std::vector<int16_t> q_ = std::vector<int16_t>(4 * kHeadDim, 100);
  std::vector<float> q_scales_ = std::vector<float>(4, 0.01f);
  std::vector<uint32_t> valid_ = std::vector<uint32_t>(4, kPageSize);
  std::vector<float> max_ = std::vector<float>(kPageSize, -std::numeric_limits<float>::infinity());
  std::vector<float> sum_ = std::vector<float>(kPageSize);
  std::vector<Case> cases_;
};

void mark_for_callgrind(const Cases& cases) {
  for (const Case& c : cases.all()) {
    CALLGRIND_TOGGLE_COLLECT;
    c.run();
    CALLGRIND_TOGGLE_COLLECT;
    CALLGRIND_DUMP_STATS_AT(c.name.c_str());
  }
}

constexpr int kCannotStep = 3, kDied = 4;  // exit codes

// Stops before and behind each case, the first time with nothing between.
[[noreturn]] void be_stepped(const Cases& cases) {
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(kCannotStep);
  raise(SIGSTOP);
  raise(SIGSTOP);
  for (const Case& c : cases.all()) {
    raise(SIGSTOP);
    c.run();
    raise(SIGSTOP);
  }
  _exit(0);
}

[[noreturn]] void end(int code, const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::exit(code);
}

// Only the child's own stops and single steps are expected: a kernel that dies must not look like one that is done.
void wait_for_stop(pid_t child, int& status) {
  if (waitpid(child, &status, 0) != child) end(kCannotStep, "this system does not let programs be stepped");
  if (WIFEXITED(status) && WEXITSTATUS(status) == kCannotStep) {
    end(kCannotStep, "this system does not let programs be stepped");
  }
  const bool is_stop = WIFSTOPPED(status) && (WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP);
  if (!is_stop) end(kDied, "a kernel died");
}

// Instructions until the child stops itself, starting from one such stop and going on to the next but one.
long count_steps(pid_t child) {
  int status = 0;
  long steps = 0;
  wait_for_stop(child, status);
  ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_EXITKILL);  // nobody is left behind if this program is ended
  do {
    ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr);
    wait_for_stop(child, status);
    steps++;
  } while (WSTOPSIG(status) == SIGTRAP);
  ptrace(PTRACE_CONT, child, nullptr, nullptr);
  return steps;
}

void print_steps(const Cases& cases) {
  const pid_t child = fork();
  if (child == 0) be_stepped(cases);
  const long empty = count_steps(child);
  for (const Case& c : cases.all()) std::printf("%ld %s\n", count_steps(child) - empty, c.name.c_str());
}

void print_compiler() {
#if defined(__clang__)
  std::printf("clang %d.%d.%d\n", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  std::printf("gcc %d.%d.%d\n", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what == "--compiler") return print_compiler(), 0;
  if (what == "--levels") {
    for (const std::string& isa : supported_isas()) std::printf("%s\n", isa.c_str());
    return 0;
  }
  try {
    const Cases cases(kernels_for(what));
    RUNNING_ON_VALGRIND ? mark_for_callgrind(cases) : print_steps(cases);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
