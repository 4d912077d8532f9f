"""What a model is, as data: sizes, and per layer the features that the core must compute.

Every reader of a file format produces a ``ModelConfig``; everything after it (plan, core, engine) sees nothing else of
the model's origin. Names are Hugging Face's in vLLM's short forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

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


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama-3.1 rotary scaling: low frequencies are divided by ``factor``, with a smooth passage between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int

    def problem(self) -> Problem | None:
        """Give the first thing that does not fit together, or None."""
        low, high, original = self.low_freq_factor, self.high_freq_factor, self.original_max_seq_len
        if 0 < self.factor < math.inf and 0 <= low < high < math.inf and original > 0:
            return None
        expected = "factor > 0, 0 <= low < high_freq_factor, original_max_seq_len > 0"
        return Problem("rope_scaling", expected, f"factor {self.factor}, {low} and {high}, {original}")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The features of one layer."""

    has_qk_norm: bool = False  # RMSNorm of every query and key head before the rotation (Qwen3)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and features of a model. ``problem()`` says in one line what does not fit together."""

    model_type: str  # Hugging Face's name of the family: "llama", "qwen3"
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

    def problem(self) -> Problem | None:
        """Give the first thing that does not fit together, or None."""
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                return Problem(name, f"1 to {limit}", str(value))
        if self.num_heads % self.num_kv_heads:
            return Problem("num_heads", f"a multiple of num_kv_heads={self.num_kv_heads}", str(self.num_heads))
        if self.head_dim % 2:
            return Problem("head_dim", "an even number", str(self.head_dim))
        for name in ("hidden_size", "intermediate_size", "q_size"):
            if getattr(self, name) % BLOCK_SIZE:
                return Problem(name, f"a multiple of {BLOCK_SIZE}", str(getattr(self, name)))
        if len(self.layers) != self.num_layers:
            return Problem("layers", f"{self.num_layers} layer specs", str(len(self.layers)))
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                return Problem(name, "a positive number", str(value))
        return self.rope_scaling.problem() if self.rope_scaling else None

    def rope_frequencies(self) -> np.ndarray:
        """Angles per position of each rotated pair, float32 ``[head_dim / 2]``, scaling applied.

        The formulas are those of transformers' ``default`` and ``llama3`` rotary embeddings, a blend of scaled and
        unscaled where the wavelength is medium. They are computed in float64 and rounded once; transformers' float32
        steps end within three units in the last place.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        freqs = 1.0 / self.rope_theta**exponents
        scaling = self.rope_scaling
        if scaling is None:
            return freqs.astype(np.float32)
        wavelengths = 2 * math.pi / freqs
        span = scaling.high_freq_factor - scaling.low_freq_factor
        smooth = (scaling.original_max_seq_len / wavelengths - scaling.low_freq_factor) / span
        smooth = np.clip(smooth, 0.0, 1.0)
        return ((1 - smooth) * freqs / scaling.factor + smooth * freqs).astype(np.float32)


# Generous bounds of every size: far above any model, small enough that no product of them overflows 63 bits.
_LIMITS = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 12,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,
    "max_seq_len": 1 << 28,
}
