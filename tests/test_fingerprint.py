"""Telling models and tokenizers apart, whether they are files or folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_folders import tiny_folder  # type: ignore[import-not-found]
from model_files import write_tiny_model  # type: ignore[import-not-found]

from dllama.formats.fingerprint import fingerprint, model_fingerprint, tokenizer_fingerprint, whole_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    (tmp_path / "hf/README.md").write_text("one")
    return tmp_path / "hf"


def test_files_are_known_by_their_bytes(tmp_path):
    write_tiny_model(tmp_path / "a.m")
    assert model_fingerprint(tmp_path / "a.m") == fingerprint(tmp_path / "a.m", "model")
    assert tokenizer_fingerprint(tmp_path / "a.m") == whole_fingerprint(tmp_path / "a.m", "tokenizer")


def test_folders_are_known_by_what_counts(folder, tmp_path):
    model, tokenizer = model_fingerprint(folder), tokenizer_fingerprint(folder)
    assert model != tokenizer
    (folder / "README.md").write_text("another")
    folder = folder.rename(tmp_path / "moved")
    assert (model_fingerprint(folder), tokenizer_fingerprint(folder)) == (model, tokenizer)
    (folder / "tokenizer_config.json").write_text("{}")
    assert tokenizer_fingerprint(folder) != tokenizer
    assert model_fingerprint(folder) == model
    tiny_folder(folder, seed=1)
    assert model_fingerprint(folder) != model
    tiny_folder(folder)
    assert model_fingerprint(folder) == model
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert model_fingerprint(folder) != model


def test_all_parts_of_a_gguf_count(tmp_path):
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"one")
    alone = model_fingerprint(first)
    second.write_bytes(b"two")
    both = model_fingerprint(first)
    assert both != alone == fingerprint(first, "model")
    second.write_bytes(b"other")
    assert model_fingerprint(first) != both
