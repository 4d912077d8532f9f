// What the files of the generic level share.
#pragma once

#include <cstdint>

#include "quant/codec.h"

namespace dllama {

inline float widen(float value) {
  return value;
}
inline float widen(uint16_t value) {
  return f16_to_f32(value);
}

}  // namespace dllama
