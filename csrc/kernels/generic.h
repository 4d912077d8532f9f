// What the files of the generic level share.
#pragma once

#include <cmath>
#include <cstdint>

#include "quant/codec.h"

namespace dllama {

inline float widen(float value) {
  return value;
}
inline float widen(uint16_t value) {
  return f16_to_f32(value);
}

inline float soft_capped(float x, float cap) {
  return cap * std::tanh(x / cap);
}

}  // namespace dllama
