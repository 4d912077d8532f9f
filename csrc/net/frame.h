// The header before every message between nodes. What follows it is known to who sends and receives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace dllama {

enum class FrameType : uint16_t {
  // What the root tells all others to do next.
  Step = 1,
  Stop = 2,
  Probe = 3,
  SendRow = 4,
  Draw = 5,
  // What nodes exchange while they do it.
  Sums = 16,
  Activations = 17,
  Results = 18,
  Logits = 19,
  Token = 20,
  HeadSquares = 21,
};

// Little-endian, as every machine we run on. The receiver knows which frame must come next and how long it must be: it
// compares each field before it uses what follows, so a peer out of step or hostile cannot make it allocate or overrun.
struct FrameHeader {
  uint32_t magic = kMagic;
  FrameType type = FrameType::Step;
  uint16_t stage = 0;  // of the plan; there is one so far
  uint64_t step = 0;   // counts what the root told the group to do
  uint32_t layer = 0;  // counts the exchanges within a step
  uint32_t reserved = 0;
  uint64_t length = 0;  // bytes of payload that follow

  static constexpr uint32_t kMagic = 0x314c4c44;  // "DLL1"
};
static_assert(sizeof(FrameHeader) == 32 && std::is_trivially_copyable_v<FrameHeader>);

// Whether it is one of the root's commands, which name what comes next.
inline bool is_command(FrameType type) {
  return type >= FrameType::Step && type <= FrameType::Draw;
}

}  // namespace dllama
