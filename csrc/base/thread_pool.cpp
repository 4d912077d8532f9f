#include "base/thread_pool.h"

#include <string>
#include <system_error>

#include "base/errors.h"
#include "base/os_cpu.h"

namespace dllama {

namespace {

// About 50 us on a 3 GHz core: longer than any wait inside a step, shorter than what a sleeping core costs to wake
// twice. Beyond it a waiter sleeps in the kernel.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` is a no-op on most cores; isb waits about as long as x86's pause
#endif
}

}  // namespace

ThreadPool::ThreadPool(size_t num_threads)
    : num_threads_(num_threads), spins_(num_threads <= allowed_cpus() ? kSpins : 0), chunks_(num_threads) {
  try {
    for (size_t thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
  } catch (const std::system_error&) {
    const size_t started = threads_.size() + 1;
    end();
    throw OutOfMemory("the system refused more than " + std::to_string(started) + " of " + std::to_string(num_threads) +
                      " threads");
  }
}

ThreadPool::~ThreadPool() {
  end();
}

void ThreadPool::end() {
  ending_ = true;
  round_.fetch_add(1);
  round_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::wait_while(const std::atomic<uint32_t>& value, uint32_t old) const {
  for (int spin = 0; spin < spins_; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void ThreadPool::fetch_while(const std::atomic<uint32_t>& value, uint32_t old, std::span<const std::byte> next) const {
  constexpr size_t kLine = 64, kLines = 8;  // between two looks at `value`
  for (size_t i = 0; i < next.size() && value.load(std::memory_order_acquire) == old; i += kLines * kLine) {
    for (size_t line = 0; line < kLines; ++line) __builtin_prefetch(next.data() + i + line * kLine, 0, 2);
  }
}

void ThreadPool::barrier(std::span<const std::byte> next) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_threads_) {
    fetch_while(phase_, phase, next);
    wait_while(phase_, phase);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  for (Chunks& chunks : chunks_) {
    chunks.taken.store(0, std::memory_order_relaxed);
    chunks.held = {};  // of a thread that left its loop early; all others wait here
  }
  phase_.store(phase + 1);  // in one order with notify_all's look for waiters, or one could sleep for ever
  phase_.notify_all();
}

bool ThreadPool::next_chunk(size_t thread, size_t total, size_t& chunk) {
  Range& held = chunks_[thread].held;
  for (size_t i = 0; held.size() == 0 && i < num_threads_; ++i) held = take(total, (thread + i) % num_threads_);
  if (held.size() == 0) return false;
  chunk = held.begin++;
  return true;
}

Range ThreadPool::take(size_t total, size_t owner) {
  const Range part = split(total, num_threads_, owner);
  std::atomic<size_t>& count = chunks_[owner].taken;
  size_t taken = count.load(std::memory_order_relaxed);
  while (taken < part.size()) {
    const size_t size = (part.size() - taken + 1) / 2;
    if (!count.compare_exchange_weak(taken, taken + size, std::memory_order_relaxed)) continue;
    return {part.begin + taken, part.begin + taken + size};
  }
  return {};
}

void ThreadPool::run_one(size_t thread) {
  try {
    (*task_)(thread);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
  barrier();
}

void ThreadPool::run(const Task& task) {
  task_ = &task;
  error_ = nullptr;
  round_.fetch_add(1);
  round_.notify_all();
  run_one(0);
  if (error_) std::rethrow_exception(error_);
}

void ThreadPool::serve(size_t thread) {
  for (uint32_t round = 0;; ++round) {
    wait_while(round_, round);
    if (ending_) return;
    run_one(thread);
  }
}

}  // namespace dllama
