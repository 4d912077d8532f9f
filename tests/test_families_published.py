"""What the configs of every family's makers map to: windows, experts, norms, multipliers, rotations, fused tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from test_families import LLAMA, QWEN3, config_of  # type: ignore[import-not-found]

from dllama.config import Activation, LayerSpec, QkNorm, RopeScaling
from dllama.families import Part, describe

# What the makers' config.json files hold, less what no family reads.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Mistral-7B-v0.1": {**LLAMA, "model_type": "mistral", "sliding_window": 4096},
    "Mistral-7B-v0.3": {**LLAMA, "model_type": "mistral", "sliding_window": None},
    "Mixtral-8x7B": {
        **LLAMA,
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "Qwen2.5-7B": {
        **LLAMA,
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 1,
    },
    "Qwen3-30B-A3B": {
        **QWEN3,
        "model_type": "qwen3_moe",
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_window_layers": 1,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "gemma-2-2b": {
        **LLAMA,
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 32,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma-3-1b": {
        **LLAMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 32,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}


def published(name: str, **changes: Any) -> Any:
    return describe({**PUBLISHED[name], **changes}, "config.json").config


def without(name: str, *keys: str) -> Any:
    return describe({key: value for key, value in PUBLISHED[name].items() if key not in keys}, "config.json").config


def test_mistral_window() -> None:
    assert published("Mistral-7B-v0.1").layers == (LayerSpec(window=4096),) * 2
    assert published("Mistral-7B-v0.3").layers == (LayerSpec(),) * 2
    assert without("Mistral-7B-v0.3", "sliding_window").layers == (LayerSpec(window=4096),) * 2


def test_mixtral_experts() -> None:
    config = published("Mixtral-8x7B")
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (8, 2, 96)
    assert config.norm_topk_prob
    tensors = describe(PUBLISHED["Mixtral-8x7B"], "config.json").tensors
    assert tensors["layers.1.router"] == Part("model.layers.1.block_sparse_moe.gate.weight")
    assert tensors["layers.0.experts.7.down_proj"] == Part("model.layers.0.block_sparse_moe.experts.7.w2.weight")


def test_qwen2_windows() -> None:
    assert published("Qwen2.5-7B").layers == (LayerSpec(has_qkv_bias=True),) * 2
    windows = [layer.window for layer in published("Qwen2.5-7B", use_sliding_window=True).layers]
    assert windows == [0, 131072]
    kinds = ["sliding_attention", "full_attention"]
    config = published("Qwen2.5-7B", use_sliding_window=True, layer_types=kinds)
    assert [layer.window for layer in config.layers] == [131072, 0]


def test_qwen3_moe_layers() -> None:
    config = published("Qwen3-30B-A3B")
    assert config.layers == (LayerSpec(QkNorm.HEAD, has_experts=True),) * 2
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (128, 8, 768)
    assert [layer.has_experts for layer in published("Qwen3-30B-A3B", decoder_sparse_step=2).layers] == [False, True]
    assert [layer.has_experts for layer in published("Qwen3-30B-A3B", mlp_only_layers=[1]).layers] == [True, False]
    assert not without("Qwen3-30B-A3B", "norm_topk_prob").norm_topk_prob


def test_gemma2() -> None:
    checkpoint = describe(PUBLISHED["gemma-2-2b"], "config.json")
    config = checkpoint.config
    assert config.activation is Activation.GELU_TANH
    assert [layer.window for layer in config.layers] == [4096, 0]
    assert (config.embedding_multiplier, config.attention_multiplier) == (8.0, 1 / 16)
    assert (config.attention_softcap, config.logits_softcap) == (50.0, 30.0)
    assert published("gemma-2-2b", attn_logit_softcapping=None).attention_softcap == 0
    assert without("gemma-2-2b", "attn_logit_softcapping").attention_softcap == 50
    assert checkpoint.tensors["lm_head"] == Part("model.embed_tokens.weight", own_name="lm_head.weight")
    prefix = "model.layers.1."
    assert {ours: part for ours, part in checkpoint.tensors.items() if part.added} == {
        "norm": Part("model.norm.weight", added=1.0),
        **{
            f"layers.{i}.{ours}": Part(f"model.layers.{i}.{theirs}.weight", added=1.0)
            for i in range(2)
            for ours, theirs in {
                "input_layernorm": "input_layernorm",
                "attention_output_norm": "post_attention_layernorm",
                "post_attention_layernorm": "pre_feedforward_layernorm",
                "feedforward_output_norm": "post_feedforward_layernorm",
            }.items()
        },
    }
    assert checkpoint.tensors["layers.1.q_proj"] == Part(f"{prefix}self_attn.q_proj.weight")


def test_gemma3_layers() -> None:
    config = published("gemma-3-1b")
    assert [layer.window for layer in config.layers] == [512, 512, 512, 512, 512, 0, 512]
    assert [layer.has_local_rope for layer in config.layers] == [True] * 5 + [False, True]
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.attention_softcap == config.logits_softcap == 0
    scaled = published("gemma-3-1b", rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert scaled.rope_scaling == RopeScaling(8.0, kind="linear")
    groups = {"full_attention": {"rope_theta": 2e6}, "sliding_attention": {"rope_theta": 3e4}}
    config = published("gemma-3-1b", rope_parameters=groups)
    assert (config.rope_theta, config.local_rope_theta) == (2e6, 3e4)


def test_phi3_parts_and_longrope() -> None:
    settings = {
        **LLAMA,
        "model_type": "phi3",
        "original_max_position_embeddings": 128,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 6, "long_factor": [1.5] * 6},
        "sliding_window": 100,
    }
    checkpoint = describe(settings, "config.json")
    config = checkpoint.config
    assert config.rotary_dim == 12
    assert config.layers[0].window == 100
    factor = math.sqrt(1 + math.log(512 / 128) / math.log(128))
    assert config.rope_scaling == RopeScaling(
        1.0,
        original_max_seq_len=128,
        kind="longrope",
        attention_factor=factor,
        short_factors=(1.0,) * 6,
        long_factors=(1.5,) * 6,
    )
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    assert checkpoint.tensors["layers.0.q_proj"] == Part(fused, 0, 64, 128)
    assert checkpoint.tensors["layers.0.k_proj"] == Part(fused, 64, 32, 128)
    assert checkpoint.tensors["layers.0.v_proj"] == Part(fused, 96, 32, 128)
    assert checkpoint.tensors["layers.0.up_proj"] == Part("model.layers.0.mlp.gate_up_proj.weight", 96, 96, 192)
    assert checkpoint.tensors["layers.0.down_proj"] == Part("model.layers.0.mlp.down_proj.weight")


def test_yarn() -> None:
    scaling = config_of(rope_scaling={"type": "yarn", "factor": 4.0}).rope_scaling
    factor = 0.1 * math.log(4) + 1
    expected = RopeScaling(4.0, original_max_seq_len=512, kind="yarn", attention_factor=factor)
    expected = replace(expected, beta_fast=32.0, beta_slow=1.0)
    assert scaling == expected
    named = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "truncate": False, "mscale": 2.0}
    scaling = config_of(rope_scaling=named).rope_scaling
    assert scaling == replace(expected, attention_factor=1.5, is_truncated=False)
    both = {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0}
    ratio = (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    assert config_of(rope_scaling=both).rope_scaling == replace(expected, attention_factor=ratio)


def test_yarn_stretches_a_context_that_was_left_as_it_was() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert config_of(rope_scaling=yarn).max_seq_len == 2048
    assert config_of(rope_scaling=yarn, max_position_embeddings=8192).max_seq_len == 8192
    assert config_of(rope_scaling={"rope_type": "linear", "factor": 4.0}).max_seq_len == 512


def test_granite_multipliers() -> None:
    settings = {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    }
    config = config_of(model_type="granite", **settings)
    assert (config.embedding_multiplier, config.attention_multiplier) == (12.0, 0.015625)
    assert (config.residual_multiplier, config.logits_multiplier) == (0.22, 0.125)
    assert config_of(model_type="granite").attention_multiplier == 1.0


def test_olmo2_norms() -> None:
    checkpoint = describe({**LLAMA, "model_type": "olmo2"}, "config.json")
    assert checkpoint.config.layers[0] == LayerSpec(QkNorm.ALL, has_input_norms=False, has_output_norms=True)
    assert checkpoint.tensors["layers.0.attention_output_norm"].name == "model.layers.0.post_attention_layernorm.weight"
    assert "layers.0.input_layernorm" not in checkpoint.tensors
