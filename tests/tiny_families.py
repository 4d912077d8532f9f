"""A tiny config of every family, with the features that its real models have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model_files import LLAMA3_SCALING, tiny_config  # type: ignore[import-not-found]

from dllama.config import Activation, DType, LayerSpec, ModelConfig, QkNorm, RopeScaling

LINEAR = RopeScaling(4.0, kind="linear")
YARN = RopeScaling(
    4.0, original_max_seq_len=32, kind="yarn", beta_fast=32.0, beta_slow=1.0, attention_factor=1.138629436111989
)
LONGROPE = RopeScaling(
    1.0,
    original_max_seq_len=64,
    kind="longrope",
    attention_factor=1.08,
    short_factors=(1.0, 1.01, 1.1, 1.3),
    long_factors=(1.0, 1.5, 3.2, 7.1),
)
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
_PLAIN = LayerSpec()
_GEMMA2 = LayerSpec(has_output_norms=True)
_GEMMA3 = LayerSpec(QkNorm.HEAD, has_output_norms=True)
_GEMMA3_LOCAL = replace(_GEMMA3, window=16, has_local_rope=True)
_OLMO2 = LayerSpec(QkNorm.ALL, has_input_norms=False, has_output_norms=True)


def family_configs(weight_type: DType = DType.F32) -> dict[str, ModelConfig]:
    """Give a config for each family, and some with other scalings, by name."""

    def config(model_type: str, layer: LayerSpec = _PLAIN, **changes: object) -> ModelConfig:
        fields = {"layers": (layer,) * 2, "head_dim": 16} | changes
        return tiny_config(model_type, weight_type, **fields)

    gemma: dict[str, Any] = {
        "activation": Activation.GELU_TANH,
        "embedding_multiplier": 8.0,
        "attention_multiplier": 0.25,
    }
    return {
        "llama": config("llama"),
        "llama, llama3": config("llama", rope_scaling=LLAMA3_SCALING),
        "llama, linear": config("llama", rope_scaling=LINEAR),
        "mistral": config("mistral", LayerSpec(window=32)),
        "mixtral": config("mixtral", LayerSpec(has_experts=True), **EXPERTS),
        "qwen2": config("qwen2", LayerSpec(has_qkv_bias=True), rope_theta=1e6),
        "qwen2, yarn": config("qwen2", LayerSpec(has_qkv_bias=True), rope_scaling=YARN),
        "qwen3": config("qwen3", LayerSpec(QkNorm.HEAD), head_dim=32),
        "qwen3_moe": config("qwen3_moe", LayerSpec(QkNorm.HEAD, has_experts=True), head_dim=32, **EXPERTS),
        "gemma2": config(
            "gemma2",
            layers=(replace(_GEMMA2, window=16), _GEMMA2) * 2,
            num_layers=4,
            attention_softcap=50.0,
            logits_softcap=30.0,
            **gemma,
        ),
        "gemma3_text": config(
            "gemma3_text",
            layers=(*(_GEMMA3_LOCAL,) * 5, _GEMMA3, _GEMMA3_LOCAL),
            num_layers=7,
            rope_theta=1e6,
            rope_scaling=LINEAR,
            **gemma,
        ),
        "phi3": config("phi3", rotary_dim=8, rope_scaling=LONGROPE),
        "olmo2": config("olmo2", _OLMO2),
        "granite": config(
            "granite",
            embedding_multiplier=12.0,
            attention_multiplier=0.0625,
            residual_multiplier=0.22,
            logits_multiplier=1 / 6.0,
        ),
    }
