"""The tool that writes models of real shapes with random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dllama.config import DType
from dllama.formats.m_file import open_m_file
from dllama.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "tools" / "random_model.py"
    spec = importlib.util.spec_from_file_location("random_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("weight_type", list(DType))
def test_weights_have_the_size_of_real_ones(tool, tmp_path, weight_type):
    command = [
        "--shape",
        "qwen3-0.6b",
        "--layers",
        "1",
        "--vocab-size",
        "300",
        "--weight-type",
        weight_type.name.lower(),
    ]
    assert tool.main([*command, str(tmp_path / "a.m"), "--tokenizer", str(tmp_path / "a.t")]) == 0
    with open_m_file(tmp_path / "a.m") as model:
        assert (model.config.num_layers, model.config.vocab_size) == (1, 300)
        assert (model.config.hidden_size, model.config.weight_type) == (1024, weight_type)
        for tensor in model.tensors.values():
            values = tensor.read_floats(0, min(tensor.rows, 64))
            assert np.isfinite(values).all()
            is_norm = len(tensor.shape) == 1
            assert values.std() * np.sqrt(tensor.cols) == pytest.approx(1, rel=0.15)
            assert values.mean() == pytest.approx(float(is_norm), abs=0.15)
    tokenizer = Tokenizer.from_file(tmp_path / "a.t")
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode("any text é")) == "any text é"


@pytest.mark.parametrize("shape", ["llama3.2-1b", "llama3-8b", "qwen3-30b-a3b"])
def test_the_shapes_are_sound(tool, shape):
    assert tool.SHAPES[shape].problem() is None


def test_the_same_seed_gives_the_same_file(tool, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        command = ["--shape", "qwen3-0.6b", "--layers", "1", "--vocab-size", "32", "--seed", seed]
        assert tool.main([*command, str(tmp_path / name)]) == 0
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != other


@pytest.mark.parametrize(("flag", "text"), [("--layers", "num_layers"), ("--vocab-size", "vocab_size")])
def test_sizes_that_cannot_be_are_refused(tool, tmp_path, capsys, flag, text):
    assert tool.main(["--shape", "qwen3-0.6b", flag, "0", str(tmp_path / "a.m")]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_largest_tokenizer_has_no_piece_twice(tool):
    for vocab_size, qwen in ((128256, False), (151936, True)):
        Tokenizer(tool.random_tokenizer(vocab_size, qwen))
