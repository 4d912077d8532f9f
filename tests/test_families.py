"""From `config.json` to ModelConfig: what transformers writes today, what older files hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dllama.config import DType, LayerSpec, QkNorm, RopeScaling
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


def test_null_kv_heads_are_as_many_as_heads() -> None:
    for model_type in ("mistral", "mixtral", "qwen2", "qwen3"):
        assert config_of(model_type=model_type, num_key_value_heads=None).num_kv_heads == 4


def test_where_the_first_context_stands() -> None:
    """As in transformers 5.4: Phi-3 has it beside the sizes, all others in the object, or it is the context."""
    beside = {"original_max_position_embeddings": 64}
    lists = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    given = {"original_max_position_embeddings": 128}
    for rope in (lists, {"type": "yarn", "factor": 4.0}, LLAMA31_ROPE):
        assert config_of(rope_scaling={**rope, **given}, **beside).rope_scaling.original_max_seq_len == 128
        bare = {key: value for key, value in rope.items() if key not in given}
        assert config_of(rope_scaling=bare, **beside).rope_scaling.original_max_seq_len == 512
    for settings, length in ((beside, 64), ({}, 4096)):
        config = config_of(model_type="phi3", rope_scaling={**lists, **given}, **settings)
        assert config.rope_scaling.original_max_seq_len == length


def test_layer_types_that_say_the_same_are_taken() -> None:
    assert config_of(layer_types=["full_attention"] * 2).layers == (LayerSpec(),) * 2
    windowed = config_of(model_type="mistral", sliding_window=8, layer_types=["sliding_attention"] * 2)
    assert windowed.layers == (LayerSpec(window=8),) * 2


def test_experts_that_no_layer_has_are_left_out() -> None:
    for settings in ({"num_experts": 0}, {"mlp_only_layers": [0, 1]}):
        config = config_of(model_type="qwen3_moe", **settings)
        assert (config.has_experts, config.num_experts, config.moe_intermediate_size) == (False, 0, 0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", DType.F32), ("bfloat16", DType.F32), ("float16", DType.F16), ("auto", DType.F32), (None, DType.F32)],
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
    assert tied["embed_tokens"] == Part("model.embed_tokens.weight")
    assert tied["lm_head"] == Part("model.embed_tokens.weight", own_name="lm_head.weight")


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
    ({**QWEN3, "layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"model_type": "gemma2", "hidden_activation": "gelu"}, "hidden_activation"),
    ({"model_type": "gemma3_text", "rope_parameters": SCALED_WINDOWS}, "rope_parameters.sliding_attention.rope_type"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: expected 'full_attention' for layer 1"),
    ({"model_type": "mistral", "layer_types": ["full_attention"] * 2}, "'sliding_attention' for layer 0, as the other"),
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
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a number from 1e-30 to 1, found nan"),
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
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor: expected a number from 1e-30 to"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 0.5}}, "beta_slow <= beta_fast"),
    ({"rope_scaling": {**LONGROPE, "long_factor": "long"}}, "rope_scaling.long_factor: expected a list of numbers"),
    ({"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 7}}, "rope_scaling: expected 8 short and long factors"),
    ({"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 5000}}, "rope_scaling.long_factor: expected up to"),
    ({"rope_scaling": {**LONGROPE, "short_factor": [0.0] * 8}}, "rope_scaling: expected factors from 1e-30 to 1e+30"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window: expected 1 or more, found 0"),
    ({"model_type": "mixtral", "num_local_experts": 0}, "num_experts: expected 1 to"),
    ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok: expected 1 to 8, found 9"),
    ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step: expected 1 or more"),
    ({"model_type": "qwen3_moe", "mlp_only_layers": ["0"]}, "mlp_only_layers: expected a list of whole numbers"),
    ({"model_type": "qwen3_moe", "moe_intermediate_size": 40}, "moe_intermediate_size: expected a multiple of 32"),
    ({"model_type": "gemma2", "final_logit_softcapping": -1}, "final_logit_softcapping: expected a number from"),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern"),
    ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor: expected more than 0, at most 1"),
    ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling: expected a number from 1e-30 to 1e+30"),
    ({"num_key_value_heads": -1}, "num_kv_heads: expected 1 to"),
    ({"rms_norm_eps": 1e-39}, "rms_norm_eps: expected a number from 1e-30 to 1, found 1e-39"),
    ({"model_type": "gemma2", "attn_logit_softcapping": 1e-39}, "attn_logit_softcapping: expected a number from"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_slow": 1e-320}}, "beta_slow: expected a number from"),
    ({"rope_theta": 1e-29, "rope_scaling": {"type": "linear", "factor": 1e-20}}, "rope_scaling: expected angles of"),
    ({"model_type": "qwen3_moe", "num_experts": -1}, "num_experts: expected 1 to"),
    ({"layer_types": ["full_attention"]}, "layer_types: expected one for every layer, found 1"),
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
