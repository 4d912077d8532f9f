"""Opening whatever a user names as a model, and what is said of everything that is none."""

from __future__ import annotations

import pickle
import zipfile

import pytest
from hf_folders import tiny_folder  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine import Engine, SamplingParams
from dllama.errors import BadFile, UsageError
from dllama.formats.m_file import ModelFile, write_m_file
from dllama.formats.open_model import open_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def test_a_file_and_a_folder(tmp_path):
    write_tiny_model(tmp_path / "a.m")
    tiny_folder(tmp_path / "hf")
    with open_model(tmp_path / "a.m") as file, open_model(tmp_path / "hf") as folder:
        assert isinstance(file, ModelFile)
        assert file.config == folder.config
        assert folder.path == str(tmp_path / "hf")


@pytest.mark.parametrize("weight_type", list(DType))
def test_a_folder_is_converted(tmp_path, weight_type):
    tiny_folder(tmp_path / "hf")
    with open_model(tmp_path / "hf", weight_type) as model:
        assert model.config == tiny_config(weight_type=weight_type)
        assert model.tensors["lm_head"].dtype is weight_type
        assert model.tensors["norm"].dtype is DType.F32


def test_a_file_has_its_own_type(tmp_path):
    write_tiny_model(tmp_path / "a.m")
    with open_model(tmp_path / "a.m", DType.Q40):
        pass
    with pytest.raises(
        UsageError, match=r"a\.m: its weights are Q40, not Q80; leave weight_type \(--weight-type\) away"
    ):
        open_model(tmp_path / "a.m", DType.Q80)
    with pytest.raises(UsageError, match="weight_type: expected a DType, found 'q40'"):
        open_model(tmp_path / "a.m", "q40")  # type: ignore[arg-type]


def test_what_is_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.bin", "w") as file:
        file.writestr("data.pkl", b"x")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    for name in ("model.bin", "old.pth"):
        with pytest.raises(BadFile, match=r"folder of a Hugging Face model, found a PyTorch file; converters/convert_"):
            open_model(tmp_path / name)
    tiny_folder(tmp_path / "hf")
    with pytest.raises(BadFile, match=r"name the folder that has config\.json"):
        open_model(tmp_path / "hf/model.safetensors")
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "text").write_bytes(b"hello world")
    for name in ("short", "text"):
        with pytest.raises(BadFile, match="magic number"):
            open_model(tmp_path / name)
    with pytest.raises(UsageError, match="no such model file"):
        open_model(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="an empty directory"):
        open_model(tmp_path / "empty")


@pytest.mark.parametrize("weight_type", [DType.Q40, DType.F32])
def test_an_engine_gives_the_bits_of_the_same_m_file(tmp_path, weight_type):
    """At the first start, which converts, and at the second, which may read a copy."""
    weights = tiny_folder(tmp_path / "hf")
    write_m_file(tmp_path / "a.m", tiny_config(weight_type=weight_type), weights)
    with Engine.load(tmp_path / "a.m", num_threads=1) as engine:
        logits = engine.logits([5, 6, 7, 8])
        tokens = [output.token_id for output in engine.generate([5, 6, 7], GREEDY)]
    for _ in range(2):
        with Engine.load(tmp_path / "hf", num_threads=2, weight_type=weight_type) as engine:
            assert engine.config.weight_type is weight_type
            assert engine.logits([5, 6, 7, 8]).tobytes() == logits.tobytes()
            assert [output.token_id for output in engine.generate([5, 6, 7], GREEDY)] == tokens


def test_an_engine_refuses_numbers_that_are_none(tmp_path):
    import numpy as np
    from hf_folders import checkpoint, stored, write_folder

    config, weights = checkpoint("F32")
    weights["lm_head.weight"] = np.full_like(weights["lm_head.weight"], np.nan)
    write_folder(tmp_path, config, {name: stored(values, "F32") for name, values in weights.items()})
    with pytest.raises(BadFile, match=r"tensor lm_head.weight, rows 0 to \d+: expected numbers that Q40 can hold"):
        Engine.load(tmp_path, num_threads=1)
