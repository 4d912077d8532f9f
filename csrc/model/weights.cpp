#include "model/weights.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "model/activations.h"

namespace dllama {

Weights::Weights(const Kernels& kernels, const NodeConfig& config, const Shard& shard)
    : layers(config.layers.size()), kernels_(kernels), config_(config), shard_(shard) {
  for (size_t i = 0; i < layers.size(); ++i) {
    add_layer("layers." + std::to_string(i) + ".", layers[i], config.layers[i]);
  }
  add_vector("norm", norm, config.hidden_size);
  add_matrix("lm_head", lm_head, shard.vocab_size(), config.hidden_size);
}

size_t Weights::table_bytes(const NodeConfig& config) {
  constexpr size_t kLayerTensors = 16;  // at most, experts aside
  constexpr size_t kNodeBytes = 128;    // of the map, its value aside, with a name
  size_t tensors = 2;
  for (const LayerSpec& layer : config.layers) {
    tensors += kLayerTensors + (layer.has_experts ? 3 * config.num_experts : 0);
  }
  return tensors * (sizeof(Matrix) + sizeof(Slot) + kNodeBytes);
}

void Weights::add_layer(const std::string& prefix, LayerWeights& layer, const LayerSpec& spec) {
  const size_t hidden = config_.hidden_size;
  if (spec.has_input_norms) add_vector(prefix + "input_layernorm", layer.input_layernorm, hidden);
  if (shard_.has_attention()) add_attention(prefix, layer, spec);
  if (spec.has_output_norms) add_vector(prefix + "attention_output_norm", layer.attention_output_norm, hidden);
  if (spec.has_input_norms) add_vector(prefix + "post_attention_layernorm", layer.post_attention_layernorm, hidden);
  if (spec.has_experts) {
    add_experts(prefix, layer);
  } else {
    add_ffn(prefix, layer.ffn, shard_.intermediate_size);
  }
  if (spec.has_output_norms) add_vector(prefix + "feedforward_output_norm", layer.feedforward_output_norm, hidden);
}

void Weights::add_attention(const std::string& prefix, LayerWeights& layer, const LayerSpec& spec) {
  const size_t hidden = config_.hidden_size;
  const size_t q_size = shard_.num_heads * config_.head_dim;
  const size_t kv_size = shard_.num_kv_heads * config_.head_dim;
  add_matrix(prefix + "q_proj", layer.q_proj, q_size, hidden);
  add_matrix(prefix + "k_proj", layer.k_proj, kv_size, hidden);
  add_matrix(prefix + "v_proj", layer.v_proj, kv_size, hidden);
  if (spec.has_qkv_bias) {
    add_vector(prefix + "q_bias", layer.q_bias, q_size);
    add_vector(prefix + "k_bias", layer.k_bias, kv_size);
    add_vector(prefix + "v_bias", layer.v_bias, kv_size);
  }
  if (spec.qk_norm != QkNorm::None) {
    const bool is_all = spec.qk_norm == QkNorm::All;
    add_vector(prefix + "q_norm", layer.q_norm, is_all ? q_size : config_.head_dim);
    add_vector(prefix + "k_norm", layer.k_norm, is_all ? kv_size : config_.head_dim);
  }
  add_matrix(prefix + "o_proj", layer.o_proj, hidden, q_size);
}

size_t Weights::reserve(size_t size) {
  constexpr size_t kAlign = 128;  // two cache lines: prefetchers fetch them in pairs
  const size_t offset = bytes_;
  bytes_ += num_parts(size, kAlign) * kAlign;
  return offset;
}

void Weights::add_matrix(const std::string& name, Matrix& matrix, size_t rows, size_t cols) {
  matrix = make_matrix(kernels_, config_.matrix_type(name), rows, cols);
  slots_[name] = {&matrix, nullptr, 0, reserve(matrix.groups * matrix.group_bytes)};
}

void Weights::add_ffn(const std::string& prefix, FfnWeights& ffn, size_t columns) {
  add_gate_and_up(prefix, ffn, columns);
  add_matrix(prefix + "down_proj", ffn.down_proj, config_.hidden_size, columns);
}

// Threads read a chunk of both at a time; they lie together if they are of one type.
void Weights::add_gate_and_up(const std::string& prefix, FfnWeights& ffn, size_t columns) {
  const std::string gate = prefix + "gate_proj", up = prefix + "up_proj";
  if (config_.matrix_type(gate) != config_.matrix_type(up)) {
    add_matrix(gate, ffn.gate_proj, columns, config_.hidden_size);
    return add_matrix(up, ffn.up_proj, columns, config_.hidden_size);
  }
  ffn.gate_proj = make_matrix(kernels_, config_.matrix_type(gate), columns, config_.hidden_size);
  ffn.gate_proj.run_groups = kChunkRows / kernels_.row_group;
  ffn.up_proj = ffn.gate_proj;
  ffn.up_proj.is_second = true;
  const size_t offset = reserve(2 * ffn.gate_proj.groups * ffn.gate_proj.group_bytes);
  slots_[gate] = {&ffn.gate_proj, nullptr, 0, offset};
  slots_[up] = {&ffn.up_proj, nullptr, 0, offset};
}

void Weights::add_experts(const std::string& prefix, LayerWeights& layer) {
  const size_t hidden = config_.hidden_size;
  add_vector(prefix + "router", layer.router, config_.num_experts * hidden);
  slots_[prefix + "router"].rows = config_.num_experts;
  layer.experts.resize(config_.num_experts);
  for (size_t i = 0; i < layer.experts.size(); ++i) {
    add_ffn(prefix + "experts." + std::to_string(i) + ".", layer.experts[i], shard_.expert_intermediate_size);
  }
}

void Weights::add_vector(const std::string& name, float*& vector, size_t length) {
  slots_[name] = {nullptr, &vector, length, reserve(length * sizeof(float))};
}

void Weights::allocate() {
  buffer_ = Buffer(bytes_);
  for (auto& [name, slot] : slots_) {
    std::byte* data = buffer_.data() + slot.offset;
    if (slot.matrix != nullptr) {
      slot.matrix->data = data;
    } else {
      *slot.vector = reinterpret_cast<float*>(data);
    }
  }
}

std::vector<std::string> Weights::names() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : slots_) names.push_back(name);
  return names;
}

const Weights::Slot& Weights::slot(const std::string& name) const {
  const auto found = slots_.find(name);
  require(found != slots_.end(), "this model has no weight named " + name);
  return found->second;
}

std::vector<size_t> Weights::shape(const std::string& name) const {
  const Slot& s = slot(name);
  if (s.rows != 0) return {s.rows, s.length / s.rows};
  if (s.matrix == nullptr) return {s.length};
  return {s.matrix->rows, s.matrix->cols};
}

void Weights::load_floats(const std::string& name, size_t first_row, size_t num_rows, const std::byte* data,
                          size_t size) {
  const Slot& s = slot(name);
  const size_t rows = std::max<size_t>(s.rows, 1), cols = s.length / rows;
  require(first_row <= rows && num_rows <= rows - first_row, name + ": rows outside the matrix");
  require(size == num_rows * cols * sizeof(float), name + ": expected F32 rows of " + std::to_string(cols));
  std::memcpy(*s.vector + first_row * cols, data, size);
}

void Weights::load_rows(ThreadPool& pool, const std::string& name, size_t first_row, size_t num_rows,
                        const std::byte* data, size_t size) {
  const Slot& s = slot(name);
  if (s.matrix == nullptr) return load_floats(name, first_row, num_rows, data, size);
  const Matrix& m = *s.matrix;
  const size_t group_rows = kernels_.row_group;
  const size_t bytes = row_bytes(m.type, m.cols);
  require(first_row % group_rows == 0, name + ": rows must start at a row group");
  require(first_row <= m.rows && num_rows <= m.rows - first_row, name + ": rows outside the matrix");
  require(first_row + num_rows == m.rows || num_rows % group_rows == 0, name + ": only the last rows may be ragged");
  require(size == num_rows * bytes, name + ": rows of a wrong size");
  const size_t groups = num_parts(num_rows, group_rows);
  pool.run([&](size_t thread) {
    const Range range = split(groups, pool.size(), thread);
    for (size_t group = range.begin, size; group < range.end; group += size) {
      size = std::min(range.end - group, m.groups_from(first_row / group_rows + group));
      const size_t begin = group * group_rows, end = std::min((group + size) * group_rows, num_rows);
      kernels_.pack(m.type, data + begin * bytes, end - begin, m.cols, m.at(first_row / group_rows + group));
    }
  });
}

}  // namespace dllama
