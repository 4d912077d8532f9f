// RMSNorm and quantization of the result: what stands before every pair of products.
#pragma once

#include <cstddef>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "ops/matmul.h"

namespace dllama {

// out = x / sqrt(mean(x^2) + eps) * weight, over [size]; `out` may be `x`.
void rms_norm(const Kernels& kernels, const float* x, const float* weight, float eps, float* out, size_t size);

// The same in two steps, so that nodes that hold a range of x each can share the first and its result travels
// quantized: the columns `range` of a token become x * weight, in the form the next product wants; then the
// whole token is multiplied by 1/rms. `scratch` [range.size()] is overwritten.
void store_weighted(const Kernels& kernels, const float* x, const float* weight, Range range, float* scratch,
                    ActivationRows& out, size_t token);
float inverse_rms(float sum_squares, float eps, size_t size);

}  // namespace dllama
