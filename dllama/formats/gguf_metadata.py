"""From ``ModelConfig`` to a GGUF file's metadata: the way back of ``gguf_config``, which checks it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from dllama.config import DType, ModelConfig, RopeScaling
from dllama.errors import BadFile, UsageError
from dllama.formats.gguf_arch import ARCHS, EMBEDDING, ROPE_FREQS, ROPE_LONG, ROPE_SHORT, GgufArch
from dllama.formats.gguf_config import ARCHITECTURE, model_config
from dllama.formats.gguf_container import GgufTensorInfo, shortest
from dllama.formats.gguf_types import GGML_TYPES
from dllama.formats.gguf_writer import Value
from dllama.formats.quants import Floats
from dllama.rope import yarn_attention_factor

_FILE_TYPES = {DType.F32: 0, DType.F16: 1, DType.Q40: 2, DType.Q80: 7}  # llama.cpp's, of most matrices
_QUANTIZATION_VERSION = 2
_NOT_COMPARED = {"model_type", "weight_type", "q80_tensors", "rope_scaling"}
_CLOSE = 1e-6  # relative; the file's numbers are float32


def arch_for(config: ModelConfig) -> GgufArch:
    """Find the architecture under which a file can hold a model.

    Raises:
        UsageError: There is none.
    """
    for arch in ARCHS.values():
        if config.model_type in arch.model_types:
            return arch
    raise UsageError(f"a GGUF file cannot be made of a model of type {config.model_type!r}")


def model_metadata(config: ModelConfig) -> tuple[dict[str, Value], dict[str, Floats]]:
    """Describe a model.

    Returns:
        Values by key, and the vectors by which its rotation is scaled, as tensors by name.

    Raises:
        UsageError: A file cannot hold the model; the text names the first thing that differs.
    """
    arch, vectors = arch_for(config), dict(_rope_vectors(config))
    values: dict[str, Value] = {
        ARCHITECTURE: arch.name,
        "general.file_type": _FILE_TYPES[config.weight_type],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    own = dict((*_sizes(config, arch), *_features(config, arch), *_rope_keys(config, vectors)))
    rounded = {key: shortest(value) if isinstance(value, float) else value for key, value in own.items()}
    values |= {f"{arch.name}.{key}": value for key, value in rounded.items()}
    _check(config, values, vectors)
    return values, vectors


def _sizes(config: ModelConfig, arch: GgufArch) -> Iterator[tuple[str, Value]]:
    yield "vocab_size", config.vocab_size
    yield "context_length", config.max_seq_len
    yield "embedding_length", config.hidden_size
    yield "block_count", config.num_layers
    # Mixtral's files have the size of an expert here, and no key for it.
    is_mixtral = arch.name == "llama" and config.has_experts
    yield "feed_forward_length", config.moe_intermediate_size if is_mixtral else config.intermediate_size
    yield "attention.head_count", config.num_heads
    yield "attention.head_count_kv", config.num_kv_heads
    yield "attention.key_length", config.head_dim
    yield "attention.value_length", config.head_dim
    yield "attention.layer_norm_rms_epsilon", config.rms_norm_eps
    yield "rope.dimension_count", config.rotated_size
    yield "rope.freq_base", config.rope_theta
    if config.has_experts:
        yield "expert_count", config.num_experts
        yield "expert_used_count", config.num_experts_per_tok
        if not is_mixtral:
            yield "expert_feed_forward_length", config.moe_intermediate_size


def _features(config: ModelConfig, arch: GgufArch) -> Iterator[tuple[str, Value]]:
    window = max(layer.window for layer in config.layers)
    if window:
        yield "attention.sliding_window", window
    if any(layer.has_local_rope for layer in config.layers):
        yield "rope.freq_base_swa", config.local_rope_theta
    if config.attention_softcap:
        yield "attn_logit_softcapping", config.attention_softcap
    if config.logits_softcap:
        yield "final_logit_softcapping", config.logits_softcap
    if arch.name == "granite":
        yield "embedding_scale", config.embedding_multiplier
        yield "attention.scale", config.attention_multiplier
        yield "residual_scale", config.residual_multiplier
        yield "logit_scale", 1 / config.logits_multiplier


def _rope_vectors(config: ModelConfig) -> Iterator[tuple[str, Floats]]:
    """Give what llama.cpp divides each pair's angle by, where a rule that it lacks, or lists, say how to rotate."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "yarn"):
        return
    if scaling.kind == "longrope" and (scaling.short_factors != scaling.long_factors or config.model_type == "phi3"):
        yield ROPE_SHORT, np.array(scaling.short_factors, np.float32)
        yield ROPE_LONG, np.array(scaling.long_factors, np.float32)
        return
    unscaled = config.rope_theta ** -(np.arange(0, config.rotated_size, 2) / config.rotated_size)
    yield ROPE_FREQS, (unscaled / config.rope_frequencies()).astype(np.float32)


def _rope_keys(config: ModelConfig, vectors: dict[str, Floats]) -> Iterator[tuple[str, Value]]:
    scaling = config.rope_scaling
    if scaling is None:
        return
    kind = "longrope" if ROPE_LONG in vectors else scaling.kind
    if kind in ("linear", "yarn", "longrope"):
        yield "rope.scaling.type", kind
    if kind in ("linear", "yarn"):
        yield "rope.scaling.factor", scaling.factor
    if kind != "linear":
        yield "rope.scaling.original_context_length", scaling.original_max_seq_len
    if kind == "yarn":
        yield "rope.scaling.yarn_beta_fast", scaling.beta_fast
        yield "rope.scaling.yarn_beta_slow", scaling.beta_slow
    usual = yarn_attention_factor(scaling.factor) if kind == "yarn" else 1.0
    if _attention_factor(scaling) != usual:
        yield "rope.scaling.attn_factor", _attention_factor(scaling) / usual


def _attention_factor(scaling: RopeScaling | None) -> float:
    return scaling.attention_factor if scaling and scaling.kind in ("yarn", "longrope") else 1.0


def _check(config: ModelConfig, values: dict[str, Value], vectors: dict[str, Floats]) -> None:
    """Read what was written, and refuse a model that would come back as another one."""
    shapes = {EMBEDDING: (config.vocab_size, config.hidden_size)} | {name: each.shape for name, each in vectors.items()}
    tensors = {name: GgufTensorInfo(name, GGML_TYPES[0], shape, 0) for name, shape in shapes.items()}
    try:
        found = model_config("", values, tensors, lambda name: vectors[name])
    except BadFile as error:
        raise UsageError(f"a GGUF file cannot hold this model: {error.place}: {error.found}") from error
    for name, wanted, there in _compared(config, found):
        if not np.allclose(wanted, there, rtol=_CLOSE, atol=0):
            raise UsageError(f"a GGUF file cannot hold this model: {name} would be read as {there}, and is {wanted}")


def _compared(config: ModelConfig, found: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Give what must be the same: a name, and both values as numbers."""
    skipped = _NOT_COMPARED | ({"intermediate_size"} if all(layer.has_experts for layer in config.layers) else set())
    skipped |= set() if any(layer.has_local_rope for layer in config.layers) else {"local_rope_theta"}
    for field in fields(ModelConfig):
        if field.name not in skipped | {"layers"}:
            yield field.name, getattr(config, field.name), getattr(found, field.name)
    for index, layers in enumerate(zip(config.layers, found.layers, strict=True)):
        for field in fields(layers[0]):
            wanted, there = (getattr(layer, field.name) for layer in layers)
            yield f"layers.{index}.{field.name}", wanted, there
    wanted, there = _attention_factor(config.rope_scaling), _attention_factor(found.rope_scaling)
    yield "rope_scaling.attention_factor", wanted, there
    for max_seq_len in {1, config.max_seq_len}:  # longrope has a rule for short contexts and one for long ones
        yield "rope_scaling", config.rope_frequencies(max_seq_len), found.rope_frequencies(max_seq_len)
