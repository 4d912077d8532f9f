// Chooses the kernel table once per process: the best level this CPU has, or the one DLLAMA_ISA names.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace dllama {

// The table in use. The first call reads DLLAMA_ISA ("generic", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod",
// "i8mm"; unset or empty: the best). Throws UnsupportedIsa if the level is unknown, not built for this architecture, or
// missing in this CPU: the message says which, and lists the levels that would work.
const Kernels& kernels();

// Levels this build has and this CPU can run, best first; "generic" is always the last.
std::vector<std::string> supported_isas();

// The table of one level of supported_isas(); throws UnsupportedIsa as above. For tests.
const Kernels& kernels_for(const std::string& isa);

}  // namespace dllama
