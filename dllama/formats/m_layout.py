"""Which tensors a ``.m`` file holds, in which order, of which shape.

Names are Hugging Face's without their wrapping: ``embed_tokens``, ``layers.{i}.q_proj`` (k_proj, v_proj, o_proj,
gate_proj, up_proj, down_proj, input_layernorm, post_attention_layernorm and, in Qwen3, q_norm, k_norm), ``norm``,
``lm_head``. The order is distributed-llama's; the file has no table, so order and shapes are all that locate a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

from dllama.config import DType, LayerSpec, ModelConfig
from dllama.formats.tensor import TensorInfo


def tensors_in_order(config: ModelConfig) -> Iterator[TensorInfo]:
    """Give every tensor of a file, first to last."""
    hidden = config.hidden_size
    yield TensorInfo("embed_tokens", DType.F32, (config.vocab_size, hidden))
    for index, layer in enumerate(config.layers):
        yield from _layer_tensors(config, layer, f"layers.{index}.")
    yield TensorInfo("norm", DType.F32, (hidden,))
    yield TensorInfo("lm_head", config.weight_type, (config.vocab_size, hidden))


def _layer_tensors(config: ModelConfig, layer: LayerSpec, prefix: str) -> Iterator[TensorInfo]:
    hidden, ffn, matrix = config.hidden_size, config.intermediate_size, config.weight_type
    yield TensorInfo(prefix + "q_proj", matrix, (config.q_size, hidden))
    yield TensorInfo(prefix + "k_proj", matrix, (config.kv_size, hidden))
    yield TensorInfo(prefix + "v_proj", matrix, (config.kv_size, hidden))
    yield TensorInfo(prefix + "o_proj", matrix, (hidden, config.q_size))
    yield TensorInfo(prefix + "gate_proj", matrix, (ffn, hidden))
    yield TensorInfo(prefix + "down_proj", matrix, (hidden, ffn))
    yield TensorInfo(prefix + "up_proj", matrix, (ffn, hidden))
    if layer.has_qk_norm:
        yield TensorInfo(prefix + "q_norm", DType.F32, (config.head_dim,))
        yield TensorInfo(prefix + "k_norm", DType.F32, (config.head_dim,))
    yield TensorInfo(prefix + "input_layernorm", DType.F32, (hidden,))
    yield TensorInfo(prefix + "post_attention_layernorm", DType.F32, (hidden,))


def total_nbytes(config: ModelConfig) -> int:
    """Give the bytes of all tensors; every layer of a ``.m`` file is like its first."""
    per_layer = sum(info.nbytes for info in _layer_tensors(config, config.layers[0], ""))
    hidden, vocab = config.hidden_size, config.vocab_size
    ends = DType.F32.row_bytes(hidden) * (vocab + 1) + config.weight_type.row_bytes(hidden) * vocab
    return ends + per_layer * config.num_layers


def interleaved_head_dim(config: ModelConfig, name: str) -> int:
    """Give the head size if a file of this family holds the rows of tensor ``name`` interleaved, else 0."""
    if config.model_type == "qwen3" or not name.endswith((".q_proj", ".k_proj")):
        return 0
    return config.head_dim
