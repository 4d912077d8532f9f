// What was built, for which CPU, and how fast it reads memory.
#include "base/errors.h"
#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "ops/bandwidth.h"

namespace dllama {

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["commit"] = DLLAMA_COMMIT;
#if defined(__x86_64__)
  info["architecture"] = "x86_64";
#elif defined(__aarch64__)
  info["architecture"] = "aarch64";
#else
  info["architecture"] = "other";
#endif
  return info;
}

}  // namespace

void register_machine(py::module_& m) {
  m.attr("PAGE_SIZE") = kPageSize;
  m.def("build_info", &build_info);
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("supported_isas", &supported_isas);
  m.def(
      "read_bandwidth",
      [](size_t num_bytes, size_t num_threads, double seconds) {
        if (num_threads < 1 || num_threads > 4096) throw InvalidArgument("num_threads must be 1 to 4096");
        if (!(seconds >= 0.0 && seconds <= 3600.0)) throw InvalidArgument("seconds must be 0 to 3600");
        if (num_bytes > size_t{1} << 40) throw InvalidArgument("num_bytes must be at most 2^40");
        return read_bandwidth(kernels(), num_bytes, num_threads, seconds);
      },
      py::arg("num_bytes"), py::arg("num_threads"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace dllama
