"""``dllama completion``: scripts made from the real parsers, used as shells use them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dllama.cli import COMMANDS, commands, main

SHELLS = ["bash", "zsh", "fish"]


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("alpha_1b", "$(touch pwned)", "with space", "`touch pwned`"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "file.m").touch()
    (tmp_path / "a file.t").touch()
    return tmp_path


class Bash:
    """Calls the function as bash does, in a folder."""

    def __init__(self, text: str, folder: Path) -> None:
        self._text, self._folder = text, folder
        self._env = {"PATH": os.environ["PATH"], "HOME": str(folder), "DLLAMA_MODELS": f"{folder}/models:/gone"}

    def __call__(self, *words: str) -> list[str]:
        call = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dllama; printf "%s\\n" "${COMPREPLY[@]}"'
        result = subprocess.run(
            ["bash", "--norc", "-c", f"set -u\n{self._text}\n{call}", "bash", "dllama", *words],
            capture_output=True,
            encoding="utf-8",
            cwd=self._folder,
            env=self._env,
            check=True,
        )
        assert result.stderr == ""
        return result.stdout.split("\n")[:-1] if result.stdout != "\n" else []


@pytest.fixture
def bash(folder: Path, capsys: pytest.CaptureFixture[str]) -> Bash:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    return Bash(script("bash", capsys), folder)


def test_bash_completes_commands(bash: Bash) -> None:
    assert bash("") == [*COMMANDS, "--help", "--version"]
    assert bash("in") == ["inference"]
    assert bash("--v") == ["--version"]
    assert bash("models", "") == ["list", "show", "remove"]
    assert bash("models", "sh") == ["show"]
    assert bash("nonsense", "") == []


def test_bash_completes_every_flag_of_every_command(bash: Bash) -> None:
    for name in commands.names():
        flags = [word for word in bash(*name.split(), "-") if word.startswith("--")]
        known = [flag for flag in commands.parser_of(name)._option_string_actions if flag.startswith("--")]
        refused = ["--gpu-index", "--gpu-segments"]
        assert flags == [flag for flag in known if flag not in refused]


def test_bash_completes_values(bash: Bash) -> None:
    assert bash("bench", "-o", "") == ["md", "json", "jsonl", "csv"]
    assert bash("bench", "-p", "1", "--output", "j") == ["json", "jsonl"]
    assert bash("bench", "--output", "=", "j") == ["json", "jsonl"]  # as bash splits --output=j
    assert bash("bench", "--output", "=") == ["md", "json", "jsonl", "csv"]
    assert bash("inference", "--nthreads", "") == []
    assert bash("inference", "--net-turbo", "") == ["0", "1"]
    assert bash("completion", "") == SHELLS
    assert bash("inference", "--json", "--tokenizer", "a") == ["a file.t"]
    assert bash("models", "list", "--a") == ["--all"]


def test_bash_completes_models(bash: Bash, folder: Path) -> None:
    assert bash("models", "show", "a") == ["alpha_1b"]
    assert bash("models", "remove", "-y", "al") == ["alpha_1b"]
    assert bash("models", "remove", "de") == ["demo"]
    assert bash("inference", "--model", "al") == ["alpha_1b"]
    assert bash("inference", "--model", "f") == ["file.m"]
    names = bash("models", "show", "")
    assert "alpha_1b" in names
    assert not any(character in name for name in names for character in "$` ")
    assert not (folder / "pwned").exists()  # names of folders are never run


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_sound(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for name in COMMANDS:
        assert name in text
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    file = tmp_path / "script"
    file.write_text(text)
    subprocess.run([shell, "-n", str(file)], check=True, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "script").write_text(script("fish", capsys))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "DLLAMA_MODELS": str(folder / "models")}

    def complete(line: str) -> list[str]:
        command = ["fish", "--private", "-c", "source script; complete -C $argv[1]", line]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=env, check=True)
        return [line.split("\t")[0] for line in result.stdout.splitlines()]

    assert complete("dllama models ") == ["list", "remove", "show"]
    assert complete("dllama bench --output ") == ["csv", "json", "jsonl", "md"]
    assert complete("dllama inference --model alp") == ["alpha_1b"]
    assert complete("dllama doctor --j") == ["--json"]
    assert not (folder / "pwned").exists()


def test_shell_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err
    assert main(["completion"]) == 2
    assert "SHELL" in capsys.readouterr().err
