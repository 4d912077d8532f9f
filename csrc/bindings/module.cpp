// dllama._native: the compiled core. Its typed page is dllama/_native.pyi.
#include "base/errors.h"
#include "bindings/bindings.h"

namespace dllama {

namespace {

void register_errors(py::module_& m) {
  py::register_exception<UnsupportedIsa>(m, "UnsupportedIsaError", PyExc_RuntimeError);
  py::register_exception<GroupFailed>(m, "GroupFailedError", PyExc_RuntimeError);
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const InvalidArgument& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const OutOfMemory& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    }
  });
}

}  // namespace

}  // namespace dllama

PYBIND11_MODULE(_native, m) {
  dllama::register_errors(m);
  dllama::register_machine(m);
  dllama::register_quant(m);
  dllama::register_sampling(m);
  dllama::register_config(m);
  dllama::register_node(m);
}
