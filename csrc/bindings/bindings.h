// The only code that includes pybind11: one register function per topic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace dllama {

namespace py = pybind11;

// Arrays must come with this dtype and C order; pybind11 then refuses others instead of copying them.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void register_machine(py::module_& m);   // machine.cpp: ISA, build, bandwidth
void register_quant(py::module_& m);     // quant.cpp
void register_sampling(py::module_& m);  // sampling.cpp
void register_config(py::module_& m);    // config.cpp: LayerSpec, Shard, NodeConfig
void register_node(py::module_& m);      // node.cpp: Group, Node

}  // namespace dllama
