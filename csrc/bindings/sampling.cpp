// From logits to tokens.
#include <cmath>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "ops/sample.h"

namespace dllama {

namespace {

void check_row(const Array<float>& logits) {
  if (logits.ndim() != 1 || logits.size() == 0) throw py::value_error("logits must be one row of at least one value");
}

void check_temperature(float temperature) {
  if (!(temperature > 0.0f) || !std::isfinite(temperature)) throw py::value_error("temperature must be positive");
}

size_t sample_row(const Array<float>& logits, float temperature, size_t top_k, float top_p, float min_p, float coin) {
  check_row(logits);
  check_temperature(temperature);
  const float* row = logits.data();
  const auto n = static_cast<size_t>(logits.size());
  const py::gil_scoped_release release;
  return sample(kernels(), row, n, {temperature, top_k, top_p, min_p}, coin);
}

std::optional<int32_t> sample_best_of(const Array<float>& logits, const Array<int32_t>& ids, double total, size_t n,
                                      float temperature, size_t top_k, float top_p, float min_p, float coin) {
  check_row(logits);
  check_temperature(temperature);
  if (ids.ndim() != 1 || ids.size() != logits.size()) throw py::value_error("one id per logit is needed");
  const auto count = static_cast<size_t>(logits.size());
  if (count > n) throw py::value_error("there are more logits than tokens");
  const std::span row(logits.data(), count);
  return sample_best(kernels(), row, {ids.data(), count}, total, n, {temperature, top_k, top_p, min_p}, coin);
}

}  // namespace

void register_sampling(py::module_& m) {
  m.def(
      "argmax",
      [](const Array<float>& logits) {
        check_row(logits);
        return argmax(kernels(), logits.data(), static_cast<size_t>(logits.size()));
      },
      py::arg("logits").noconvert());
  m.def(
      "log_sum_exp",
      [](const Array<float>& logits) {
        check_row(logits);
        return log_sum_exp(kernels(), logits.data(), static_cast<size_t>(logits.size()));
      },
      py::arg("logits").noconvert());
  m.def("sample", &sample_row, py::arg("logits").noconvert(), py::arg("temperature"), py::arg("top_k"),
        py::arg("top_p"), py::arg("min_p"), py::arg("coin"));
  m.def("sample_best", &sample_best_of, py::arg("logits").noconvert(), py::arg("ids").noconvert(), py::arg("total"),
        py::arg("n"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("coin"));
}

}  // namespace dllama
