"""Hugging Face folders: whatever the files, the same rows as a `.m` file of the same numbers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hf_folders import (  # type: ignore[import-not-found]
    CONFIG,
    checkpoint,
    own_names,
    rounded,
    stored,
    tiny_folder,
    write_folder,
)
from hypothesis import given
from hypothesis import strategies as st
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.errors import BadFile, UnsupportedModel, UsageError
from dllama.families import Part
from dllama.formats import hf_folder
from dllama.formats.hf_folder import HfModel, open_hf_folder
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.quants import encode
from dllama.formats.recode import FloatType
from dllama.formats.safetensors_file import open_safetensors
from dllama.formats.source import ModelSource
from dllama.formats.tensor import TensorInfo

NUMBER_TYPES = [kind.name for kind in FloatType]


def rows_of(model: ModelSource) -> dict[str, bytes]:
    return {name: tensor.read_rows(0, tensor.rows).tobytes() for name, tensor in model.tensors.items()}


@pytest.mark.parametrize("weight_type", list(DType))
@pytest.mark.parametrize("number_type", NUMBER_TYPES)
def test_a_folder_gives_the_rows_of_a_m_file(tmp_path, number_type, weight_type):
    weights = tiny_folder(tmp_path / "hf", number_type)
    config = tiny_config(weight_type=weight_type)
    write_m_file(tmp_path / "a.m", config, weights)
    with open_hf_folder(tmp_path / "hf", weight_type) as folder, open_m_file(tmp_path / "a.m") as file:
        assert folder.config == file.config == config
        assert list(folder.tensors) == list(file.tensors)
        assert rows_of(folder) == rows_of(file)
        for name, tensor in folder.tensors.items():
            assert (tensor.dtype, tensor.shape) == (file.tensors[name].dtype, file.tensors[name].shape)
            np.testing.assert_array_equal(tensor.read_floats(), file.tensors[name].read_floats())
        np.testing.assert_array_equal(folder.embedding_rows([3, 0, 319]), file.embedding_rows([3, 0, 319]))


@given(st.data())
def test_any_sharding_and_order_gives_the_same_tensors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("shards")
    config, weights = checkpoint("F32")
    kinds = {name: data.draw(st.sampled_from(NUMBER_TYPES)) for name in weights}
    values = {name: rounded(weights[name], kind) for name, kind in kinds.items()}
    arrays = {name: stored(values[name], kind) for name, kind in kinds.items()}
    names = data.draw(st.permutations(list(arrays)))
    borders = data.draw(st.lists(st.integers(0, len(names)), max_size=4).map(sorted))
    shards = [names[begin:end] for begin, end in zip([0, *borders], [*borders, len(names)], strict=True)]
    write_folder(folder, config, arrays, shards, has_index=data.draw(st.booleans()))
    expected = own_names(config, values)
    with open_hf_folder(folder, DType.Q80) as model:
        for info in tensors_in_order(model.config):
            rows = np.atleast_2d(expected[info.name])
            assert rows_of(model)[info.name] == encode(info.dtype, rows).tobytes()


def test_tied_embeddings(tmp_path):
    tiny_folder(tmp_path, tie_word_embeddings=True)
    with open_hf_folder(tmp_path, DType.F32) as model:
        assert rows_of(model)["lm_head"] == rows_of(model)["embed_tokens"]


def test_a_tied_head_that_is_there_is_read(tmp_path):
    """transformers 5.4 ties nothing where the checkpoint has both, and they differ."""
    config, weights = checkpoint("F32", tie_word_embeddings=True)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    arrays = {name: stored(values, "F32") for name, values in weights.items()}
    write_folder(tmp_path, config, arrays)
    with open_hf_folder(tmp_path, DType.F32) as model:
        assert (model.tensors["lm_head"].read_floats() == weights["lm_head.weight"]).all()
    write_folder(tmp_path, config, {**arrays, "lm_head.weight": stored(np.zeros((1, 64), np.float32), "F32")})
    assert "tensor lm_head.weight: expected shape [320, 64]" in refusal(tmp_path)


def test_the_file_that_is_all_wins_over_an_index(tmp_path):
    weights = tiny_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with open_hf_folder(tmp_path, DType.F32) as model:
        assert (model.tensors["norm"].read_floats() == weights["norm"]).all()


@given(st.data())
def test_any_rows_can_be_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("rows")
    weights = tiny_folder(folder)
    with open_hf_folder(folder, DType.Q40) as model, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_folder, "_CHUNK_BYTES", data.draw(st.integers(1, 2000)))  # several threads
        begin = data.draw(st.integers(0, 320))
        end = data.draw(st.integers(begin, 320))
        found = model.tensors["lm_head"].read_rows(begin, end)
        assert (found == encode(DType.Q40, weights["lm_head"])[begin:end]).all()


def test_rows_outside_a_tensor_are_refused(tmp_path):
    tiny_folder(tmp_path)
    with open_hf_folder(tmp_path, DType.Q40) as model:
        with pytest.raises(ValueError, match="rows 0 to 321 are outside its 320 rows"):
            model.tensors["lm_head"].read_rows(0, 321)
        with pytest.raises(UsageError, match="token 320 is outside the model's vocabulary of 320"):
            model.embedding_rows([320])


@pytest.mark.parametrize("number_type", NUMBER_TYPES)
def test_parts_of_fused_tensors_and_shifted_ones(tmp_path, number_type):
    values = rounded(np.random.default_rng(0).standard_normal((160, 64), np.float32), number_type)
    write_folder(tmp_path, CONFIG, {"fused": stored(values, number_type), "norm": stored(values[0], number_type)})
    file, arrays = open_safetensors(tmp_path / "model.safetensors")
    with file:
        part = hf_folder._tensor("x", TensorInfo("k", DType.Q80, (96, 64)), Part("fused", 64, 96, 160), arrays)
        assert (part.read_rows(1, 96) == encode(DType.Q80, values[65:])).all()
        norm = hf_folder._tensor("x", TensorInfo("n", DType.F32, (64,)), Part("norm", added=1.0), arrays)
        assert (norm.read_floats() == values[0] + np.float32(1)).all()
        with pytest.raises(BadFile, match=r"expected shape \[159, 64\], as config.json says, found shape \[160, 64\]"):
            hf_folder._tensor("x", TensorInfo("k", DType.Q80, (96, 64)), Part("fused", 63, 96, 159), arrays)


BAD_NUMBERS = [
    ("BF16", np.nan, DType.Q40, "rows 64 to 95: expected numbers that Q40 can hold, found one of magnitude nan"),
    ("F32", -np.inf, DType.Q40, "found one of magnitude inf"),
    ("F16", np.inf, DType.F32, "numbers that F32 can hold"),
    ("F32", 65536.0, DType.F16, "numbers that F16 can hold, found one of magnitude 65536.0"),
    ("BF16", 1e7, DType.Q80, "numbers that Q80 can hold"),
]


@pytest.mark.parametrize(("number_type", "value", "weight_type", "text"), BAD_NUMBERS)
def test_numbers_that_cannot_be_held_are_refused(tmp_path, number_type, value, weight_type, text):
    config, weights = checkpoint(number_type)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].copy()
    weights[name][70, 5] = value
    write_folder(tmp_path, config, {each: stored(values, number_type) for each, values in weights.items()})
    with open_hf_folder(tmp_path, weight_type) as model:
        model.tensors["layers.1.up_proj"].read_rows(0, 64)
        with pytest.raises(BadFile, match=text) as caught:
            model.tensors["layers.1.up_proj"].read_rows(64, 96)
        assert f"tensor {name}" in str(caught.value)


def test_the_facts_that_are_printed(tmp_path):
    weights = tiny_folder(tmp_path / "hf")
    write_m_file(tmp_path / "a.m", tiny_config(), weights)
    with open_hf_folder(tmp_path / "hf", DType.Q40) as folder, open_m_file(tmp_path / "a.m") as file:
        own = {"RopeType": "Falcon", "WeightType": "Q40, from BF16"}  # its rows are in Hugging Face's order
        assert folder.summary(64) == {**file.summary(64), **own}


def test_identity_tells_every_change(tmp_path):
    config, weights = checkpoint()
    arrays = {name: stored(values, "BF16") for name, values in weights.items()}
    write_folder(tmp_path, config, arrays, [[*arrays][:5], [*arrays][5:]])

    def identity(weight_type: DType = DType.Q40) -> str:
        with open_hf_folder(tmp_path, weight_type) as model:
            return model.identity()

    first = identity()
    assert identity() == first
    assert identity(DType.Q80) != first
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        before = identity()
        os.utime(tmp_path / name, (1, 1))
        assert identity() != before


def test_identity_tells_how_the_files_are_read(tmp_path):
    tiny_folder(tmp_path)
    with open_hf_folder(tmp_path, DType.Q40) as model:
        shifted = {**model.tensors, "norm": replace(model.tensors["norm"], added=1.0)}
        assert HfModel(model.path, model.config, shifted, model._checked_files).identity() != model.identity()


def test_files_that_an_index_does_not_list_are_left_alone(tmp_path):
    config, weights = checkpoint()
    arrays = {name: stored(values, "BF16") for name, values in weights.items()}
    write_folder(tmp_path, config, arrays, [[*arrays]])
    (tmp_path / "consolidated.safetensors").write_bytes(b"something else")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with open_hf_folder(tmp_path, DType.Q40) as model:
        assert len(model.tensors) == len(arrays)


# ---- folders that are no sound model ----


def refusal(folder: Path, kind: type[Exception] = BadFile) -> str:
    """Open a folder that must be refused, leaving nothing open; give the text."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(kind) as caught:
        open_hf_folder(folder, DType.Q40)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_folders_without_a_model(tmp_path):
    assert "expected a config.json, as Hugging Face models have, found an empty directory" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert "found a directory without it; is the download complete" in refusal(tmp_path)
    (tmp_path / "x.gguf").write_text("")
    assert "name the file itself: x.gguf" in refusal(tmp_path)
    assert "no such file or directory" in refusal(tmp_path / "gone", UsageError).lower()


def test_folders_without_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "weights: expected files in the form .safetensors, found none" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    text = refusal(tmp_path)
    assert "'pytorch_model.bin', a pickle, which can run any program when it is read" in text
    assert "save the model again as .safetensors" in text


def test_configs_that_are_none(tmp_path):
    tiny_folder(tmp_path)
    for raw, text in [
        (b"", "an empty file"),
        (b"{", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[" * 100_000, "values nested too deeply"),
        (b'{"hidden_size": ' + b"1" * 5000 + b"}", "expected JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"hidden_size": 64, "a": 1, "hidden_size": 32}', "expected JSON, found 'hidden_size' twice in one object"),
        (rb'{"model_type": "\ud800"}', "expected JSON"),
        (b'{"model_type": "\xed\xa0\x80"}', "expected JSON"),
        (b'{"model_type": "mamba"}', "model_type"),
        (b" " * ((4 << 20) + 1), "at most 4194304 bytes of JSON"),
    ]:
        (tmp_path / "config.json").write_bytes(raw)
        assert text in refusal(tmp_path)


def test_an_index_that_lies(tmp_path):
    config, weights = checkpoint()
    arrays = {name: stored(values, "BF16") for name, values in weights.items()}
    write_folder(tmp_path, config, arrays, [[*arrays][:5], [*arrays][5:]])
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, text in [
        (
            {"a": "../model.safetensors"},
            "expected names of .safetensors files in this folder, found '../model.safetensors'",
        ),
        ({"a": "/etc/passwd.safetensors"}, "in this folder"),
        ({"a": "x.bin"}, "in this folder"),
        ({"a": "x\n.safetensors"}, "in this folder"),
        (
            {"a": "x.safetensors"},
            "expected x.safetensors, which model.safetensors.index.json lists, found no such file",
        ),
        ({"a": "model-00001-of-00002.safetensors"}, "expected it in a .safetensors file, found none of this name"),
        ({}, "expected names of files, found none"),
        ([], "a weight_map of tensors to files"),
        ({"a": 1}, "a weight_map of tensors to files"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert text in refusal(tmp_path)
    index.write_text("[" * 100_000)
    assert "a weight_map of tensors to files" in refusal(tmp_path)
    index.write_text("{" + '"a":"b",' * (1 << 18) + "}")
    assert "expected at most 262144 tensors, found more" not in refusal(tmp_path)
    index.write_text("{" + '"a":"b",' * (1 << 18) + '"a":1}')
    assert "expected at most 262144 tensors, found more" in refusal(tmp_path)


def test_missing_and_repeated_shards(tmp_path):
    config, weights = checkpoint()
    arrays = {name: stored(values, "BF16") for name, values in weights.items()}
    write_folder(tmp_path, config, arrays, [[*arrays][:5], [*arrays][5:]])
    second = tmp_path / "model-00002-of-00002.safetensors"
    moved = second.rename(tmp_path / "elsewhere")
    assert "model-00002-of-00002.safetensors, which model.safetensors.index.json lists" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "is the download complete?" in refusal(tmp_path)
    moved.rename(second)
    with open_hf_folder(tmp_path, DType.Q40):  # all there are, without an index
        pass
    (tmp_path / "more.safetensors").write_bytes(second.read_bytes())
    text = refusal(tmp_path)
    assert "expected every tensor once, found one in model-00002-of-00002.safetensors too" in text


@pytest.mark.parametrize("number_type", ["F64", "I64", "F8_E4M3", "U8"])
def test_other_number_types_are_refused_by_name(tmp_path, number_type):
    config, weights = checkpoint()
    arrays = {name: stored(values, "BF16") for name, values in weights.items()}
    sizes = {"F64": 8, "I64": 8, "F8_E4M3": 1, "U8": 1}
    name = "model.layers.0.self_attn.k_proj.weight"
    arrays[name] = (number_type, (32, 64), bytes(32 * 64 * sizes[number_type]))
    write_folder(tmp_path, config, arrays)
    with pytest.raises(UnsupportedModel, match=f"tensor {name}: expected F32, F16, BF16.*found {number_type}"):
        open_hf_folder(tmp_path, DType.Q40)
    write_folder(tmp_path, config, {**arrays, name: stored(weights[name], "BF16"), "unused": arrays[name]})
    with open_hf_folder(tmp_path, DType.Q40):  # a tensor that nobody reads may be anything
        pass


@pytest.mark.parametrize("name", ["0.self_attn.q_proj.bias", "1.self_attn.sinks", "2.input_layernorm.weight"])
def test_unknown_tensors_of_layers_are_refused_by_name(tmp_path, name):
    config, weights = checkpoint("F32")
    arrays = {each: stored(values, "F32") for each, values in weights.items()}
    extra = stored(np.zeros(64, np.float32), "F32")
    write_folder(tmp_path, config, {**arrays, "model.layers.0.self_attn.rotary_emb.inv_freq": extra, "": extra})
    with open_hf_folder(tmp_path, DType.F32):
        pass
    write_folder(tmp_path, config, {**arrays, f"model.layers.{name}": extra})
    expected = f"tensors: expected those of a llama model of 2 layers that dllama runs, found 'model.layers.{name}'"
    assert expected in refusal(tmp_path, UnsupportedModel)


@pytest.mark.parametrize("shape", [(64, 32), (32, 65), (31, 64), (32,), (1, 32, 64), ()])
def test_other_shapes_are_refused(tmp_path, shape):
    config, weights = checkpoint()
    arrays = {name: stored(values, "F32") for name, values in weights.items()}
    name = "model.layers.0.self_attn.k_proj.weight"
    arrays[name] = stored(np.zeros(shape, np.float32), "F32")
    write_folder(tmp_path, config, arrays)
    assert f"tensor {name}: expected shape [32, 64], as config.json says, found shape {list(shape)}" in refusal(
        tmp_path
    )


def test_a_file_cut_while_in_use_ends_in_an_error(tmp_path):
    tiny_folder(tmp_path)
    with open_hf_folder(tmp_path, DType.Q40) as model:
        os.truncate(tmp_path / "model.safetensors", 5000)
        with pytest.raises(BadFile, match="was it changed while in use"):
            rows_of(model)


def test_closing_twice_is_harmless(tmp_path):
    tiny_folder(tmp_path)
    model = open_hf_folder(tmp_path, DType.Q40)
    model.close()
    model.close()


def test_strange_folder_names(tmp_path):
    folder = tmp_path / "näme with\nnewline"
    weights = tiny_folder(folder)
    with open_hf_folder(folder, DType.F32) as model:
        assert (model.tensors["norm"].read_floats() == weights["norm"]).all()
