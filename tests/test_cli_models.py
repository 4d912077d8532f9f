"""``dllama models``: what is on this disk, what it is, and removing it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import pexpect
import pytest
from conftest import Files  # type: ignore[import-not-found]

from dllama.cli import main
from dllama.hub import folders
from dllama.hub.catalogue import CATALOGUE

ABSENT = "qwen3_8b_q40"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of models, besides the bundled one."""
    folder = tmp_path / "models"
    for name in os.environ:
        if name.startswith("DLLAMA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("DLLAMA_MODELS", str(folder))
    monkeypatch.setattr(folders, "model_dirs", lambda: [folder])
    return folder


@pytest.fixture
def ready(models: Path, tiny: Files) -> Path:
    folder = models / "small"
    folder.mkdir(parents=True)
    shutil.copy(tiny.model, folder / "dllama_model_small.m")
    shutil.copy(tiny.tokenizer, folder / "dllama_tokenizer_small.t")
    return folder


@pytest.fixture
def unfinished(models: Path) -> Path:
    folder = models / "big"
    folder.mkdir(parents=True)
    (folder / "dllama_tokenizer_big.t").write_bytes(b"123")
    (folder / "dllama_model_big.m.part").write_bytes(b"12345")
    (folder / "dllama_model_big.m.part.json").write_bytes(b"{}")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_list(ready: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "list").splitlines()
    assert lines[0] == "comes with dllama"
    assert lines[1].split() == ["demo", "4.34", "MB", "ready"]
    assert lines[3] == str(ready.parent)
    assert lines[4].split() == ["big", "10", "B", "unfinished"]
    assert lines[5].split()[0] == "small"
    assert lines[5].split()[-1] == "ready"
    assert "models list --all" in lines[-1]
    assert all(len(line) <= 80 for line in lines if line[:2] == "  ")


def test_list_all_has_the_catalogue(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "list", "--all")
    lines = text.splitlines()
    assert "not on this disk; python3 launch.py NAME downloads one" in lines
    assert all(len(line) <= 80 for line in lines if line[:2] == "  ")
    rows = {line.split()[0]: line for line in lines if line[:2] == "  "}
    assert {*rows} == {"demo", "small", *CATALOGUE}
    assert "needs 4.97 GB of memory" in rows[ABSENT]
    assert "needs 17.6 GB of memory" in rows["qwen3_30b_a3b_q40"]


def test_list_as_json(ready: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = json.loads(run(capsys, "list", "--json"))["models"]
    assert [(model["name"], model["state"]) for model in here] == [
        ("demo", "ready"),
        ("big", "unfinished"),
        ("small", "ready"),
    ]
    assert here[1]["bytes"] == 10
    assert "launch.py has no model of this name" in here[1]["problem"]
    assert Path(here[2]["model"]) == ready / "dllama_model_small.m"
    everything = json.loads(run(capsys, "list", "--json", "--all"))["models"]
    entry = next(model for model in everything if model["name"] == ABSENT)
    assert (entry["state"], entry["folder"], entry["bytes"]) == ("absent", None, CATALOGUE[ABSENT].model_bytes)


def test_a_model_on_this_disk_is_not_listed_as_absent(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / ABSENT).mkdir(parents=True)
    (models / ABSENT / f"dllama_model_{ABSENT}.m").write_bytes(b"x")
    everything = json.loads(run(capsys, "list", "--json", "--all"))["models"]
    assert [model["state"] for model in everything if model["name"] == ABSENT] == ["unfinished"]


def test_files_that_are_no_models(ready: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ready / "dllama_model_small.m"
    model.write_bytes(model.read_bytes()[:-1])
    (models / "mine").mkdir()
    (models / "mine/x.m").write_bytes(b"x")
    states = {model["name"]: model for model in json.loads(run(capsys, "list", "--json"))["models"]}
    assert states["small"]["state"] == "broken"
    assert "the file ends in tensor" in states["small"]["problem"]
    assert states["mine"]["state"] == "incomplete"
    assert "there is no" in states["mine"]["problem"]
    shown = run(capsys, "show", "small")
    assert "state: broken\n" in shown
    assert "the file ends in tensor" in shown


def test_show(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "show", "small").splitlines()
    assert lines[:3] == ["name: small", "state: ready", f"folder: {ready}"]
    assert lines[3].split()[-1] == "dllama_model_small.m"
    assert "   Arch: Llama" in lines
    assert any(line.startswith("   BosId: ") for line in lines)
    assert lines[-1].startswith("memory: needs ")
    assert "MiB are free" in lines[-1]


def test_show_as_json(ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllama.machine.available_memory", lambda: 1 << 20)
    facts = json.loads(run(capsys, "show", "small", "--json"))
    sizes = {Path(file["path"]).name: file["bytes"] for file in facts["files"]}
    assert sizes["dllama_model_small.m"] == (ready / "dllama_model_small.m").stat().st_size
    assert facts["bytes"] == sum(sizes.values())
    assert facts["model"]["Arch"] == "Llama"
    assert "RegularVocabSize" in facts["tokenizer"]
    assert facts["memory"]["needed_bytes"] > facts["memory"]["free_bytes"] == 1 << 20
    assert "--max-seq-len" in run(capsys, "show", "small")  # shown although it does not fit


def test_show_what_cannot_be_opened(
    ready: Path, unfinished: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, "show", "big")
    assert "state: unfinished\n" in text
    assert "dllama_model_big.m.part\n" in text
    (ready / "dllama_tokenizer_small.t").write_bytes(b"nonsense")
    facts = json.loads(run(capsys, "show", "small", "--json"))
    assert facts["state"] == "broken"
    assert "dllama_tokenizer_small.t" in facts["problem"]


def test_show_of_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "show", "qwen3-8b-q40")
    assert "state: absent\n" in text
    assert f"python3 launch.py {ABSENT}" in text
    facts = json.loads(run(capsys, "show", "qwen3_30b_a3b_q40", "--json"))
    assert (facts["state"], facts["problem"], facts["memory_bytes"]) == ("absent", None, 17552213504)


@pytest.mark.parametrize("command", ["show", "remove"])
def test_unknown_names(command: str, ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown model 'smal'; did you mean small?" in fails(capsys, command, "smal")
    assert "did you mean qwen3_8b_q40?" in fails(capsys, command, "qwen3-8b-q4")
    assert "unknown model '../models/small'" in fails(capsys, command, "../models/small")
    assert "unknown model ''" in fails(capsys, command, "")
    assert ready.exists()


def test_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean list?" in fails(capsys, "lst")
    assert "unknown flag '--all'" in fails(capsys, "show", "demo", "--all")
    assert "NAME" in fails(capsys, "show")
    assert main(["models"]) == 2
    assert "usage: dllama models COMMAND" in capsys.readouterr().out
    assert main(["models", "--help"]) == 0
    assert "remove" in capsys.readouterr().out


def test_remove(ready: Path, unfinished: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    freed = sum(file.stat().st_size for file in ready.iterdir())
    assert run(capsys, "remove", "small", "-y").startswith(f"Removed small, {freed} bytes (")
    assert not ready.exists()
    assert unfinished.exists()
    result = json.loads(run(capsys, "remove", "big", "--yes", "--json"))
    assert (result["bytes"], result["folder_kept"], len(result["removed"])) == (10, False, 3)
    assert [*models.iterdir()] == []


def test_remove_keeps_what_is_not_the_models(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ready / "notes.txt").write_text("mine")
    (ready / "other.m").write_bytes(b"mine too")
    assert "is kept, since other files are in it" in run(capsys, "remove", "small", "-y")
    assert sorted(path.name for path in ready.iterdir()) == ["notes.txt", "other.m"]


def test_remove_asks_first(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        monkeypatch.setenv("DLLAMA_YES", "1")  # no flag's twin: a yes is for one removal
        assert "add -y" in fails(capsys, "remove", "small")
        assert "add -y" in fails(capsys, "remove", "small", "--json")
    monkeypatch.setattr(sys, "stdin", None)
    assert "add -y" in fails(capsys, "remove", "small")
    assert ready.exists()


@pytest.mark.parametrize(("answer", "is_removed"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_answers(answer: str, is_removed: bool, ready: Path) -> None:
    arguments = ["-m", "dllama", "models", "remove", "small"]
    with pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=30) as terminal:
        terminal.expect(r"dllama_model_small\.m[\s\S]*\[y/N\] ")
        terminal.sendline(answer)
        terminal.expect("bytes .* freed" if is_removed else "Nothing was removed")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0
    assert ready.exists() != is_removed


def test_remove_refuses(ready: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "comes with dllama" in fails(capsys, "remove", "demo", "-y")
    assert "not on this disk" in fails(capsys, "remove", ABSENT, "-y")
    elsewhere = tmp_path / "elsewhere"
    ready.rename(elsewhere)
    ready.symlink_to(elsewhere)
    assert f"{ready} is a link to {elsewhere}" in fails(capsys, "remove", "small", "-y")
    ready.unlink()
    elsewhere.rename(ready)
    model = ready / "dllama_model_small.m"
    model.rename(tmp_path / "moved.m")
    model.symlink_to(tmp_path / "moved.m")
    assert f"{model} is a link" in fails(capsys, "remove", "small", "-y")
    model.unlink()
    (ready / "dllama_model_small.m.part").mkdir()
    assert "is not a file" in fails(capsys, "remove", "small", "-y")
    assert (tmp_path / "moved.m").exists()
    assert (ready / "dllama_tokenizer_small.t").exists()


def test_remove_leaves_a_download_that_is_running(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (unfinished / "dllama_model_big.m.part").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is being downloaded at this moment" in fails(capsys, "remove", "big", "-y")
    folder = os.open(unfinished, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert "is being downloaded at this moment" in fails(capsys, "remove", "big", "-y")
    os.close(folder)
    assert len([*unfinished.iterdir()]) == 3
    run(capsys, "remove", "big", "-y")
    assert not unfinished.exists()
