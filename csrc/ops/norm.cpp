#include "ops/norm.h"

#include <cmath>

namespace dllama {

void rms_norm(const Kernels& kernels, const float* x, const float* weight, float eps, float* out, size_t size) {
  const float mean = kernels.sum_squares(x, size) / static_cast<float>(size);
  kernels.scale_mul(x, weight, 1.0f / std::sqrt(mean + eps), out, size);
}

void add_norm_store(const Kernels& kernels, float* residual, const float* update, const float* weight, float eps,
                    size_t hidden_size, float* scratch, ActivationRows& out, size_t out_token) {
  if (update != nullptr) kernels.add(residual, update, hidden_size);
  rms_norm(kernels, residual, weight, eps, scratch, hidden_size);
  out.store(kernels, out_token, 0, scratch, hidden_size);
}

}  // namespace dllama
