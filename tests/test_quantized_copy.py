"""The copy of a folder's quantized weights: the second start reads it, and any change makes it anew."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from cluster_nodes import FakeNode  # type: ignore[import-not-found]
from hf_folders import tiny_folder  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine.loading import load_weights
from dllama.formats import hf_folder
from dllama.formats.open_model import open_model
from dllama.formats.source import ModelSource
from dllama.hub import folders

EMBEDDINGS = "embed_tokens"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/dllama/quantized"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    tiny_folder(tmp_path / "tiny")
    return tmp_path / "tiny"


def read_all(model: ModelSource, step: int = 64) -> dict[str, bytes]:
    """Read every tensor as loading does, in steps."""
    found = {}
    for name, tensor in model.tensors.items():
        if name != EMBEDDINGS:
            pieces = [tensor.read_rows(at, min(at + step, tensor.rows)) for at in range(0, tensor.rows, step)]
            found[name] = b"".join(piece.tobytes() for piece in pieces)
    return found


def load(folder: Path, weight_type: DType | None = None) -> dict[str, bytes]:
    with open_model(folder, weight_type) as model:
        return read_all(model)


def copies(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch):
    """Make converting weights fail, once called."""

    def start() -> None:
        monkeypatch.setattr(hf_folder.CheckpointTensor, "_convert", None)

    return start


def test_the_second_start_reads_the_copy(folder, cache, no_conversion):
    first = load(folder)
    (copy,) = copies(cache)
    assert copy.name.startswith("tiny-q40-")
    assert copy.stat().st_size == 48 + sum(map(len, first.values()))
    assert folders.copies_of(folder) == [copy]
    no_conversion()
    assert load(folder) == first


def test_embeddings_are_read_from_the_model(folder):
    load(folder)
    with open_model(folder) as copied, hf_folder.open_hf_folder(folder, DType.Q40) as plain:
        np.testing.assert_array_equal(copied.embedding_rows([0, 7, 319]), plain.embedding_rows([0, 7, 319]))
        assert copied.tensors[EMBEDDINGS].read_floats(7, 8).tobytes() == plain.embedding_rows([7]).tobytes()
        assert copied.summary() == plain.summary()
        assert copied.identity() == plain.identity()
        assert (copied.path, copied.config) == (plain.path, plain.config)


def test_a_second_pass_of_the_first_start_reads_it_too(folder, no_conversion):
    with open_model(folder) as model:
        first = read_all(model)
        no_conversion()
        assert read_all(model, step=7) == first


def test_a_changed_model_is_copied_anew(folder, cache):
    first = load(folder)
    tiny_folder(folder, seed=1)
    second = load(folder)
    assert second != first
    with hf_folder.open_hf_folder(folder, DType.Q40) as plain:
        assert second == read_all(plain)
    assert len(copies(cache)) == 1
    assert load(folder) == second


def test_each_number_type_has_its_copy(folder, cache):
    assert load(folder, DType.Q80) != load(folder, DType.Q40)
    assert [copy.name.split("-")[1] for copy in copies(cache)] == ["q40", "q80"]


@pytest.mark.parametrize("weight_type", [DType.F32, DType.F16])
def test_what_is_not_quantized_is_not_copied(folder, cache, weight_type):
    load(folder, weight_type)
    assert not copies(cache)


def test_a_model_that_is_only_looked_at_leaves_nothing(folder, cache):
    with open_model(folder) as model:
        model.summary()
        model.embedding_rows([1])
    assert not copies(cache)


def test_what_is_not_read_whole_is_not_kept(folder, cache):
    with open_model(folder) as model:
        model.tensors["lm_head"].read_rows(0, 64)
        assert len(copies(cache)) == 1  # growing
    assert not copies(cache)


@pytest.mark.parametrize(
    "reads",
    [
        [("lm_head", 64, 320)],
        [("lm_head", 0, 64), ("lm_head", 0, 64)],
        [("lm_head", 0, 64), ("norm", 0, 1)],
        [("norm", 0, 1), ("norm", 0, 1)],
    ],
)
def test_reading_parts_ends_a_copy_at_once(folder, cache, reads):
    """As a root of a cluster does that has the hashes of all weights and sends none."""
    with open_model(folder) as model, hf_folder.open_hf_folder(folder, DType.Q40) as plain:
        for name, begin, end in reads:
            found = model.tensors[name].read_rows(begin, end)
            assert (found == plain.tensors[name].read_rows(begin, end)).all()
        assert not copies(cache)


def test_a_model_that_changes_while_it_is_read_is_not_kept(folder, cache):
    with open_model(folder) as model:
        model.tensors["norm"].read_rows(0, 1)
        os.utime(folder / "model.safetensors", (1, 1))
        for name, tensor in model.tensors.items():
            if name not in (EMBEDDINGS, "norm"):
                tensor.read_rows(0, tensor.rows)
    assert not copies(cache)


def test_a_failed_read_leaves_nothing(folder, cache):
    with open_model(folder) as model:
        model.tensors["norm"].read_rows(0, 1)
        os.truncate(folder / "model.safetensors", 5000)
        with pytest.raises(Exception, match="changed while in use"):
            read_all(model)
    assert not copies(cache)


def test_a_damaged_copy_is_made_anew(folder, cache):
    first = load(folder)
    (copy,) = copies(cache)
    good = copy.read_bytes()
    for bad in (b"", good[:-1], good + b"x", b"x" + good[1:], good[:20] + bytes(28) + good[48:]):
        copy.write_bytes(bad)
        assert load(folder) == first
        assert copy.read_bytes() == good


def test_without_room_the_model_is_read_without_a_copy(folder, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    first = load(folder)
    shutil.rmtree(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 40, 0, (1 << 30) + 100))
    assert load(folder) == first
    assert not copies(cache)


def test_a_folder_that_cannot_be_written_is_no_matter(folder, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    assert load(folder) == load(folder)


def test_a_disk_that_fills_up_is_no_matter(folder, cache, monkeypatch):
    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    first = load(folder)
    monkeypatch.undo()
    assert not copies(cache)
    assert load(folder) == first


def test_what_a_killed_writer_left_is_removed(folder, cache):
    cache.mkdir(parents=True)
    (cache / "other-q40-0.12345678.part").write_bytes(b"left")
    load(folder)
    assert len(copies(cache)) == 1


def test_two_may_copy_at_the_same_time(folder, cache):
    with open_model(folder) as first, open_model(folder) as second:
        first.tensors["norm"].read_rows(0, 1)
        second.tensors["norm"].read_rows(0, 1)
        assert len(copies(cache)) == 2
        names = [name for name in first.tensors if name not in (EMBEDDINGS, "norm")]
        for name in names:
            for model in (first, second):
                model.tensors[name].read_rows(0, model.tensors[name].rows)
    assert len(copies(cache)) == 1


def test_loading_a_node_makes_the_copy(folder, cache, no_conversion):
    from dllama.plan import make_plan

    def loaded() -> FakeNode:
        with open_model(folder) as model:
            shard = make_plan(model.config).shards[0]
            node = FakeNode(model.config, shard)
            load_weights(node, model, shard)
        assert node.is_whole
        return node

    first = loaded()
    assert len(copies(cache)) == 1
    no_conversion()
    for name, weight in loaded().weights.items():
        np.testing.assert_array_equal(weight, first.weights[name])
