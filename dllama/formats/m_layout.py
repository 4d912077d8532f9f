"""Which tensors a ``.m`` file holds, in which order, of which shape.

Names are Hugging Face's without their wrapping: ``embed_tokens``, ``layers.{i}.q_proj`` (k_proj, v_proj, o_proj,
gate_proj, up_proj, down_proj), ``norm``, ``lm_head``. Of vectors, as a layer has them: ``q_norm``, ``k_norm``,
``q_bias``, ``k_bias``, ``v_bias``; ``input_layernorm`` before attention and ``post_attention_layernorm`` before the
feed-forward network; ``attention_output_norm`` and ``feedforward_output_norm`` behind the two. Experts:
``layers.{i}.router``, ``layers.{i}.experts.{e}.gate_proj`` and so on. The order is distributed-llama's where it knows
the tensor; the file has no table, so order and shapes are all that locate one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dllama.config import DType, LayerSpec, ModelConfig, QkNorm
from dllama.formats.tensor import TensorInfo


def tensors_in_order(config: ModelConfig) -> Iterator[TensorInfo]:
    """Give every tensor of a file, first to last."""
    hidden = config.hidden_size
    yield TensorInfo("embed_tokens", DType.F32, (config.vocab_size, hidden))
    for index, layer in enumerate(config.layers):
        yield from _layer_tensors(config, layer, f"layers.{index}.")
    yield TensorInfo("norm", DType.F32, (hidden,))
    yield TensorInfo("lm_head", config.matrix_type("lm_head"), (config.vocab_size, hidden))


def _layer_tensors(
    config: ModelConfig, layer: LayerSpec, prefix: str, num_experts: int | None = None
) -> Iterator[TensorInfo]:
    """Give a layer's tensors, those of the first ``num_experts`` experts; None: of all."""
    hidden = config.hidden_size
    attention = {
        "q_proj": (config.q_size, hidden),
        "k_proj": (config.kv_size, hidden),
        "v_proj": (config.kv_size, hidden),
        "o_proj": (hidden, config.q_size),
    }
    yield from (_matrix(config, prefix + name, *shape) for name, shape in attention.items())
    if layer.has_experts:
        yield _matrix(config, prefix + "router", config.num_experts, hidden)
        for expert in range(config.num_experts if num_experts is None else num_experts):
            yield from _ffn(config, f"{prefix}experts.{expert}.", config.moe_intermediate_size)
    else:
        yield from _ffn(config, prefix, config.intermediate_size)
    for name, length in _vectors(config, layer):
        yield TensorInfo(prefix + name, DType.F32, (length,))


def _matrix(config: ModelConfig, name: str, rows: int, cols: int) -> TensorInfo:
    return TensorInfo(name, config.matrix_type(name), (rows, cols))


def _ffn(config: ModelConfig, prefix: str, columns: int) -> Iterator[TensorInfo]:
    """Give the three matrices of a feed-forward network, in the order of distributed-llama: w1, w2, w3."""
    yield _matrix(config, prefix + "gate_proj", columns, config.hidden_size)
    yield _matrix(config, prefix + "down_proj", config.hidden_size, columns)
    yield _matrix(config, prefix + "up_proj", columns, config.hidden_size)


def _vectors(config: ModelConfig, layer: LayerSpec) -> Iterator[tuple[str, int]]:
    """Give norms and biases; those that distributed-llama knows come first, and in its order."""
    if layer.qk_norm is not QkNorm.NONE:
        is_wide = layer.qk_norm is QkNorm.ALL
        yield "q_norm", config.q_size if is_wide else config.head_dim
        yield "k_norm", config.kv_size if is_wide else config.head_dim
    if layer.has_input_norms:
        yield "input_layernorm", config.hidden_size
        yield "post_attention_layernorm", config.hidden_size
    if layer.has_output_norms:
        yield "attention_output_norm", config.hidden_size
        yield "feedforward_output_norm", config.hidden_size
    if layer.has_qkv_bias:
        yield "q_bias", config.q_size
        yield "k_bias", config.kv_size
        yield "v_bias", config.kv_size


def total_nbytes(config: ModelConfig) -> int:
    """Give the bytes of all tensors."""
    if config.q80_tensors:
        return sum(info.nbytes for info in tensors_in_order(config))
    hidden, vocab = config.hidden_size, config.vocab_size
    ends = DType.F32.row_bytes(hidden) * (vocab + 1) + config.weight_type.row_bytes(hidden) * vocab
    kinds = Counter(config.layers)  # few, and what a layer holds follows from its kind
    return ends + sum(count * _layer_nbytes(config, layer) for layer, count in kinds.items())


def _layer_nbytes(config: ModelConfig, layer: LayerSpec) -> int:
    """Bytes of a layer in a model whose matrices are of one type: as all experts are then alike, one is counted."""
    prefix = "layers.0."
    others = sum(info.nbytes for info in _layer_tensors(config, layer, prefix, num_experts=0))
    if not layer.has_experts:
        return others
    expert = sum(info.nbytes for info in _ffn(config, prefix + "experts.0.", config.moe_intermediate_size))
    return others + config.num_experts * expert


def is_rotated(name: str) -> bool:
    """Whether the rows of tensor ``name`` are rotated in pairs, which lie side by side in some files."""
    return name.endswith((".q_proj", ".k_proj"))
