// Threads that live as long as their node and run one function together, phase after phase.
// Knows nothing of what they compute. The calling thread is thread 0, so a pool of 1 starts no thread at all.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace dllama {

// A half-open range of work.
struct Range {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
};

class ThreadPool {
 public:
  using Task = std::function<void(size_t thread)>;

  // num_threads >= 1. More threads than CPUs is allowed: they then sleep at once instead of spinning.
  // Throws OutOfMemory if the system refuses a thread.
  explicit ThreadPool(size_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t size() const { return num_threads_; }

  // Runs task(thread) once on every thread and returns when all have returned; rethrows the first exception.
  // A task that calls barrier() must not throw before its last barrier: the others would wait for ever.
  // One caller at a time.
  void run(const Task& task);

  // Inside a task: waits until every thread is here, then starts the chunk counts anew. All threads must call it.
  // `next` is what this thread will read soon behind the barrier: if it has to wait, it fetches that meanwhile.
  void barrier(std::span<const std::byte> next = {});

  // Inside a task: hands out the chunks 0..total-1, each once: `chunk` is set to this thread's next one. A thread first
  // gets a contiguous part in order, so that it walks contiguous memory, then what slower threads have left. Half of
  // what is left is taken at once, as each taking is a locked instruction, behind which the CPU reads nothing ahead.
  // Returns false when all are taken. One loop of chunks between two barriers.
  bool next_chunk(size_t thread, size_t total, size_t& chunk);

 private:
  void serve(size_t thread);
  void end();
  void run_one(size_t thread);
  void wait_while(const std::atomic<uint32_t>& value, uint32_t old) const;
  void fetch_while(const std::atomic<uint32_t>& value, uint32_t old, std::span<const std::byte> next) const;
  Range take(size_t total, size_t owner);

  const size_t num_threads_;
  const int spins_;
  const Task* task_ = nullptr;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  std::vector<std::thread> threads_;

  // Each on a cache line of its own: they are written by all threads at different moments.
  alignas(64) std::atomic<uint32_t> round_{0};  // increments per run(), and once to end
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  struct alignas(64) Chunks {
    std::atomic<size_t> taken{0};  // of this thread's part since the last barrier, by whomever
    Range held;                    // by this thread
  };
  std::vector<Chunks> chunks_;  // [num_threads]
  bool ending_ = false;
};

// Parts of `size` items each, the last of maybe fewer, that `total` items make.
inline size_t num_parts(size_t total, size_t size) {
  return (total + size - 1) / size;
}

// The part of `total` items that is `index`-th of `parts`: contiguous, sizes differ by at most one.
inline Range split(size_t total, size_t parts, size_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace dllama
