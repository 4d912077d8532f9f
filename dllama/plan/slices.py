"""Which part of a tensor a shard owns.

Column-parallel matrices (q, k, v, gate, up, lm_head) are cut by rows, their outputs; row-parallel ones (o, down) by
columns, their inputs, and followed by a sum over ranks. Biases, and norms of all heads together, are cut like the
outputs they belong to; other norms and routers are whole everywhere. Every expert is cut like a network without
experts. Tensor names are the core's, e.g.
``"layers.0.q_proj"``; only the part behind the last dot matters here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dllama.config import ModelConfig, QkNorm
from dllama.plan.partition import Range, Shard

ROW_GROUP = 64  # pieces of slices begin at multiples of it; the core packs rows by 8 or 16, as its level has it
_NORMS = frozenset(
    {"norm", "input_layernorm", "post_attention_layernorm", "attention_output_norm", "feedforward_output_norm"}
)


class Axis(Enum):
    """What a slice cuts."""

    ROWS = "rows"
    COLUMNS = "columns"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A shard's part of one tensor ``shape``, which is ``(rows, columns)``, or ``(n,)`` of a norm. It may be empty."""

    shape: tuple[int, ...]
    axis: Axis
    range: Range  # along ``axis``; all columns if WHOLE

    @property
    def rows(self) -> Range:
        """Rows of the tensor to read. A norm is stored as one row."""
        if self.axis is Axis.ROWS:
            return self.range
        return Range(0, self.shape[0] if len(self.shape) == 2 else 1)

    @property
    def columns(self) -> Range:
        """Columns to keep of each row."""
        return Range(0, self.shape[-1]) if self.axis is Axis.ROWS else self.range


def tensor_slice(config: ModelConfig, shard: Shard, name: str) -> TensorSlice:
    """Say which part of tensor ``name`` belongs to ``shard``. Raises KeyError for a name that no model has."""
    hidden, kind = config.hidden_size, name.rpartition(".")[2]
    queries, kv = shard.heads.scaled(config.head_dim), shard.kv_heads.scaled(config.head_dim)
    columns, ffn = config.intermediate_size, shard.ffn
    if ".experts." in name:
        columns, ffn = config.moe_intermediate_size, shard.expert_ffn
    match kind:
        case "q_proj":
            return TensorSlice((config.q_size, hidden), Axis.ROWS, queries)
        case "k_proj" | "v_proj":
            return TensorSlice((config.kv_size, hidden), Axis.ROWS, kv)
        case "o_proj":
            return TensorSlice((hidden, config.q_size), Axis.COLUMNS, queries)
        case "gate_proj" | "up_proj":
            return TensorSlice((columns, hidden), Axis.ROWS, ffn)
        case "down_proj":
            return TensorSlice((hidden, columns), Axis.COLUMNS, ffn)
        case "lm_head":
            return TensorSlice((config.vocab_size, hidden), Axis.ROWS, shard.vocab)
        case "router":
            return TensorSlice((config.num_experts, hidden), Axis.WHOLE, Range(0, hidden))
        case "q_bias":
            return TensorSlice((config.q_size,), Axis.COLUMNS, queries)
        case "k_bias" | "v_bias":
            return TensorSlice((config.kv_size,), Axis.COLUMNS, kv)
        case "q_norm" | "k_norm":
            return _qk_norm(config, name, queries if kind == "q_norm" else kv)
        case _ if kind in _NORMS:
            return TensorSlice((hidden,), Axis.WHOLE, Range(0, hidden))
    raise KeyError(f"no such tensor: {name}")


def _qk_norm(config: ModelConfig, name: str, outputs: Range) -> TensorSlice:
    """Of a norm of all heads together a shard owns the part of its heads; one of single heads is the same for all."""
    layer = config.layers[int(name.split(".")[1])]
    if layer.qk_norm is QkNorm.HEAD:
        return TensorSlice((config.head_dim,), Axis.WHOLE, Range(0, config.head_dim))
    whole = config.q_size if name.endswith("q_norm") else config.kv_size
    return TensorSlice((whole,), Axis.COLUMNS, outputs)
