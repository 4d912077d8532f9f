"""The commands with Hugging Face folders: found by path and by name, run, shown, planned for, removed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import Files  # type: ignore[import-not-found]
from hf_folders import tiny_folder  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama.cli import main
from dllama.formats.m_file import write_m_file
from dllama.hub import folders

GREEDY = ("--prompt", "hello", "--steps", "8", "--temperature", "0", "--nthreads", "1")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of models, and a cache of its own."""
    for name in os.environ:
        if name.startswith("DLLAMA_") and name != "DLLAMA_ISA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "model_dirs", lambda: [tmp_path / "models"])
    return tmp_path / "models"


@pytest.fixture
def small(models: Path, tiny: Files) -> Path:
    """A folder with a ``.t`` file as its tokenizer, and the same model as a ``.m`` file beside the folder of models."""
    weights = tiny_folder(models / "small")
    shutil.copy(tiny.tokenizer, models / "small/own.t")
    (models / "small/README.md").write_text("of the user")
    write_m_file(models.parent / "same.m", tiny_config(), weights)
    return models / "small"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys: pytest.CaptureFixture[str], exit_code: int, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == exit_code
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    return err


@pytest.mark.parametrize("by_name", [True, False])
def test_inference_gives_the_text_of_the_same_m_file(small, tiny, capsys, by_name):
    expected = json.loads(
        run(
            capsys,
            "inference",
            "--model",
            small.parent.parent / "same.m",
            "--tokenizer",
            tiny.tokenizer,
            *GREEDY,
            "--json",
        )
    )
    for _ in range(2):  # the second start reads the copy
        found = json.loads(run(capsys, "inference", "--model", "small" if by_name else small, *GREEDY, "--json"))
        assert (found["text"], found["token_ids"]) == (expected["text"], expected["token_ids"])
    out = run(capsys, "inference", "--model", small, *GREEDY)
    assert "💡 Arch: Llama" in out
    assert "💡 WeightType: Q40, from BF16" in out


def test_other_commands_take_folders(small, capsys):
    assert "context: 128 tokens" in run(capsys, "plan", "--model", small, "--nodes", "2")
    scored = run(capsys, "perplexity", "--model", small, "--prompt", "hello", "--weight-type", "f32", "--json")
    assert json.loads(scored)["tokens"] == 5
    (record,) = json.loads(run(capsys, "bench", "-m", small, "-p", "4", "-n", "0", "-r", "1", "-o", "json", "-t", "1"))
    assert record["model_type"].endswith("Q40")
    record = json.loads(
        run(
            capsys,
            "bench",
            "-m",
            small,
            "-p",
            "4",
            "-n",
            "0",
            "-r",
            "1",
            "-o",
            "jsonl",
            "-t",
            "1",
            "--weight-type",
            "q80",
        )
    )
    assert record["model_type"].endswith("Q80")
    assert record["model_n_params"] > 0


def test_a_file_is_not_converted(small, tiny, capsys):
    text = fails(capsys, 2, "inference", *tiny.flags, *GREEDY, "--weight-type", "q80")
    assert "its weights are Q40, not Q80; leave weight_type (--weight-type) away" in text
    assert "--weight-type" in fails(capsys, 2, "inference", *tiny.flags, *GREEDY, "--weight-type", "q4_0")


def test_a_type_in_the_settings_is_for_folders(small, tiny, capsys, monkeypatch):
    monkeypatch.setenv("DLLAMA_WEIGHT_TYPE", "q80")
    assert json.loads(run(capsys, "inference", *tiny.flags, *GREEDY, "--json"))["text"] is not None
    assert "WeightType: Q80, from BF16" in run(capsys, "inference", "--model", small, *GREEDY)
    assert "context: 128" in run(capsys, "plan", "--model", tiny.model, "--nodes", "2")
    (record,) = json.loads(run(capsys, "bench", "-m", small, "-p", "4", "-n", "0", "-r", "1", "-o", "json", "-t", "1"))
    assert record["model_type"].endswith("Q80")


def test_folders_that_are_no_model(models, capsys):
    def refused(*names: str) -> str:
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir()
        for name in names:
            (models / name).write_text("{}" if name == "config.json" else "x")
        return fails(capsys, 3, "inference", "--model", models, *GREEDY)

    assert "expected a config.json, as Hugging Face models have, found an empty directory" in refused()
    assert "a directory without it" in refused("README.md")
    assert "model_type" in refused("config.json", "model.safetensors")
    (models / "config.json").write_text('{"model_type": "llama"}')
    assert "expected a whole number, found no such field" in fails(capsys, 3, "plan", "--model", models, "--nodes", "2")
    tiny_folder(models)
    (models / "model.safetensors").rename(models / "pytorch_model.bin")
    assert "a pickle, which can run any program" in fails(capsys, 3, "plan", "--model", models, "--nodes", "2")


def test_a_folder_without_a_tokenizer_says_so(small, capsys):
    (small / "own.t").unlink()
    text = fails(capsys, 2, "inference", "--model", small, *GREEDY)
    assert f"--tokenizer: none is beside {small}" in text
    (entry,) = [
        each for each in json.loads(run(capsys, "models", "list", "--json"))["models"] if each["name"] == "small"
    ]
    assert entry["problem"] == "there is no tokenizer.json"


def test_models_are_listed_shown_and_removed(small, models, capsys):
    run(capsys, "inference", "--model", small, *GREEDY)
    (copy,) = folders.copies_of(small)
    listed = json.loads(run(capsys, "models", "list", "--json"))["models"]
    (entry,) = [model for model in listed if model["name"] == "small"]
    assert (entry["state"], entry["model"], entry["tokenizer"]) == ("ready", str(small), str(small / "own.t"))
    own = [small / name for name in ("config.json", "model.safetensors", "own.t")]
    assert entry["bytes"] == sum(path.stat().st_size for path in [*own, copy])
    shown = run(capsys, "models", "show", "small")
    assert "Arch: Llama" in shown
    assert copy.name in shown
    removed = json.loads(run(capsys, "models", "remove", "small", "-y", "--json"))
    assert {*removed["removed"]} == {str(path) for path in [*own, copy]}
    assert [path.name for path in small.iterdir()] == ["README.md"]


def test_a_broken_folder_is_listed_as_such(small, capsys):
    os.truncate(small / "model.safetensors", 5000)
    (entry,) = [
        each for each in json.loads(run(capsys, "models", "list", "--json"))["models"] if each["name"] == "small"
    ]
    assert entry["state"] == "broken"
    assert "the file ends in this tensor" in entry["problem"]
