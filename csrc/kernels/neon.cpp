// Placeholder until the real kernels land.
#include "kernels/levels.h"

namespace dllama {

void install_neon(Kernels&) {}

}  // namespace dllama
