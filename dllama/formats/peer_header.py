"""The header that distributed-llama's converters write: which keys, and in which order.

Its keys follow from which fields a ``config.json`` or ``params.json`` has, not only from what they mean: a model whose
file does not say ``head_dim`` has a header without it. So that converted files are equal byte by byte, headers are made
here from the same fields. A model that such a header cannot tell rightly gets one of ours, by ``m_writer``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dllama.config import ModelConfig
from dllama.errors import DllamaError
from dllama.formats.m_header import EPS_OF_CODE, MAGIC, Arch, Key, RopeType, config_of, parse_header

_ARCHS = {"llama": Arch.LLAMA, "mistral": Arch.LLAMA, "qwen3": Arch.QWEN3, "qwen3_moe": Arch.QWEN3_MOE}
_SILU = 1
_Pairs = Iterator[tuple[Key, int]]


def header_of_config(raw: Mapping[str, Any], config: ModelConfig) -> bytes | None:
    """Give the header of a Hugging Face model as ``convert-hf.py`` writes it.

    Args:
        raw: The parsed ``config.json``.
        config: What it means.

    Returns:
        The header; None if it could not tell this model rightly.
    """
    return _checked(_pairs_of_config(raw, config), config)


def header_of_params(params: Mapping[str, Any], config: ModelConfig) -> bytes | None:
    """Give the header of a model of Meta's as ``convert-llama.py`` writes it: ``params.json``'s order comes first.

    distributed-llama demands ``max_seq_len`` and knows neither ``norm_eps`` nor ``use_scaled_rope``; keys for what it
    lacks are added behind its own.
    """
    return _checked(_pairs_of_params(params, config), config)


def _pairs_of_config(raw: Mapping[str, Any], config: ModelConfig) -> _Pairs:
    yield Key.version, 0
    yield Key.arch_type, _ARCHS.get(config.model_type, -1)
    yield Key.hidden_act, _SILU
    yield Key.hidden_size, config.hidden_size
    yield Key.intermediate_size, config.intermediate_size
    yield Key.num_layers, config.num_layers
    yield Key.num_heads, config.num_heads
    yield Key.num_kv_heads, config.num_kv_heads
    yield Key.weight_type, config.weight_type
    yield Key.max_seq_len, config.max_seq_len
    yield Key.vocab_size, config.vocab_size
    yield Key.num_experts, config.num_experts
    yield Key.num_experts_per_tok, config.num_experts_per_tok
    rope = raw.get("rope_parameters")  # where transformers 5 has rope_theta
    if raw.get("rope_theta") is not None or (isinstance(rope, Mapping) and rope.get("rope_theta") is not None):
        yield Key.rope_theta, int(config.rope_theta)
    yield from _scaling_pairs(config)
    if raw.get("head_dim") is not None:
        yield Key.head_dim, config.head_dim
    if raw.get("rms_norm_eps") is not None:
        yield Key.rms_norm_eps, _eps_code(config)
    if raw.get("moe_intermediate_size") is not None:
        yield Key.moe_intermediate_size, config.moe_intermediate_size


def _pairs_of_params(params: Mapping[str, Any], config: ModelConfig) -> _Pairs:
    known = {
        "dim": (Key.hidden_size, config.hidden_size),
        "n_layers": (Key.num_layers, config.num_layers),
        "n_heads": (Key.num_heads, config.num_heads),
        "n_kv_heads": (Key.num_kv_heads, config.num_kv_heads),
        "vocab_size": (Key.vocab_size, config.vocab_size),
        "max_seq_len": (Key.max_seq_len, config.max_seq_len),
        "rope_theta": (Key.rope_theta, int(config.rope_theta)),
    }
    yield from (known[name] for name in params if name in known)
    yield from (known[name] for name in ("vocab_size", "max_seq_len", "n_kv_heads") if name not in params)
    yield Key.arch_type, Arch.LLAMA
    yield Key.num_experts, 0
    yield Key.num_experts_per_tok, 0
    yield Key.weight_type, config.weight_type
    yield Key.intermediate_size, config.intermediate_size
    if config.rms_norm_eps != EPS_OF_CODE[5]:  # what its absence means
        yield Key.rms_norm_eps, _eps_code(config)
    yield from _scaling_pairs(config)


def _scaling_pairs(config: ModelConfig) -> _Pairs:
    scaling = config.rope_scaling
    if scaling is None:
        return
    yield Key.rope_scaling_factor, int(scaling.factor)
    yield Key.rope_low_freq_factor, int(scaling.low_freq_factor)
    yield Key.rope_high_freq_factor, int(scaling.high_freq_factor)
    yield Key.rope_original_max_seq_len, scaling.original_max_seq_len
    yield Key.rope_type, RopeType.LLAMA3_1


def _eps_code(config: ModelConfig) -> int:
    return next((code for code, eps in EPS_OF_CODE.items() if eps == config.rms_norm_eps), -1)


def _checked(pairs: _Pairs, config: ModelConfig) -> bytes | None:
    """Pack a header, and compare what a reader makes of it with the model."""
    try:
        raw = b"".join(struct.pack("<ii", key, value) for key, value in pairs)
        header = struct.pack("<Ii", MAGIC, 8 + len(raw)) + raw
        read = config_of(parse_header("", header))
    except (DllamaError, struct.error):
        return None
    return header if replace(read, model_type=config.model_type) == config else None
