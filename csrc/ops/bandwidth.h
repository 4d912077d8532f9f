// How fast this machine reads memory: the roof that decode is compared with.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace dllama {

// Best rate, in bytes per second, of `num_threads` threads reading a buffer of `bytes` in huge pages, each its own
// part, pass after pass for about `seconds`. Choose `bytes` several times the last-level cache.
double read_bandwidth(const Kernels& kernels, size_t bytes, size_t num_threads, double seconds);

}  // namespace dllama
