#include "base/os_cpu.h"

#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace dllama {

size_t allowed_cpus() {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<size_t>(CPU_COUNT(&set));
#endif
  const size_t count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : count;
}

}  // namespace dllama
