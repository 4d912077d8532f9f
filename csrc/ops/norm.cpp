#include "ops/norm.h"

#include <cmath>

namespace dllama {

void rms_norm(const Kernels& kernels, const float* x, const float* weight, float eps, float* out, size_t size) {
  kernels.scale_mul(x, weight, inverse_rms(kernels.sum_squares(x, size), eps, size), out, size);
}

void store_weighted(const Kernels& kernels, const float* x, const float* weight, Range range, float* scratch,
                    ActivationRows& out, size_t token) {
  kernels.scale_mul(x + range.begin, weight + range.begin, 1.0f, scratch, range.size());
  out.store(kernels, token, range.begin, scratch, range.size());
}

float inverse_rms(float sum_squares, float eps, size_t size) {
  return 1.0f / std::sqrt(sum_squares / static_cast<float>(size) + eps);
}

}  // namespace dllama
