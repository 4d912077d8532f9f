// Residual, RMSNorm and quantization of the result: what stands before every pair of products.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "ops/matmul.h"

namespace dllama {

// out = x / sqrt(mean(x^2) + eps) * weight, over [size]; `out` may be `x`.
void rms_norm(const Kernels& kernels, const float* x, const float* weight, float eps, float* out, size_t size);

// For one token: residual += update (unless null), then out.row(out_token) = rms_norm(residual) in the form the next
// product wants. `scratch` [hidden_size] is overwritten.
void add_norm_store(const Kernels& kernels, float* residual, const float* update, const float* weight, float eps,
                    size_t hidden_size, float* scratch, ActivationRows& out, size_t out_token);

}  // namespace dllama
