"""From a GGUF file's metadata to ``ModelConfig``.

What it asks for and the core lacks is refused by name, never ignored.

Keys and what they imply are those of llama.cpp's ``llama-arch.cpp`` and its models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from reprlib import repr as brief

from dllama.config import MAX_LAYERS, Activation, DType, LayerSpec, ModelConfig, RopeScaling
from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.gguf_arch import ARCHS, EMBEDDING, ROPE_FREQS, ROPE_LONG, ROPE_SHORT, GgufArch
from dllama.formats.gguf_container import GgufTensorInfo, shortest
from dllama.formats.gguf_keys import Keys
from dllama.formats.quants import Floats
from dllama.rope import yarn_attention_factor

ARCHITECTURE, TYPE = "general.architecture", "general.type"
Tensors = Mapping[str, GgufTensorInfo]


def arch_of(path: str, metadata: Mapping[str, object]) -> GgufArch:
    """Find the architecture.

    Raises:
        BadFile: The file names none.
        UnsupportedModel: It is none that dllama runs, or no model.
    """
    kind, name = metadata.get(TYPE, "model"), metadata.get(ARCHITECTURE)
    if not isinstance(kind, str) or kind != "model":
        raise UnsupportedModel(path, TYPE, "'model'", brief(kind))
    if not isinstance(name, str):
        raise BadFile(path, ARCHITECTURE, "the name of an architecture", "none" if name is None else brief(name))
    if name not in ARCHS:
        raise UnsupportedModel(path, ARCHITECTURE, f"one of {', '.join(ARCHS)}", brief(name))
    return ARCHS[name]


def model_config(
    path: str, metadata: Mapping[str, object], tensors: Tensors, read_vector: Callable[[str], Floats]
) -> ModelConfig:
    """Give the model that metadata describes, every size checked, with F32 as its weight type.

    Args:
        path: The file, for messages.
        metadata: Its values by key.
        tensors: Its tensors by name.
        read_vector: Reads a tensor of one dimension, float32.

    Raises:
        BadFile: A key is missing, or does not fit the others.
        UnsupportedModel: It is a model that dllama cannot run.
    """
    arch = arch_of(path, metadata)
    keys = Keys(path, metadata, arch)
    config = _sizes(keys, arch, tensors)
    problem = config.problem()
    if problem is None:  # what follows allocates by these sizes
        config = _with_rope(keys, arch, tensors, read_vector, config)
        problem = config.problem()
    if problem is not None:
        raise BadFile(path, f"metadata ({problem.name})", problem.expected, problem.found)
    if arch.name != "granite":  # whose files switch the rotation off by it
        keys.has("rope.scaling.finetuned")
    keys.refuse_unknown()
    return config


def _sizes(keys: Keys, arch: GgufArch, tensors: Tensors) -> ModelConfig:
    hidden, num_heads = keys.integer("embedding_length"), max(1, keys.integer("attention.head_count"))
    head_dim = keys.integer("attention.key_length", hidden // num_heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.bad(
            "attention.value_length", f"{head_dim}, as key_length", str(keys.integer("attention.value_length"))
        )
    rotary_dim = keys.integer("rope.dimension_count", head_dim)
    num_layers, num_experts = keys.integer("block_count"), keys.integer("expert_count", 0)
    num_used = keys.integer("expert_used_count", 0)
    window = keys.integer("attention.sliding_window", 4096 if arch.name == "gemma2" else 0) if arch.has_window else 0
    ffn = keys.integer("feed_forward_length")
    logit_scale = keys.number("logit_scale") if arch.name == "granite" else 1.0
    if EMBEDDING not in tensors:
        raise BadFile(keys.path, f"tensor {EMBEDDING}", "a tensor of this name", "none")
    return ModelConfig(
        model_type=_model_type(arch, window, num_experts),
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=tensors[EMBEDDING].shape[0],
        max_seq_len=keys.integer("context_length"),
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        weight_type=DType.F32,
        layers=tuple(_layers(keys, arch, num_layers, window, num_experts > 0)),
        local_rope_theta=keys.number("rope.freq_base_swa", 10000.0) if arch.name == "gemma3" else 10000.0,
        rotary_dim=0 if rotary_dim == head_dim else rotary_dim,
        activation=arch.activation,
        num_experts=num_experts,
        num_experts_per_tok=num_used if num_experts else 0,
        moe_intermediate_size=keys.integer("expert_feed_forward_length", ffn) if num_experts else 0,
        embedding_multiplier=_embedding_multiplier(keys, arch, hidden),
        attention_multiplier=_attention_multiplier(keys, arch, hidden // num_heads, head_dim, num_layers),
        residual_multiplier=keys.number("residual_scale", 1.0) if arch.name == "granite" else 1.0,
        logits_multiplier=1 / logit_scale if logit_scale else 0.0,  # problem() names a scale of 0
        attention_softcap=keys.number("attn_logit_softcapping", 50.0) if arch.name == "gemma2" else 0.0,
        logits_softcap=_logits_softcap(keys, arch),
    )


def _model_type(arch: GgufArch, window: int, num_experts: int) -> str:
    if arch.name == "llama" and num_experts:
        return "mixtral"
    return "mistral" if arch.name == "llama" and window else arch.model_types[0]


def _layers(keys: Keys, arch: GgufArch, num_layers: int, window: int, has_experts: bool) -> Iterator[LayerSpec]:
    period = keys.integer("attention.sliding_window_pattern", arch.window_period) if window else 0
    for index in range(min(num_layers, MAX_LAYERS)):  # problem() names a count beyond that
        is_local = bool(window) and (not period or (index + 1) % period != 0)
        yield replace(
            arch.layer,
            window=window if is_local else 0,
            has_local_rope=is_local and arch.name == "gemma3",
            has_experts=has_experts,
        )


def _embedding_multiplier(keys: Keys, arch: GgufArch, hidden: int) -> float:
    if arch.name == "granite":
        return keys.number("embedding_scale", 1.0)
    return float(max(1, hidden) ** 0.5) if arch.has_scaled_embeddings else 1.0


def _attention_multiplier(keys: Keys, arch: GgufArch, share: int, head_dim: int, num_layers: int) -> float:
    if arch.name == "granite":
        return keys.number("attention.scale", 0.0)
    if not arch.num_layers_of_27b:
        return 0.0
    size = share if num_layers == arch.num_layers_of_27b else head_dim
    return float(max(1, size) ** -0.5)  # problem() names a size below 1


def _logits_softcap(keys: Keys, arch: GgufArch) -> float:
    if arch.activation is not Activation.GELU_TANH:  # Gemma alone
        return 0.0
    return keys.number("final_logit_softcapping", 30.0 if arch.name == "gemma2" else 0.0)


def _with_rope(
    keys: Keys, arch: GgufArch, tensors: Tensors, read_vector: Callable[[str], Floats], config: ModelConfig
) -> ModelConfig:
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    original = keys.integer("rope.scaling.original_context_length", config.max_seq_len)
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    lists = _factor_lists(keys, arch, tensors, read_vector, config.rotated_size // 2)
    if (
        kind not in ("none", "linear", "yarn", "longrope")
        or (kind == "yarn" and lists)
        or (kind == "longrope" and not lists)
    ):
        raise keys.bad("rope.scaling.type", "none, linear, yarn without factors, or longrope with factors", brief(kind))
    if kind == "yarn":
        return replace(config, rope_scaling=_yarn(keys, factor, original, attention))
    if kind == "none":
        factor = 1.0
    if not lists and attention != 1.0:
        lists = [(1.0,) * (config.rotated_size // 2)] * 2
    if lists:
        short, long = (tuple(each * factor for each in factors) for factors in lists)
        scaling = RopeScaling(
            1.0,
            original_max_seq_len=original,
            kind="longrope",
            attention_factor=attention,
            short_factors=short,
            long_factors=long,
        )
        return replace(config, rope_scaling=scaling)
    return config if factor == 1.0 else replace(config, rope_scaling=RopeScaling(factor, kind="linear"))


def _yarn(keys: Keys, factor: float, original: int, attention: float) -> RopeScaling:
    """Read yarn's settings; cosines and sines grow with the factor, unless the file says by how much."""
    if factor <= 0:
        raise keys.bad("rope.scaling.factor", "a positive number", str(factor))
    return RopeScaling(
        factor,
        original_max_seq_len=original,
        kind="yarn",
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=attention * keys.number("rope.scaling.yarn_attn_factor", yarn_attention_factor(factor)),
    )


def _factor_lists(
    keys: Keys, arch: GgufArch, tensors: Tensors, read_vector: Callable[[str], Floats], num_pairs: int
) -> list[tuple[float, ...]]:
    """Read what each pair's angle is divided by, in short contexts and in long ones; nothing if it is nowhere said."""
    names = (ROPE_FREQS, ROPE_FREQS) if ROPE_FREQS in tensors else (ROPE_SHORT, ROPE_LONG)
    if not arch.has_rope_factors or not set(names) & set(tensors):
        return []
    lists = []
    for name in names:
        if name not in tensors or tensors[name].shape != (num_pairs,):
            found = f"one of shape {list(tensors[name].shape)}" if name in tensors else "none"
            raise BadFile(keys.path, f"tensor {name}", f"a tensor of {num_pairs} values", found)
        lists.append(tuple(shortest(value) for value in read_vector(name)))
    return lists
