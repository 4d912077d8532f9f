// What a node is made from: LayerSpec, Shard and NodeConfig, each from keyword arguments named as its fields.
#include <initializer_list>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "model/node.h"

namespace dllama {

namespace {

// Keyword arguments; those that are not given leave the field as it is.
class Fields {
 public:
  explicit Fields(const py::kwargs& values) : values_(values.attr("copy")()) {}

  template <typename T>
  Fields& take(const char* name, T& field) {
    if (!values_.contains(name)) return *this;
    const py::object value = values_.attr("pop")(name);
    try {
      field = value.cast<T>();
    } catch (const py::cast_error&) {
      throw py::type_error(std::string(name) + " has a value of a wrong type");
    }
    return *this;
  }

  // An enum that has numbers from 0 to `last`.
  template <typename Enum>
  Fields& take(const char* name, Enum& field, Enum last) {
    auto number = static_cast<int>(field);
    take(name, number);
    if (number < 0 || number > static_cast<int>(last)) {
      throw py::value_error(std::string(name) + " must be a number from 0 to " +
                            std::to_string(static_cast<int>(last)));
    }
    field = static_cast<Enum>(number);
    return *this;
  }

  // Throws if one of these was not given.
  void need(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (!values_.contains(name)) throw py::type_error(std::string(name) + " must be given");
    }
  }

  // Throws if something was given that no field has taken.
  void check_all_taken() const {
    for (const auto& item : values_)
      throw py::type_error("there is no field named " + std::string(py::str(item.first)));
  }

 private:
  py::dict values_;
};

LayerSpec make_layer(const py::kwargs& values) {
  LayerSpec layer;
  Fields(values)
      .take("qk_norm", layer.qk_norm, QkNorm::All)
      .take("has_qkv_bias", layer.has_qkv_bias)
      .take("has_input_norms", layer.has_input_norms)
      .take("has_output_norms", layer.has_output_norms)
      .take("window", layer.window)
      .take("has_local_rope", layer.has_local_rope)
      .take("has_experts", layer.has_experts)
      .check_all_taken();
  return layer;
}

Shard make_shard(const py::kwargs& values) {
  Shard shard;
  Fields(values)
      .take("num_heads", shard.num_heads)
      .take("num_kv_heads", shard.num_kv_heads)
      .take("intermediate_size", shard.intermediate_size)
      .take("vocab_begin", shard.vocab_begin)
      .take("vocab_end", shard.vocab_end)
      .take("kv_head_begin", shard.kv_head_begin)
      .take("expert_intermediate_size", shard.expert_intermediate_size)
      .check_all_taken();
  return shard;
}

void take_model(Fields& fields, NodeConfig& config) {
  fields.take("hidden_size", config.hidden_size)
      .take("head_dim", config.head_dim)
      .take("vocab_size", config.vocab_size)
      .take("rms_norm_eps", config.rms_norm_eps)
      .take("rope_frequencies", config.rope_frequencies)
      .take("rope_factor", config.rope_factor)
      .take("local_rope_frequencies", config.local_rope_frequencies)
      .take("layers", config.layers)
      .take("activation", config.activation, Activation::GeluTanh)
      .take("num_experts", config.num_experts)
      .take("num_experts_per_tok", config.num_experts_per_tok)
      .take("norm_topk_prob", config.norm_topk_prob)
      .take("embedding_multiplier", config.embedding_multiplier)
      .take("attention_multiplier", config.attention_multiplier)
      .take("residual_multiplier", config.residual_multiplier)
      .take("logits_multiplier", config.logits_multiplier)
      .take("attention_softcap", config.attention_softcap)
      .take("logits_softcap", config.logits_softcap)
      .take("weight_type", config.weight_type, DType::Q80)
      .take("q80_tensors", config.q80_tensors);
}

NodeConfig make_config(const py::kwargs& values) {
  NodeConfig config;
  Fields fields(values);
  fields.need({"weight_type", "kv_type", "wire_type"});
  take_model(fields, config);
  fields.take("kv_type", config.kv_type, DType::Q80)
      .take("wire_type", config.wire_type, DType::Q80)
      .take("shards", config.shards)
      .take("num_threads", config.num_threads)
      .take("max_tokens", config.max_tokens)
      .take("max_rows", config.max_rows)
      .take("num_pages", config.num_pages)
      .take("num_slots", config.num_slots)
      .check_all_taken();
  config.validate();
  return config;
}

}  // namespace

void register_config(py::module_& m) {
  py::class_<LayerSpec>(m, "LayerSpec").def(py::init(&make_layer));
  py::class_<Shard>(m, "Shard").def(py::init(&make_shard));
  py::class_<NodeConfig>(m, "NodeConfig")
      .def(py::init(&make_config))
      .def("weight_bytes",
           [](const NodeConfig& c, size_t rank) { return Weights(kernels(), c, c.shards.at(rank)).bytes(); })
      .def("kv_bytes", [](const NodeConfig& c, size_t rank) { return KvCache::bytes(c, c.shards.at(rank)); })
      .def("buffer_bytes", [](const NodeConfig& c, size_t rank) {
        require(rank < c.shards.size(), "there is no such rank");
        return Node::buffer_bytes(c, rank);
      });
}

}  // namespace dllama
