"""From `config.json` to ModelConfig: what transformers writes today, what older files hold, and what is refused."""

from __future__ import annotations

import json
import math
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama.config import Activation, DType, LayerSpec, QkNorm, RopeScaling
from dllama.errors import BadFile, UnsupportedModel
from dllama.families import Part, describe
from dllama.formats.m_file import open_m_file

GOLDEN = Path(__file__).parent / "golden"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 32}
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config_of(**settings: Any) -> Any:
    return describe({**LLAMA, **settings}, "config.json").config


@pytest.mark.parametrize(
    "path", [path.with_suffix(".json") for path in sorted(GOLDEN.glob("*.npz"))], ids=lambda path: path.stem
)
def test_config_of_current_transformers(path: Path) -> None:
    """What transformers saves maps to what the golden `.m` file holds, whose logits are compared elsewhere."""
    checkpoint = describe(json.loads(path.read_text()), path)
    with open_m_file(path.with_suffix(".m")) as model:
        assert checkpoint.config == model.config
        assert checkpoint.tensors.keys() == model.tensors.keys()


def test_config_of_older_transformers() -> None:
    """Rotary settings beside the sizes, "type" for "rope_type", no head_dim, no KV heads."""
    assert config_of().head_dim == 16
    assert config_of().rope_theta == 500000.0
    assert config_of().rope_scaling is None
    assert config_of(rope_scaling=None).rope_scaling is None
    assert config_of(num_key_value_heads=None).num_kv_heads == 4
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    assert config_of(rope_scaling=LLAMA31_ROPE).rope_scaling == scaling
    renamed = {"type" if key == "rope_type" else key: value for key, value in LLAMA31_ROPE.items()}
    assert config_of(rope_scaling=renamed).rope_scaling == scaling
    assert config_of(rope_parameters={**LLAMA31_ROPE, "rope_theta": 7e5}).rope_theta == 7e5


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", DType.F32), ("bfloat16", DType.F32), ("float16", DType.F16), (None, DType.F32)]
)
def test_weight_type_loses_nothing(name: str | None, dtype: DType) -> None:
    assert config_of(torch_dtype=name).weight_type is dtype
    assert config_of(torch_dtype="float16", dtype=name or "float32").weight_type is dtype


def test_tensor_parts() -> None:
    names = {ours: part.name for ours, part in describe(LLAMA, "config.json").tensors.items()}
    assert names["layers.1.q_proj"] == "model.layers.1.self_attn.q_proj.weight"
    assert names["layers.0.down_proj"] == "model.layers.0.mlp.down_proj.weight"
    assert names["layers.0.input_layernorm"] == "model.layers.0.input_layernorm.weight"
    assert names["norm"] == "model.norm.weight"
    assert names["lm_head"] == "lm_head.weight"
    assert len(names) == 3 + 2 * 9
    tied = describe({**LLAMA, "tie_word_embeddings": True}, "config.json").tensors
    assert tied["lm_head"] == tied["embed_tokens"] == Part("model.embed_tokens.weight")


def test_qwen3_has_head_norms() -> None:
    checkpoint = describe({**QWEN3, "sliding_window": 4096, "use_sliding_window": False}, "config.json")
    assert checkpoint.config.layers == (LayerSpec(QkNorm.HEAD),) * 2
    assert checkpoint.tensors["layers.1.k_norm"] == Part("model.layers.1.self_attn.k_norm.weight")
    assert len(checkpoint.tensors) == 3 + 2 * 11
    assert describe({**QWEN3, "head_dim": None}, "config.json").config.head_dim == 128


SCALED_WINDOWS = {"sliding_attention": {"rope_type": "linear", "factor": 2.0}, "full_attention": {}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt_oss"}, "model_type: expected one of llama, mistral, "),
    ({"model_type": "gemma3", "vision_config": {}}, "gemma3 vision tower is not supported"),
    ({"model_type": "../llama"}, "model_type"),
    ({"model_type": None}, "model_type"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_parameters.rope_type"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"torch_dtype": "float8_e4m3fn"}, "dtype"),
    ({**QWEN3, "layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"model_type": "gemma2", "hidden_activation": "gelu"}, "hidden_activation"),
    ({"model_type": "gemma3_text", "rope_parameters": SCALED_WINDOWS}, "rope_parameters.sliding_attention.rope_type"),
]


@pytest.mark.parametrize(("settings", "place"), REFUSED, ids=[place.partition(":")[0] for _, place in REFUSED])
def test_refused_by_name(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        config_of(**settings)
    assert str(caught.value).startswith("config.json: ")
    assert place in str(caught.value)


LONGROPE = {
    "type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5] * 8,
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "hidden_size: expected a whole number, found no such field"),
    ({"hidden_size": "64"}, "hidden_size: expected a whole number, found '64'"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 72}, "hidden_size: expected a multiple of 32, found 72"),
    ({"hidden_size": 10**40}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_layers: expected 1 to"),
    ({"num_hidden_layers": -1}, "num_layers"),
    ({"num_hidden_layers": 10**12}, "num_layers"),
    ({"num_attention_heads": 0}, "num_heads"),
    ({"num_key_value_heads": 3}, "num_heads: expected a multiple of num_kv_heads=3, found 4"),
    ({"num_key_value_heads": 0}, "num_kv_heads"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps: expected a number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a positive number, found nan"),
    ({"rope_theta": 10**400}, "rope_theta: expected a number"),
    ({"rope_theta": -1}, "rope_theta"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
    ({"rope_scaling": "llama3"}, "rope_scaling: expected an object"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor: expected a number, found no such field"),
    ({"rope_scaling": {**LLAMA31_ROPE, "high_freq_factor": 1.0}}, "low_freq_factor < high_freq_factor"),
    ({"rope_scaling": {**LLAMA31_ROPE, "factor": 0}}, "factor"),
    ({"rope_scaling": {**LLAMA31_ROPE, "original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
    ({"hidden_act": 3}, "hidden_act: expected a string, found 3"),
    ({**QWEN3, "layer_types": "full_attention"}, "layer_types: expected a list of strings"),
    ({**QWEN3, "layer_types": ["full_attention"]}, "layer_types: expected one for every layer, found 1"),
    ({**QWEN3, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types: expected 'full_attention' only"),
    ({"rope_scaling": LLAMA31_ROPE, "rope_parameters": LLAMA31_ROPE}, "rope_scaling: expected no such field beside"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: expected a number"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor: expected a positive number, found 0.0"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 0.5}}, "beta_slow <= beta_fast"),
    ({"rope_scaling": {**LONGROPE, "long_factor": "long"}}, "rope_scaling.long_factor: expected a list of numbers"),
    ({"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 7}}, "rope_scaling: expected 8 short and long factors"),
    ({"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 5000}}, "rope_scaling.long_factor: expected up to"),
    ({"rope_scaling": {**LONGROPE, "short_factor": [0.0] * 8}}, "rope_scaling: expected positive finite factors"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window: expected 1 or more, found 0"),
    ({"model_type": "mixtral", "num_local_experts": 0}, "num_experts: expected 1 to"),
    ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok: expected 1 to 8, found 9"),
    ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step: expected 1 or more"),
    ({"model_type": "qwen3_moe", "mlp_only_layers": ["0"]}, "mlp_only_layers: expected a list of whole numbers"),
    ({"model_type": "qwen3_moe", "moe_intermediate_size": 40}, "moe_intermediate_size: expected a multiple of 32"),
    ({"model_type": "gemma2", "final_logit_softcapping": -1}, "final_logit_softcapping: expected a positive number"),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern"),
    ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor: expected more than 0, at most 1"),
    ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling: expected a positive number"),
]


@pytest.mark.parametrize(("settings", "text"), BAD, ids=[text.partition(":")[0] for _, text in BAD])
def test_bad_fields(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(BadFile) as caught:
        config_of(**settings)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 300


def test_not_an_object() -> None:
    with pytest.raises(BadFile, match="expected a JSON object, found list"):
        describe([], "config.json")


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
    assert checkpoint.tensors["lm_head"] == Part("model.embed_tokens.weight")
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
    assert checkpoint.tensors["layers.0.q_proj"] == Part(fused, 0, 64)
    assert checkpoint.tensors["layers.0.k_proj"] == Part(fused, 64, 32)
    assert checkpoint.tensors["layers.0.v_proj"] == Part(fused, 96, 32)
    assert checkpoint.tensors["layers.0.up_proj"] == Part("model.layers.0.mlp.gate_up_proj.weight", 96, 96)
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


# What a field of another kind, size or sign may hold.
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 64, 2**31, 2**63, 10**400, 0.0, -0.5, 0.5, 1e-300, 1e308),
    *(float("inf"), float("nan"), "", "silu", "yarn", "x" * 1000, [], [0], [1, 2], [1.0] * 5000, [None]),
    *(
        ["full_attention"] * 2,
        ["sliding_attention"] * 2,
        {},
        {"rope_type": "longrope"},
        {"full_attention": 3},
        [[]],
        {"": {}},
    ),
]


def test_odd_configs_by_the_thousand() -> None:
    """Two fields at a time, at random, are something else: an error that names what is wrong, or a model."""
    rng, count = random.Random(5), 0
    for _ in range(20_000):
        config = dict(rng.choice(FAMILY_CONFIGS))
        for _ in range(2):
            owner, key = config, rng.choice(sorted(config))
            if isinstance(owner[key], dict) and owner[key]:
                config[key] = owner = dict(owner[key])
                key = rng.choice(sorted(owner))
            owner[key] = rng.choice(ODD)
        try:
            describe(config, "config.json")
        except BadFile:
            count += 1
    assert 5_000 < count < 20_000


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FAMILY_CONFIGS = [json.loads(path.read_text())["config"] for path in sorted((GOLDEN / "families").glob("*.json"))]


@given(st.data())
def test_any_field_may_be_anything(data: st.DataObject) -> None:
    """A broken config ends in an error that names what is wrong, whatever is broken."""
    config = dict(data.draw(st.sampled_from(FAMILY_CONFIGS)))
    for _ in range(data.draw(st.integers(1, 3))):
        owner = config
        key = data.draw(st.sampled_from(sorted(owner)))
        if isinstance(owner[key], dict) and owner[key] and data.draw(st.booleans()):
            config[key] = owner = dict(owner[key])
            key = data.draw(st.sampled_from(sorted(owner)))
        owner[key] = data.draw(JUNK)
    with suppress(BadFile):
        describe(config, "config.json")
