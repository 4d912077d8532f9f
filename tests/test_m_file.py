"""Model files: written and read back, old and foreign headers, and what the writer refuses."""

from __future__ import annotations

import secrets
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import (  # type: ignore[import-not-found]
    DIMS,
    LLAMA,
    LLAMA3_SCALING,
    QWEN3,
    header_bytes,
    plain_file,
    random_weights,
    tensor_bytes,
    tiny_config,
    write_tiny_model,
)

from dllama.config import DType, LayerSpec, QkNorm
from dllama.errors import BadFile, DllamaError, UnsupportedModel, UsageError
from dllama.formats.checked_file import new_file
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.m_layout import tensors_in_order, total_nbytes
from dllama.formats.quants import decode, encode
from dllama.formats.tensor import TensorInfo

# ---- what is written is read ----


@pytest.mark.parametrize("weight_type", list(DType))
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_written_model_is_read_back(tmp_path, model_type, weight_type):
    config = tiny_config(model_type, weight_type)
    weights = write_tiny_model(tmp_path / "a.m", config)
    with open_m_file(tmp_path / "a.m") as model:
        assert model.config == config
        assert list(model.tensors) == [info.name for info in tensors_in_order(config)]
        for name, tensor in model.tensors.items():
            rows = np.atleast_2d(weights[name])
            assert tensor.dtype is (weight_type if name.endswith(("_proj", "lm_head")) else DType.F32)
            assert (tensor.read_rows(0, tensor.rows) == encode(tensor.dtype, rows)).all()
            assert (tensor.read_floats() == decode(tensor.dtype, encode(tensor.dtype, rows))).all()
        assert model.file_size == (tmp_path / "a.m").stat().st_size


@pytest.mark.parametrize("scaling", [None, LLAMA3_SCALING])
def test_rope_scaling_is_read_back(tmp_path, scaling):
    config = tiny_config(rope_scaling=scaling, rope_theta=500000.0)
    write_tiny_model(tmp_path / "a.m", config)
    with open_m_file(tmp_path / "a.m") as model:
        assert model.config == config


# The order and shapes of the tensors in a file of DIMS.
SHAPES = {
    "embed_tokens": (8, 64),
    "layers.0.q_proj": (64, 64),
    "layers.0.k_proj": (32, 64),
    "layers.0.v_proj": (32, 64),
    "layers.0.o_proj": (64, 64),
    "layers.0.gate_proj": (96, 64),
    "layers.0.down_proj": (64, 96),
    "layers.0.up_proj": (96, 64),
    "layers.0.q_norm": (16,),
    "layers.0.k_norm": (16,),
    "layers.0.input_layernorm": (64,),
    "layers.0.post_attention_layernorm": (64,),
    "norm": (64,),
    "lm_head": (8, 64),
}


@pytest.mark.parametrize("weight_type", list(DType))
@pytest.mark.parametrize("arch", [LLAMA, QWEN3])
def test_tensors_lie_in_the_order_of_the_format(tmp_path, arch, weight_type):
    qk_norm = arch == QWEN3
    path = plain_file(tmp_path / "a.m", {1: arch, 13: weight_type}, weight_type=weight_type, qk_norm=qk_norm)
    shapes = {name: shape for name, shape in SHAPES.items() if qk_norm or not name.endswith(("q_norm", "k_norm"))}
    offset = len(header_bytes({**DIMS, 13: weight_type}))
    raw = path.read_bytes()
    with open_m_file(path) as model:
        assert {name: tensor.shape for name, tensor in model.tensors.items()} == shapes
        for name, tensor in model.tensors.items():
            assert (list(shapes).index(name), tensor.offset) == (list(model.tensors).index(name), offset)
            stored = raw[offset : offset + tensor.nbytes]
            if qk_norm or not name.endswith(("q_proj", "k_proj")):  # which a Llama file interleaves
                assert tensor.read_rows(0, tensor.rows).tobytes() == stored
            offset += tensor.nbytes
        rows = {name: tensor.read_rows(0, tensor.rows) for name, tensor in model.tensors.items()}
        write_m_file(tmp_path / "b.m", model.config, lambda info: [rows[info.name]])
    assert offset == len(raw)
    tensors = tensor_bytes(weight_type, qk_norm=qk_norm)
    assert (tmp_path / "b.m").read_bytes().endswith(tensors)


def test_experts_lie_behind_their_router(tmp_path):
    config = tiny_config("qwen3_moe", DType.Q40, num_experts=3, num_experts_per_tok=2)
    weights = write_tiny_model(tmp_path / "a.m", config)
    with open_m_file(tmp_path / "a.m") as model:
        assert model.config == config
        assert model.summary()["Arch"] == "Qwen3 MoE"
        names = [name.removeprefix("layers.0.") for name in model.tensors if name.startswith("layers.0.")]
        network = ("gate_proj", "down_proj", "up_proj")
        experts = [f"experts.{expert}.{name}" for expert in range(3) for name in network]
        norms = ["q_norm", "k_norm", "input_layernorm", "post_attention_layernorm"]
        assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "router", *experts, *norms]
        router = model.tensors["layers.1.router"]
        assert (router.dtype, router.shape) == (DType.F32, (3, 64))
        assert (router.read_floats() == weights["layers.1.router"]).all()
        rows = {name: tensor.read_rows(0, tensor.rows) for name, tensor in model.tensors.items()}
    write_m_file(tmp_path / "b.m", config, lambda info: [rows[info.name]])
    assert (tmp_path / "b.m").read_bytes() == (tmp_path / "a.m").read_bytes()


def test_query_and_key_rows_are_stored_as_pairs(tmp_path):
    config = tiny_config(weight_type=DType.F32)
    weights = write_tiny_model(tmp_path / "a.m", config)
    raw = (tmp_path / "a.m").read_bytes()
    with open_m_file(tmp_path / "a.m") as model:
        for name in ("layers.1.q_proj", "layers.0.k_proj"):
            offset, half = model.tensors[name].offset, config.head_dim // 2
            for row, values in enumerate(weights[name]):
                head, (part, pair) = row // config.head_dim, divmod(row % config.head_dim, half)
                begin = offset + (head * config.head_dim + 2 * pair + part) * values.nbytes
                assert raw[begin : begin + values.nbytes] == values.tobytes()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_can_be_read(tmp_path, data):
    path = tmp_path / "a.m"
    if not path.exists():
        write_tiny_model(path)
    with open_m_file(path) as model:
        tensor = model.tensors[data.draw(st.sampled_from(sorted(model.tensors)))]
        begin = data.draw(st.integers(0, tensor.rows))
        end = data.draw(st.integers(begin, tensor.rows))
        out = np.full((end - begin, tensor.row_bytes), 99, np.uint8)
        assert tensor.read_rows(begin, end, out=out) is out
        assert (out == tensor.read_rows(0, tensor.rows)[begin:end]).all()


def test_rows_outside_a_tensor_are_refused(tmp_path):
    write_tiny_model(tmp_path / "a.m")
    with open_m_file(tmp_path / "a.m") as model:
        tensor = model.tensors["layers.0.v_proj"]
        for begin, end in ((-1, 2), (2, 1), (0, tensor.rows + 1)):
            with pytest.raises(ValueError, match="outside its 32 rows"):
                tensor.read_rows(begin, end)
        with pytest.raises(ValueError, match="need contiguous uint8"):
            tensor.read_rows(0, 2, out=np.empty((2, 7), np.uint8))


def test_embeddings_are_read_by_token(tmp_path):
    weights = write_tiny_model(tmp_path / "a.m")
    with open_m_file(tmp_path / "a.m") as model:
        assert (model.embedding_rows([319, 0, 7, 7]) == weights["embed_tokens"][[319, 0, 7, 7]]).all()
        assert model.embedding_rows([]).shape == (0, 64)
        for token_id in (-1, 320):
            with pytest.raises(UsageError, match=f"token {token_id} is outside the model's vocabulary of 320"):
                model.embedding_rows([1, token_id])


def test_the_facts_that_are_printed(tmp_path):
    write_tiny_model(tmp_path / "a.m", tiny_config(rope_scaling=LLAMA3_SCALING))
    with open_m_file(tmp_path / "a.m") as model:
        facts = model.summary(max_seq_len=64)
    assert facts["Arch"] == "Llama"
    assert (facts["OrigSeqLen"], facts["SeqLen"]) == ("128", "64")
    assert facts["NormEpsilon"] == "0.000010"
    assert (facts["RopeType"], facts["RopeScaling"]) == ("Llama3.1", "f=32.0, l=1.0, h=4.0, o=8192")
    assert list(facts)[:5] == ["Arch", "HiddenAct", "Dim", "HeadDim", "QDim"]


# ---- old and foreign headers ----


@pytest.mark.parametrize("weight_type", list(DType))
def test_old_headers_tell_their_weight_type_by_size(tmp_path, weight_type):
    old = struct.pack("<10i", LLAMA, 64, 96, 1, 4, 2, 0, 0, 8, 128)
    path = tmp_path / "old.m"
    path.write_bytes(old + tensor_bytes(weight_type))
    with open_m_file(path) as model:
        assert model.config == tiny_config(weight_type=weight_type, num_layers=1, vocab_size=8)
        assert model.tensors["layers.0.q_proj"].interleaved_head_dim == 16
    path.write_bytes(old + tensor_bytes(weight_type)[:-1])
    with pytest.raises(BadFile, match="size of a file with an old header"):
        open_m_file(path)


def test_old_headers_of_experts_are_refused_by_name(tmp_path):
    path = tmp_path / "old.m"
    path.write_bytes(struct.pack("<10i", QWEN3, 64, 96, 1, 4, 2, 8, 2, 8, 128) + bytes(100))
    with pytest.raises(UnsupportedModel, match="old Grok-1 or Mixtral"):
        open_m_file(path)


def test_defaults_of_absent_keys(tmp_path):
    with open_m_file(plain_file(tmp_path / "a.m")) as model:
        config = model.config
        assert (config.rms_norm_eps, config.rope_theta, config.head_dim) == (1e-5, 10000.0, 16)
        assert config.rope_scaling is None
        assert config.layers == (LayerSpec(),)


def test_qwen3_rows_are_never_reordered(tmp_path):
    path = plain_file(tmp_path / "a.m", {1: QWEN3, 18: 0}, qk_norm=True)
    with open_m_file(path) as model:
        assert model.config.layers[0].qk_norm is QkNorm.HEAD
        assert model.tensors["layers.0.q_proj"].interleaved_head_dim == 0
        assert model.summary()["RopeType"] == "Falcon"


def test_a_llama_file_may_hold_halves(tmp_path):
    with open_m_file(plain_file(tmp_path / "a.m", {18: 1})) as model:
        assert model.tensors["layers.0.q_proj"].interleaved_head_dim == 0


# ---- the writer ----


@pytest.mark.parametrize("step", [1, 5, 16, 1000])
@pytest.mark.parametrize("encoded", [False, True])
def test_rows_may_come_in_chunks(tmp_path, step, encoded):
    config = tiny_config()
    weights = write_tiny_model(tmp_path / "whole.m", config)

    def chunks(info):
        rows = np.atleast_2d(weights[info.name])
        rows = encode(info.dtype, rows) if encoded else rows
        return (rows[begin : begin + step] for begin in range(0, len(rows), step))

    done: list[TensorInfo] = []
    write_m_file(tmp_path / "chunks.m", config, chunks, on_tensor=done.append)
    assert (tmp_path / "chunks.m").read_bytes() == (tmp_path / "whole.m").read_bytes()
    assert done == list(tensors_in_order(config))


def test_a_large_tensor_is_written_in_pieces(tmp_path, monkeypatch):
    weights = write_tiny_model(tmp_path / "whole.m")
    monkeypatch.setattr("dllama.formats.m_writer._PIECE_VALUES", 200)  # 3 rows
    write_m_file(tmp_path / "pieces.m", tiny_config(), weights)
    assert (tmp_path / "pieces.m").read_bytes() == (tmp_path / "whole.m").read_bytes()


BAD_WEIGHTS = [
    ("layers.0.q_proj", None, "this tensor is missing"),
    ("layers.0.q_proj", np.zeros((63, 64)), "ends inside a head"),
    ("layers.0.q_proj", np.zeros((48, 64)), "expected 64 rows, found 48"),
    ("layers.0.v_proj", np.zeros((33, 64)), "expected 32 rows, found 33"),
    ("layers.0.v_proj", np.zeros((32, 65)), r"expected rows of 64, found an array of shape \[32, 65\]"),
    ("norm", np.zeros((64, 1)), "expected rows of 64"),
    ("layers.0.o_proj", np.full((64, 64), np.nan), "magnitude nan cannot be stored as Q40"),
    ("layers.0.o_proj", np.full((64, 64), 6e5), "magnitude 600000.0 cannot be stored as Q40"),
    ("norm", np.full(64, np.inf), "magnitude inf cannot be stored as F32"),
]


@pytest.mark.parametrize(("name", "rows", "text"), BAD_WEIGHTS)
def test_unfit_tensors_leave_the_target_untouched(tmp_path, name, rows, text):
    weights = random_weights(tiny_config())
    weights.pop(name)
    if rows is not None:
        weights[name] = rows
    (tmp_path / "a.m").write_bytes(b"before")
    with pytest.raises(UsageError, match=text):
        write_m_file(tmp_path / "a.m", tiny_config(), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["a.m"]
    assert (tmp_path / "a.m").read_bytes() == b"before"


UNFIT_CONFIGS = [
    ({"hidden_size": 65}, "hidden_size: expected a multiple of 32"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps: expected a number from 1e-30 to 1"),
    ({"num_experts": 0, "layers": (LayerSpec(has_experts=True),) * 2}, "num_experts: expected 1 to"),
]


@pytest.mark.parametrize(("changes", "text"), UNFIT_CONFIGS)
def test_models_that_cannot_be_are_refused(tmp_path, changes, text):
    with pytest.raises(UsageError, match=text):
        write_m_file(tmp_path / "a.m", replace(tiny_config(), **changes), {})
    assert not list(tmp_path.iterdir())


def test_only_files_are_replaced(tmp_path):
    for path in (tmp_path, Path("/dev/null"), tmp_path / "missing" / "a.m", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match="cannot be written"):
            write_tiny_model(path)
    assert Path("/dev/null").is_char_device()
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_never_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0")
    (tmp_path / "victim").write_bytes(b"before")
    (tmp_path / "a.m.0.part").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match=r"a\.m: cannot be written: File exists"):
        write_tiny_model(tmp_path / "a.m")
    assert (tmp_path / "victim").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.m.0.part", "victim"]


def test_two_may_write_the_same_file(tmp_path):
    path = tmp_path / "a"
    with new_file(path, 5) as first:
        first.write(b"first")
        with new_file(path, 6) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(DllamaError, match=r"bytes, and the disk has \d+ free"):
        write_m_file(tmp_path / "a.m", tiny_config(vocab_size=1 << 24, hidden_size=1 << 20), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_total_is_the_sum_of_the_tensors(model_type):
    config = tiny_config(model_type, num_layers=3)
    assert total_nbytes(config) == sum(info.nbytes for info in tensors_in_order(config))
