// The codecs of the kernel level in use, for tools and for comparing them with dllama.formats.quants.
#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "ops/matmul.h"
#include "ops/recode.h"

namespace dllama {

namespace {

DType quantized_type(int dtype) {
  const auto type = static_cast<DType>(dtype);
  if (!wants_quantized(type)) throw py::value_error("dtype must be 2 (Q40) or 3 (Q80)");
  return type;
}

py::array_t<uint8_t> quantize(const Array<float>& values, int dtype) {
  const DType type = quantized_type(dtype);
  const auto n = static_cast<size_t>(values.size());
  if (n % kBlockSize != 0) throw py::value_error("values must fill whole blocks of 32");
  py::array_t<uint8_t> blocks(static_cast<py::ssize_t>(row_bytes(type, n)));
  void* out = blocks.mutable_data();
  if (type == DType::Q40) {
    kernels().quantize_q40(values.data(), static_cast<BlockQ40*>(out), n / kBlockSize);
  } else {
    kernels().quantize_q80(values.data(), static_cast<BlockQ80*>(out), n / kBlockSize);
  }
  return blocks;
}

py::array_t<float> dequantize(const Array<uint8_t>& blocks, int dtype) {
  const DType type = quantized_type(dtype);
  const size_t block_bytes = row_bytes(type, kBlockSize);
  const auto size = static_cast<size_t>(blocks.size());
  if (size % block_bytes != 0) throw py::value_error("bytes must fill whole blocks");
  const size_t num_blocks = size / block_bytes;
  py::array_t<float> values(static_cast<py::ssize_t>(num_blocks * kBlockSize));
  const void* in = blocks.data();
  if (type == DType::Q40) {
    kernels().dequantize_q40(static_cast<const BlockQ40*>(in), values.mutable_data(), num_blocks);
  } else {
    kernels().dequantize_q80(static_cast<const BlockQ80*>(in), values.mutable_data(), num_blocks);
  }
  return values;
}

DType stored_type(int dtype) {
  if (dtype < 0 || dtype > static_cast<int>(DType::Q80)) throw py::value_error("dtype must be F32, F16, Q40 or Q80");
  return static_cast<DType>(dtype);
}

// Where `n` numbers of a stored type are to be written.
void* room_for(DType type, size_t n, Array<uint8_t>& out) {
  void* room = out.mutable_data();
  if (static_cast<size_t>(out.size()) != row_bytes(type, n) ||
      reinterpret_cast<uintptr_t>(room) % alignof(uint16_t) != 0) {
    throw py::value_error("out must have room for just these numbers, at an even address");
  }
  return room;
}

float recode_rows(const Array<uint8_t>& numbers, int from, int dtype, Array<uint8_t>& out) {
  const auto source = static_cast<FloatType>(from);
  const DType type = stored_type(dtype);
  if (from < 0 || from > static_cast<int>(FloatType::BF16)) throw py::value_error("numbers must be F32, F16 or BF16");
  const auto size = static_cast<size_t>(numbers.size());
  const size_t n = size / float_bytes(source);
  if (size % float_bytes(source) != 0 || (wants_quantized(type) && n % kBlockSize != 0)) {
    throw py::value_error("numbers must be whole, and fill whole blocks of 32");
  }
  const void* in = numbers.data();
  void* room = room_for(type, n, out);
  const Kernels& table = kernels();
  py::gil_scoped_release release;
  return recode(table, source, in, type, room, n);
}

float recode_blocks(const Array<uint8_t>& blocks, int from, int dtype, Array<uint8_t>& out) {
  const auto source = static_cast<GgmlType>(from);
  const DType type = stored_type(dtype);
  const GgmlBlock block = ggml_block(source);
  const auto size = static_cast<size_t>(blocks.size());
  if (block.values == 0 || size % block.bytes != 0)
    throw py::value_error("blocks must be whole, of a type that is known");
  const size_t n = size / block.bytes * block.values;
  const void* in = blocks.data();
  void* room = room_for(type, n, out);
  const Kernels& table = kernels();
  py::gil_scoped_release release;
  return recode(table, source, in, type, room, n);
}

}  // namespace

void register_quant(py::module_& m) {
  m.def("quantize", &quantize, py::arg("values").noconvert(), py::arg("dtype"));
  m.def("dequantize", &dequantize, py::arg("blocks").noconvert(), py::arg("dtype"));
  m.def("recode", &recode_rows, py::arg("numbers").noconvert(), py::arg("number_type"), py::arg("dtype"),
        py::arg("out").noconvert());
  m.def("recode_blocks", &recode_blocks, py::arg("blocks").noconvert(), py::arg("ggml_type"), py::arg("dtype"),
        py::arg("out").noconvert());
}

}  // namespace dllama
