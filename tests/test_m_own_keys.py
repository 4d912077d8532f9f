"""`.m` files of models that distributed-llama's keys cannot describe: the config as JSON behind a key of our own."""

from __future__ import annotations

import json
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest
from model_files import header_bytes, random_weights, tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.config import Activation, DType, LayerSpec, ModelConfig, QkNorm, RopeScaling
from dllama.errors import BadFile, UsageError
from dllama.formats.m_config import decode_config, encode_config
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.m_header import Arch
from dllama.formats.quants import encode

OWN = 0xD11A00
WINDOWED = LayerSpec(window=16, has_local_rope=True)
LONGROPE = RopeScaling(1.0, kind="longrope", original_max_seq_len=64, short_factors=(1.0,) * 8, long_factors=(2.5,) * 8)
KINDS: dict[str, dict[str, object]] = {
    "another eps": {"rms_norm_eps": 1e-4},
    "a broken theta": {"rope_theta": 10000.5},
    "mistral": {"model_type": "mistral", "layers": (LayerSpec(window=32),) * 2},
    "qwen2": {"model_type": "qwen2", "layers": (LayerSpec(has_qkv_bias=True),) * 2},
    "qwen3 without norms": {"model_type": "qwen3", "layers": (LayerSpec(),) * 2},
    "gemma2": {
        "model_type": "gemma2",
        "layers": (replace(WINDOWED, has_output_norms=True), LayerSpec(has_output_norms=True)),
        "activation": Activation.GELU_TANH,
        "embedding_multiplier": 8.0,
        "attention_softcap": 50.0,
        "logits_softcap": 30.0,
    },
    "olmo2": {
        "model_type": "olmo2",
        "layers": (LayerSpec(QkNorm.ALL, has_input_norms=False, has_output_norms=True),) * 2,
    },
    "linear": {"rope_scaling": RopeScaling(2.0, kind="linear")},
    "halves of a factor": {"rope_scaling": RopeScaling(1.5, 1.0, 4.0, 64)},
    "yarn": {"rope_scaling": RopeScaling(4.0, 0, 0, 64, "yarn", beta_fast=32.0, beta_slow=1.0, attention_factor=1.1)},
    "longrope": {"rope_scaling": LONGROPE, "rotary_dim": 16},
    "two types": {"q80_tensors": ("layers.0.down_proj", "lm_head")},
    "experts": {
        "model_type": "mixtral",
        "layers": (LayerSpec(has_experts=True),) * 2,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_model_is_read_back(tmp_path, kind):
    config = tiny_config(**KINDS[kind])
    weights = write_tiny_model(tmp_path / "a.m", config)
    with open_m_file(tmp_path / "a.m") as model:
        assert model.config == config
        assert model.header.arch is Arch.OWN
        assert model.file_size == (tmp_path / "a.m").stat().st_size
        for name, tensor in model.tensors.items():
            rows = weights[name].reshape(tensor.rows, tensor.cols)
            assert (tensor.read_rows(0, tensor.rows) == encode(tensor.dtype, rows)).all()


def test_what_distributed_llama_knows_has_its_keys_alone(tmp_path):
    """A Mistral model without a window is a Llama model there, and is read back as one."""
    mistral = tiny_config(model_type="mistral", layers=(LayerSpec(),) * 2)
    weights = random_weights(mistral)
    write_m_file(tmp_path / "mistral.m", mistral, weights)
    write_m_file(tmp_path / "llama.m", tiny_config(), weights)
    assert (tmp_path / "mistral.m").read_bytes() == (tmp_path / "llama.m").read_bytes()
    with open_m_file(tmp_path / "mistral.m") as model:
        assert model.config == tiny_config()
        assert model.header.arch is Arch.LLAMA


def test_the_header_is_three_keys_and_json(tmp_path):
    config = tiny_config(rms_norm_eps=1e-4)
    write_tiny_model(tmp_path / "a.m", config)
    raw = (tmp_path / "a.m").read_bytes()
    assert raw[:8] == struct.pack("<Ii", 0x0A00ABCD, 8 + 3 * 8)
    assert struct.unpack_from("<6i", raw, 8) == (0, 0, 1, OWN, 1000, len(encode_config(config)))
    stored = json.loads(raw[32 : 32 + len(encode_config(config))])
    defaults = {field.name for field in fields(ModelConfig) if getattr(config, field.name) == field.default}
    assert stored.keys() == {field.name for field in fields(ModelConfig)} - defaults
    assert stored["layers"] == [{}, {}]


def test_the_facts_that_are_printed(tmp_path):
    write_tiny_model(tmp_path / "a.m", tiny_config(**KINDS["gemma2"]))
    with open_m_file(tmp_path / "a.m") as model:
        facts = model.summary()
    assert (facts["Arch"], facts["HiddenAct"], facts["Window"]) == ("Gemma 2", "Gelu", "16, in 1 of 2 layers")
    write_tiny_model(tmp_path / "a.m", tiny_config(**KINDS["experts"]))
    with open_m_file(tmp_path / "a.m") as model:
        facts = model.summary()
    assert (facts["nExperts"], facts["nActiveExperts"], facts["MoeHiddenDim"]) == ("3", "2", "32")


# ---- files that lie ----

GOOD = encode_config(tiny_config(rms_norm_eps=1e-4))


def with_json(**changes: object) -> bytes:
    return json.dumps({**json.loads(GOOD), **changes}).encode()


UNSOUND = [
    (b"[]", "the config of a model"),
    (b"{}", "the config of a model"),
    (b"\xff", "the config of a model"),
    (b"[" * 100_000, "the config of a model"),
    (b'{"x":' * 100_000, "the config of a model"),
    (with_json(hidden_size="64"), "the config of a model"),
    (with_json(hidden_size=64.5), "the config of a model"),
    (with_json(hidden_size=10**40), "config"),
    (with_json(layers=[1, 2]), "the config of a model"),
    (with_json(weight_type=9), "the config of a model"),
    (with_json(activation=7), "the config of a model"),
    (with_json(rope_scaling={"factor": 2.0, "kind": "spiral"}), "the config of a model"),
    (with_json(rms_norm_eps=None), "the config of a model"),
    (with_json(flash=1), "expected what this version knows, found 'flash'; a newer dllama can read it"),
    (with_json(layers=[{}, {"sinks": 4}]), "found 'sinks'; a newer dllama"),
    (with_json(rope_scaling={"factor": 2.0, "kind": "linear", "x": 1}), "found 'x'; a newer dllama"),
    (with_json(model_type="a\nb"), "a model_type of letters"),
    (with_json(model_type="x" * 1000), "a model_type of letters"),
    (with_json(hidden_size=0), "(config), hidden_size: expected 1 to 1048576, found 0"),
    (with_json(hidden_size=65), "expected a multiple of 32"),
    (with_json(layers=[{}]), "expected 2 layer specs, found 1"),
    (with_json(layers=[{}, {"window": -1}]), "window: expected"),
    (with_json(num_layers=4096, layers=[{}] * 4096), "the file ends in tensor"),
    (with_json(rope_scaling={"factor": 0.0, "kind": "linear"}), "factors from 1e-30 to 1e+30"),
    (with_json(vocab_size=1 << 24, hidden_size=1 << 20), "the file ends in tensor embed_tokens"),
]


@pytest.mark.parametrize(("raw", "text"), UNSOUND, ids=[text[:40] + str(i) for i, (_, text) in enumerate(UNSOUND)])
def test_unsound_configs_are_refused(tmp_path, raw, text):
    path = tmp_path / "a.m"
    path.write_bytes(header_bytes({0: 0, 1: OWN, 1000: len(raw)}) + raw + bytes(1000))
    with pytest.raises(BadFile) as caught:
        open_m_file(path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ({0: 0, 1: OWN}, "expected key 1000 (config_bytes)"),
        ({0: 0, 1: OWN, 1000: 0}, "config_bytes): expected 1 to 1048576, found 0"),
        ({0: 0, 1: OWN, 1000: -1}, "expected 1 to 1048576, found -1"),
        ({0: 0, 1: OWN, 1000: 2**31 - 1}, "expected 1 to 1048576"),
        ({0: 0, 1: OWN, 1000: 1 << 20}, "config: expected 1048576 bytes, found"),
        ({0: 1, 1: OWN, 1000: 10}, "version): expected 0, found 1"),
        ({0: 0, 1: OWN, 1000: 10, 2: 64}, "hidden_size): expected no such key, as the config is JSON"),
        ({0: 0, 1: OWN, 1000: 10, 1001: 1}, "found key 1001; a newer dllama can read it"),
        ({0: 0, 1: 0xABCD00, 1000: 10}, "config_bytes): expected no such key in a file of LLAMA"),
    ],
)
def test_unsound_headers_are_refused(tmp_path, pairs, text):
    (tmp_path / "a.m").write_bytes(header_bytes(pairs) + bytes(100))
    with pytest.raises(BadFile) as caught:
        open_m_file(tmp_path / "a.m")
    assert text in str(caught.value)


def test_a_config_too_long_for_a_header_is_refused(tmp_path):
    names = tuple(sorted(f"layers.0.{number:0100}" for number in range(12_000)))
    with pytest.raises(UsageError, match=r"a \.m file can hold a config of 1048576 bytes"):
        write_m_file(tmp_path / "a.m", tiny_config(q80_tensors=names), {})
    assert not list(Path(tmp_path).iterdir())


def test_defaults_are_left_out_and_come_back():
    for changes in KINDS.values():
        config = tiny_config(weight_type=DType.Q40, **changes)
        assert decode_config(encode_config(config), "x", "y") == config
