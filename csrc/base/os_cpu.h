// What the operating system says of the CPUs.
#pragma once

#include <cstddef>

namespace dllama {

// CPUs this process may run on (its affinity mask), at least 1.
size_t allowed_cpus();

}  // namespace dllama
