// The errors the core throws. Bindings translate each to the Python exception of the same name.
#pragma once

#include <stdexcept>
#include <string>

namespace dllama {

// A caller passed something out of range: a bug of the caller, or a hostile file or peer.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// DLLAMA_ISA names a level that is unknown, not built, or not in this CPU.
struct UnsupportedIsa : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The operating system refused memory or a thread.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A link failed or the group was aborted; the step's results are lost.
struct GroupFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A message that is put together is so whether it is needed or not; where that costs, give a plain one.
inline void require(bool ok, const char* message) {
  if (!ok) throw InvalidArgument(message);
}
inline void require(bool ok, const std::string& message) {
  if (!ok) throw InvalidArgument(message);
}

}  // namespace dllama
