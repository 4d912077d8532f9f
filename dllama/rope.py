"""Rotary embeddings as numbers: the angle per position of each rotated pair, whatever scaling a model asks for.

The core knows no scaling rule; it is given these frequencies, and a factor on every cosine and sine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dllama.limits import LARGEST_NUMBER, SMALLEST_NUMBER

Frequencies = npt.NDArray[np.float64]
RopeKind = Literal["llama3", "linear", "yarn", "longrope"]
MAX_PAIRS = 1 << 11  # of a head that can be rotated; bounds the lists of factors
_MOST_POSITIONS = 1 << 28
_MOST_TURNS = 1e6  # of a pair in the original context: far above what any model asks for


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How a model stretches its rotary embedding beyond ``original_max_seq_len``. Fields that a kind ignores stay 0.

    Attributes:
        factor: By how much angles are divided: of low frequencies (llama3, yarn), of all (linear). longrope ignores it.
        low_freq_factor: llama3: wavelengths above ``original_max_seq_len / low_freq_factor`` are divided by ``factor``.
        high_freq_factor: llama3: those below ``original_max_seq_len / high_freq_factor`` are not.
        original_max_seq_len: Context that the model was first trained for; linear ignores it.
        kind: The rule.
        beta_fast: yarn: pairs that turn more often than this in the original context are not divided.
        beta_slow: yarn: pairs that turn less often are divided.
        is_truncated: yarn: whether the border between them is moved to whole pairs.
        attention_factor: yarn, longrope: multiplies cosines and sines.
        short_factors: longrope: what each pair's angle is divided by up to the original context.
        long_factors: longrope: the same beyond it.
    """

    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_seq_len: int = 0
    kind: RopeKind = "llama3"
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    is_truncated: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def fault(self, num_pairs: int) -> tuple[str, str] | None:
        """Say what is expected of a head with ``num_pairs`` rotated pairs, and found, if the values do not fit."""
        numbers = (self.factor, self.attention_factor, *self.short_factors, *self.long_factors)
        if not all(SMALLEST_NUMBER <= number <= LARGEST_NUMBER for number in numbers):
            expected = f"factors from {SMALLEST_NUMBER} to {LARGEST_NUMBER}"
            return expected, f"{self.kind} with {numbers[:4]}"
        if self.kind != "linear" and not 1 <= self.original_max_seq_len <= _MOST_POSITIONS:
            return f"original_max_seq_len from 1 to {_MOST_POSITIONS}", str(self.original_max_seq_len)
        if self.kind == "llama3" and not 0 <= self.low_freq_factor < self.high_freq_factor <= LARGEST_NUMBER:
            return "0 <= low < high_freq_factor", f"{self.low_freq_factor} and {self.high_freq_factor}"
        if self.kind == "yarn" and not SMALLEST_NUMBER <= self.beta_slow <= self.beta_fast <= _MOST_TURNS:
            expected = f"{SMALLEST_NUMBER} <= beta_slow <= beta_fast <= {_MOST_TURNS}"
            return expected, f"{self.beta_slow} and {self.beta_fast}"
        lengths = {len(self.short_factors), len(self.long_factors)}
        if self.kind == "longrope" and lengths != {num_pairs}:
            return f"{num_pairs} short and long factors", f"{len(self.short_factors)} and {len(self.long_factors)}"
        return None


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """Give by how much yarn multiplies cosines and sines where a model does not say it (arXiv:2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_frequencies(theta: float, rotary_dim: int, scaling: RopeScaling | None, max_seq_len: int) -> Frequencies:
    """Give the angle per position of each rotated pair, float64 ``[rotary_dim / 2]``.

    The formulas are those of transformers' ``modeling_rope_utils``; theirs run in float32, and end within a few units
    in the last place of these rounded once.

    Args:
        theta: Base of the geometric series of wavelengths.
        rotary_dim: Values of a head that are rotated.
        scaling: How they are stretched.
        max_seq_len: The context in use, by which longrope picks one of its lists, once.
    """
    freqs: Frequencies = theta ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if scaling is None:
        return freqs
    match scaling.kind:
        case "llama3":
            return _llama3(freqs, scaling)
        case "linear":
            return freqs / scaling.factor
        case "yarn":
            return _yarn(freqs, theta, rotary_dim, scaling)
        case "longrope":
            is_long = max_seq_len > scaling.original_max_seq_len
            factors: Frequencies = np.asarray(scaling.long_factors if is_long else scaling.short_factors)
            return freqs / factors


def _llama3(freqs: Frequencies, scaling: RopeScaling) -> Frequencies:
    """Blend scaled and unscaled where the wavelength is medium (Llama 3.1)."""
    wavelengths = 2 * math.pi / freqs
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((scaling.original_max_seq_len / wavelengths - scaling.low_freq_factor) / span, 0.0, 1.0)
    blended: Frequencies = (1 - smooth) * freqs / scaling.factor + smooth * freqs
    return blended


def _yarn(freqs: Frequencies, theta: float, rotary_dim: int, scaling: RopeScaling) -> Frequencies:
    """Blend by how often a pair turns in the original context (Peng et al., arXiv:2309.00071)."""

    def pair_that_turns(times: float) -> float:
        return rotary_dim * math.log(scaling.original_max_seq_len / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # as transformers does, against dividing by 0
    divided: Frequencies = np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0.0, 1.0)
    return freqs / scaling.factor * divided + freqs * (1 - divided)
