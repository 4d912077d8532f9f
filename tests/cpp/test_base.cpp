// Threads and memory.
#include <atomic>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "base/errors.h"
#include "base/os_cpu.h"
#include "base/os_memory.h"
#include "base/thread_pool.h"
#include "check.h"

using namespace dllama;

TEST(every_thread_runs_the_task_once) {
  for (const size_t size : {1, 2, 3, 8}) {
    ThreadPool pool(size);
    std::vector<int> ran(size);
    for (int round = 1; round <= 200; ++round) {
      pool.run([&](size_t thread) { ++ran[thread]; });
      for (const int count : ran) CHECK_EQ(count, round);
    }
  }
}

// Each phase reads what every thread wrote in the one before: wrong values, or a race under TSan, if a barrier leaks.
TEST(barriers_separate_phases) {
  for (const size_t size : {2, 3, 5}) {
    ThreadPool pool(size);
    std::vector<size_t> values(size);
    std::atomic<int> wrong{0};
    pool.run([&](size_t thread) {
      for (size_t phase = 1; phase <= 200; ++phase) {
        values[thread] = phase * size + thread;
        pool.barrier();
        for (size_t other = 0; other < size; ++other) wrong += values[other] != phase * size + other;
        pool.barrier();
      }
    });
    CHECK_EQ(wrong.load(), 0);
  }
}

TEST(chunks_are_handed_out_once_per_phase) {
  for (const size_t chunks : {0, 1, 3, 37}) {
    ThreadPool pool(4);
    std::vector<std::atomic<int>> taken(chunks);
    pool.run([&](size_t thread) {
      for (int phase = 0; phase < 50; ++phase) {
        for (size_t c; pool.next_chunk(thread, chunks, c);) ++taken[c];
        pool.barrier();
      }
    });
    for (const auto& count : taken) CHECK_EQ(count.load(), 50);
  }
}

TEST(a_thread_alone_takes_its_own_chunks_first) {
  ThreadPool pool(2);
  std::vector<size_t> order;
  pool.run([&](size_t thread) {
    if (thread == 1) {
      for (size_t c; pool.next_chunk(thread, 6, c);) order.push_back(c);
    }
  });
  CHECK(order == (std::vector<size_t>{3, 4, 5, 0, 1, 2}));
}

TEST(a_loop_left_early_leaves_nothing_for_the_next_run) {
  ThreadPool pool(2);
  CHECK_THROWS(pool.run([&](size_t thread) {
    size_t chunk;
    if (pool.next_chunk(thread, 100, chunk)) throw std::runtime_error("left");
  }),
               std::runtime_error, "left");
  std::vector<std::atomic<int>> taken(3);
  pool.run([&](size_t thread) {
    for (size_t c; pool.next_chunk(thread, taken.size(), c);) ++taken.at(c);
  });
  for (const auto& count : taken) CHECK_EQ(count.load(), 1);
}

TEST(what_comes_next_may_be_fetched_or_not) {
  ThreadPool pool(3);
  const std::vector<std::byte> next(1000);  // no whole number of lines
  std::atomic<int> phases{0};
  pool.run([&](size_t thread) {
    for (int phase = 0; phase < 50; ++phase) {
      pool.barrier(thread == 1 ? std::span<const std::byte>() : std::span(next).subspan(thread));
      ++phases;
    }
  });
  CHECK_EQ(phases.load(), 150);
}

TEST(an_exception_reaches_the_caller_and_the_pool_survives) {
  ThreadPool pool(3);
  for (size_t thrower = 0; thrower < 3; ++thrower) {
    CHECK_THROWS(pool.run([&](size_t thread) {
      if (thread == thrower) throw std::runtime_error("thread failed");
    }),
                 std::runtime_error, "thread failed");
    std::atomic<int> ran{0};
    pool.run([&](size_t) { ++ran; });
    CHECK_EQ(ran.load(), 3);
  }
}

TEST(more_threads_than_cpus_still_finish) {
  ThreadPool pool(4 * allowed_cpus() + 1);
  std::atomic<size_t> ran{0};
  pool.run([&](size_t) {
    for (int i = 0; i < 20; ++i) pool.barrier();
    ++ran;
  });
  CHECK_EQ(ran.load(), pool.size());
}

TEST(splits_cover_everything_once) {
  for (const size_t total : {0, 1, 7, 64}) {
    for (const size_t parts : {1, 2, 3, 9}) {
      size_t next = 0;
      for (size_t i = 0; i < parts; ++i) {
        const Range range = split(total, parts, i);
        CHECK_EQ(range.begin, next);
        next = range.end;
      }
      CHECK_EQ(next, total);
    }
  }
}

TEST(buffers_are_zeroed_aligned_and_movable) {
  const Buffer small(100);
  CHECK_EQ(reinterpret_cast<uintptr_t>(small.data()) % 4096, size_t{0});
  Buffer large(size_t{5} << 20);
  CHECK_EQ(reinterpret_cast<uintptr_t>(large.data()) % (size_t{2} << 20), size_t{0});
  for (size_t i = 0; i < large.size(); i += 4096) CHECK(large.data()[i] == std::byte{0});
  large.data()[large.size() - 1] = std::byte{7};
  const Buffer moved = std::move(large);
  CHECK(moved.data()[moved.size() - 1] == std::byte{7});
  CHECK_EQ(Buffer(0).size(), size_t{0});
}

TEST(a_refused_buffer_says_so) {
  CHECK_THROWS(Buffer(SIZE_MAX), OutOfMemory, "cannot reserve");
  CHECK_THROWS(Buffer(size_t{1} << 60), OutOfMemory, "refused");
}

CHECK_MAIN()
