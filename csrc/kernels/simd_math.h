// Partial vectors and exp, for vectors of any length. Knows no instruction set.
#pragma once

#include "kernels/simd.h"

namespace dllama {
namespace {

// The next kLanes floats, or the last `left` and zeros.
KERNEL_INLINE F32xN load(const float* x, size_t left) {
  return left >= kLanes ? load(x) : load_first(x, left);
}

template <typename Element>
KERNEL_INLINE F32xN load(const Element* x, size_t left) {
  if (left >= kLanes) return load(x);
  Element padded[kLanes] = {};
  std::memcpy(padded, x, left * sizeof(Element));
  return load(padded);
}

KERNEL_INLINE void store(float* x, F32xN v, size_t left) {
  if (left >= kLanes) {
    store(x, v);
  } else {
    store_first(x, v, left);
  }
}

// exp(x) = 2^n (1 + fraction), with n whole.
struct ExpParts {
  F32xN n, fraction;
};

// x = n ln 2 + r with |r| <= ln(2)/2, and exp(r) = 1 + r + r^2 q(r): q is a minimax fit of degree 4, off by at most
// 2^-28 of exp(r).
KERNEL_INLINE ExpParts exp_parts(F32xN x) {
  const F32xN n = round_even(mul(x, all(0x1.715476p+0f)));
  F32xN r = neg_mul_add(n, all(0x1.62e43p-1f), x);  // ln 2, upper part
  r = neg_mul_add(n, all(-0x1.05c61p-29f), r);      // and the rest of it
  F32xN q = all(0x1.6a23dp-10f);
  q = mul_add(q, r, all(0x1.123a2p-7f));
  q = mul_add(q, r, all(0x1.5558f2p-5f));
  q = mul_add(q, r, all(0x1.555492p-3f));
  q = mul_add(q, r, all(0x1.fffffcp-2f));
  return {n, mul_add(mul(r, r), q, r)};
}

// exp with an error below 2 units in the last place; 0 where the result is below the smallest normal float, infinity
// above the largest. 2^n is added to the exponent, which is right whenever the result is normal.
KERNEL_INLINE F32xN exp(F32xN x) {
  const ExpParts parts = exp_parts(x);
  const F32xN result = scale_by_power(add(all(1.0f), parts.fraction), parts.n);
  const F32xN bounded = select_less(x, all(-87.336540f), zeros(), result);  // ln 2^-126
  return select_less(all(88.722832f), x, all(__builtin_inff()), bounded);   // ln of the largest float
}

// cap * tanh(x / cap), to some units in the last place; all lanes of `twice_inverse` are 2 / cap. With e = exp(y) - 1,
// which loses no digits near 0, tanh(y / 2) = e / (e + 2); beyond 20 that is 1. Unlike max, a select lets
// NaN through.
KERNEL_INLINE F32xN soft_capped(F32xN x, F32xN cap, F32xN twice_inverse) {
  const F32xN y = mul(x, twice_inverse);
  const F32xN low = select_less(y, all(-20.0f), all(-20.0f), y);
  const ExpParts parts = exp_parts(select_less(all(20.0f), low, all(20.0f), low));
  const F32xN power = scale_by_power(all(1.0f), parts.n);
  const F32xN e = mul_add(power, parts.fraction, sub(power, all(1.0f)));
  return mul(cap, div(e, add(e, all(2.0f))));
}

}  // namespace
}  // namespace dllama
