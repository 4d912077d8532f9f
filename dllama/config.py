"""What a model is, as data: sizes, and per layer the features that the core must compute.

Every reader of a file format produces a ``ModelConfig``; everything after it (plan, core, engine) sees nothing else of
the model's origin. Names are Hugging Face's in vLLM's short forms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from dllama.limits import LARGEST_NUMBER, SMALLEST_NUMBER
from dllama.rope import Frequencies, RopeScaling, rope_frequencies

__all__ = [
    "BLOCK_SIZE",
    "MAX_LAYERS",
    "Activation",
    "DType",
    "LayerSpec",
    "ModelConfig",
    "Problem",
    "QkNorm",
    "RopeScaling",
]

MAX_LAYERS = 1 << 12  # readers make no more of them than this, however many a file says
BLOCK_SIZE = 32  # values per quantization block, the unit in which inputs and FFN columns are cut


class DType(IntEnum):
    """Number types of weights, with the ids that ``.m`` files store."""

    F32 = 0
    F16 = 1
    Q40 = 2
    Q80 = 3

    @property
    def is_quantized(self) -> bool:
        """Whether values come in blocks of ``BLOCK_SIZE`` with one scale."""
        return self in (DType.Q40, DType.Q80)

    def row_bytes(self, cols: int) -> int:
        """Bytes of one stored row of ``cols`` values (a multiple of ``BLOCK_SIZE`` if quantized)."""
        if self.is_quantized:
            return cols // BLOCK_SIZE * (18 if self is DType.Q40 else 34)
        return cols * (4 if self is DType.F32 else 2)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing about a model that does not fit together; as text one line."""

    name: str  # of the field
    expected: str
    found: str

    def __str__(self) -> str:
        """Say it as ``"<name>: expected <expected>, found <found>"``."""
        return f"{self.name}: expected {self.expected}, found {self.found}"


class Activation(IntEnum):
    """What a feed-forward network applies to its gate."""

    SILU = 0
    GELU_TANH = 1  # GELU by its tanh approximation


class QkNorm(IntEnum):
    """RMSNorm of queries and keys before the rotation."""

    NONE = 0
    HEAD = 1  # each head by itself, one weight vector for all (Qwen3, Gemma 3)
    ALL = 2  # all heads of a token together (OLMo 2)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The features of one layer.

    Attributes:
        qk_norm: RMSNorm of queries and keys.
        has_qkv_bias: Whether ``q_proj``, ``k_proj`` and ``v_proj`` have biases.
        has_input_norms: Whether attention and the feed-forward network read the residual through a norm.
        has_output_norms: Whether what each of the two adds to the residual is normed first, summed over ranks.
        window: Positions that a token attends to, its own included; 0 for all before it.
        has_local_rope: Whether rotation is by ``ModelConfig.local_rope_theta``, without scaling.
        has_experts: Whether the feed-forward network is a mixture of experts.
    """

    qk_norm: QkNorm = QkNorm.NONE
    has_qkv_bias: bool = False
    has_input_norms: bool = True
    has_output_norms: bool = False
    window: int = 0
    has_local_rope: bool = False
    has_experts: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and features of a model. ``problem()`` says in one line what does not fit together.

    Attributes (those whose name does not say all):
        model_type: Hugging Face's name of the family, e.g. ``"llama"``.
        intermediate_size: FFN columns of layers without experts.
        weight_type: Number type of the matrices, but for ``q80_tensors``.
        local_rope_theta: Base of the rotation in layers with ``has_local_rope``.
        rotary_dim: Leading values of a head that are rotated; 0 for all.
        moe_intermediate_size: FFN columns of one expert.
        norm_topk_prob: Whether the weights of the chosen experts are scaled to a sum of 1.
        embedding_multiplier: Multiplies embedding rows.
        attention_multiplier: Multiplies queries times keys; 0 for ``head_dim ** -0.5``.
        residual_multiplier: Multiplies what attention and the feed-forward network add to the residual.
        logits_multiplier: Multiplies logits, before the cap.
        attention_softcap: ``c`` in ``c * tanh(score / c)``; 0 for no cap.
        logits_softcap: The same for logits.
        q80_tensors: Matrices that are Q80 where the others are Q40, by name, sorted; of experts the name without its
            number stands for all (``layers.0.experts.down_proj``).
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    rms_norm_eps: float
    rope_theta: float
    weight_type: DType
    layers: tuple[LayerSpec, ...]
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 10000.0
    rotary_dim: int = 0
    activation: Activation = Activation.SILU
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 0.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    q80_tensors: tuple[str, ...] = ()

    @property
    def q_size(self) -> int:
        """Outputs of ``q_proj``: all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Outputs of ``k_proj`` and of ``v_proj``: all KV heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(layer.has_experts for layer in self.layers)

    @property
    def has_output_norms(self) -> bool:
        """Whether any layer norms what it adds to the residual, which takes the whole sum on every rank."""
        return any(layer.has_output_norms for layer in self.layers)

    @property
    def rotated_size(self) -> int:
        """Leading values of a head that are rotated."""
        return self.rotary_dim or self.head_dim

    def matrix_type(self, name: str) -> DType:
        """Give the number type of matrix ``name``; the router of experts is always F32."""
        if name.endswith(".router"):
            return DType.F32
        is_q80 = bool(self.q80_tensors) and _EXPERT.sub(".experts.", name) in self.q80_tensors
        return DType.Q80 if is_q80 else self.weight_type

    def problem(self) -> Problem | None:
        """Give the first thing that does not fit together, or None."""
        return (
            self._size_problem()
            or self._number_problem()
            or self._layer_problem()
            or self._expert_problem()
            or self._rotation_problem()
        )

    def _size_problem(self) -> Problem | None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                return Problem(name, f"1 to {limit}", str(value))
        if self.num_heads % self.num_kv_heads:
            return Problem("num_heads", f"a multiple of num_kv_heads={self.num_kv_heads}", str(self.num_heads))
        if self.head_dim % 2:
            return Problem("head_dim", "an even number", str(self.head_dim))
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            return Problem("rotary_dim", f"an even number up to head_dim={self.head_dim}", str(self.rotary_dim))
        for name in ("hidden_size", "intermediate_size", "q_size"):
            if getattr(self, name) % BLOCK_SIZE:
                return Problem(name, f"a multiple of {BLOCK_SIZE}", str(getattr(self, name)))
        if len(self.layers) != self.num_layers:
            return Problem("layers", f"{self.num_layers} layer specs", str(len(self.layers)))
        return None

    def _number_problem(self) -> Problem | None:
        if not SMALLEST_NUMBER <= self.rms_norm_eps <= 1:
            return Problem("rms_norm_eps", f"a number from {SMALLEST_NUMBER} to 1", str(self.rms_norm_eps))
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            value, may_be_zero = getattr(self, name), name in _NOT_NEGATIVE
            if not (SMALLEST_NUMBER <= value <= LARGEST_NUMBER or (may_be_zero and value == 0)):
                zero = "0 or " if may_be_zero else ""
                return Problem(name, f"{zero}a number from {SMALLEST_NUMBER} to {LARGEST_NUMBER}", str(value))
        if self.q80_tensors and self.weight_type is not DType.Q40:
            return Problem("q80_tensors", "none, as weight_type is not Q40", str(len(self.q80_tensors)))
        return None

    def _layer_problem(self) -> Problem | None:
        for layer in self.layers:
            if not 0 <= layer.window <= _LIMITS["max_seq_len"]:
                return Problem("window", f"0 to {_LIMITS['max_seq_len']}", str(layer.window))
            if not (layer.has_input_norms or layer.has_output_norms):
                return Problem("layers", "norms before or behind attention and feed-forward network", "none")
        return None

    def _rotation_problem(self) -> Problem | None:
        scaling = self.rope_scaling
        if scaling is None:
            return None
        if scaling.kind == "yarn" and self.rope_theta <= 1:
            return Problem("rope_theta", "a number above 1, as rope_scaling is yarn", str(self.rope_theta))
        if fault := scaling.fault(self.rotated_size // 2):
            return Problem("rope_scaling", *fault)
        contexts = (1, self.max_seq_len)  # longrope has frequencies for short ones and for long ones
        largest = max(float(self._exact_frequencies(context).max()) for context in contexts)
        if not largest <= LARGEST_NUMBER:
            return Problem("rope_scaling", f"angles of at most {LARGEST_NUMBER} per position", str(largest))
        return None

    def _expert_problem(self) -> Problem | None:
        if not self.has_experts:
            unused = next((name for name in _OF_EXPERTS if getattr(self, name)), None)
            return Problem(unused, "0, as no layer has experts", str(getattr(self, unused))) if unused else None
        most = _MAX_EXPERTS // self.num_layers
        if not 1 <= self.num_experts <= most:
            return Problem("num_experts", f"1 to {most} in {self.num_layers} layers", str(self.num_experts))
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            return Problem("num_experts_per_tok", f"1 to {self.num_experts}", str(self.num_experts_per_tok))
        size = self.moe_intermediate_size
        if not 1 <= size <= _LIMITS["intermediate_size"] or size % BLOCK_SIZE:
            return Problem("moe_intermediate_size", f"a multiple of {BLOCK_SIZE}", str(size))
        return None

    def rope_frequencies(self, max_seq_len: int | None = None, *, is_local: bool = False) -> np.ndarray:
        """Give the angle per position of each rotated pair, float32 ``[rotated_size / 2]``, scaling applied.

        Args:
            max_seq_len: The context in use; the model's own if None.
            is_local: Of layers with ``has_local_rope``.
        """
        if is_local:
            return rope_frequencies(self.local_rope_theta, self.rotated_size, None, 0).astype(np.float32)
        return self._exact_frequencies(max_seq_len or self.max_seq_len).astype(np.float32)

    def _exact_frequencies(self, max_seq_len: int) -> Frequencies:
        return rope_frequencies(self.rope_theta, self.rotated_size, self.rope_scaling, max_seq_len)


# Generous bounds of every size: far above any model, small enough that no product of them overflows 63 bits.
_LIMITS = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "num_layers": MAX_LAYERS,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,
    "max_seq_len": 1 << 28,
}
_MAX_EXPERTS = 1 << 16  # of all layers: five times those of the largest models, few enough to list
_POSITIVE = ("rope_theta", "local_rope_theta", "embedding_multiplier", "residual_multiplier", "logits_multiplier")
_NOT_NEGATIVE = ("attention_multiplier", "attention_softcap", "logits_softcap")
_OF_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_EXPERT = re.compile(r"\.experts\.[0-9]+\.")
