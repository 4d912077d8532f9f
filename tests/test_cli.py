"""The command's manners: exit codes, errors of one line, help, broken pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command, Files  # type: ignore[import-not-found]

import dllama as package
from dllama import version
from dllama.cli import main
from dllama.errors import DllamaError

PROMPT = ["--prompt", "Hello"]


def assert_one_line(result: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert result.returncode == exit_code, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("🚨 ")
    assert "Traceback" not in result.stdout + result.stderr
    for word in words:
        assert word in result.stderr


def test_version_says_what_this_build_is(dllama: Command) -> None:
    result = dllama("--version")
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert lines[0] == f"dllama {package.__version__}"
    facts = dict(line.split(": ", 1) for line in lines[1:])
    assert facts["commit"]
    assert facts["compiler"].startswith(("gcc ", "clang "))
    assert "generic" in facts["isa"]


def test_without_arguments_prints_help_and_fails(dllama: Command) -> None:
    result = dllama()
    assert result.returncode == 2
    assert "usage: dllama COMMAND" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("command", [[], ["inference"], ["perplexity"], ["bench"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert "usage: dllama" in out
    assert err == ""


def test_help_and_version_do_not_import_numpy() -> None:
    code = "import sys; from dllama.cli import main; main(sys.argv[1:]); assert 'numpy' not in sys.modules"
    for arguments in (["--help"], ["inference", "--help"], ["inference", "--nonsense"], ["chat", "--help"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tchat"], ["unknown command 'tchat'", "did you mean chat", "commands: chat, inference"]),
        (["inferense"], ["did you mean inference?"]),
        (["--model", "x.m"], ["unknown flag '--model'"]),
        (["inference"], ["--model"]),
        (["inference", "--promt", "x"], ["unknown flag '--promt'", "did you mean --prompt?"]),
        (["inference", "--promt=x"], ["unknown flag '--promt'"]),
        (["inference", "--mod", "x"], ["unknown flag '--mod'"]),
        (["inference", "--steps", "many"], ["--steps", "whole number", "'many'"]),
        (["inference", "--steps", "-1"], ["--steps", "'-1'"]),
        (["inference", "--nthreads", "0"], ["--nthreads", "from 1 to 1024"]),
        (["inference", "--temperature", "nan"], ["--temperature", "'nan'"]),
        (["inference", "--temperature", "-0.5"], ["--temperature", "'-0.5'"]),
        (["inference", "--prompt"], ["--prompt", "expected one argument"]),
        (["inference", "--buffer-float-type", "q40"], ["--buffer-float-type", "q40"]),
        (["inference", "--kv-type", "q40"], ["--kv-type", "q40"]),
        (["bench", "-m", "x", "--kv-type", "q4_0"], ["--kv-type", "q4_0"]),
        (["inference", "--shares", "3,x"], ["--shares", "'x'"]),
        (["inference", "--gpu-index", "0"], ["--gpu-index", "CPU"]),
        (["inference", "--logit-bias", "x"], ["ID:VALUE"]),
        (["inference", "--logit-bias", "1:5", "-4:3"], ["--logit-bias", "ID >= 0", "'-4:3'"]),
        (["inference", "--logit-bias", "-4:3"], ["--logit-bias", "ID >= 0", "'-4:3'"]),
        (
            ["inference", "--model=x", "--tokenizer=x", "--logit-bias", "1:5", "--prompt=x", "-4"],
            ["unexpected argument '-4'"],
        ),
        (["inference", "--model", ""], ["--model", "empty file name"]),
        (["inference", "--tokenizer="], ["--tokenizer", "empty file name"]),
        (["perplexity", "--prompt-file", ""], ["--prompt-file", "empty file name"]),
        (["bench", "-m", ""], ["-m/--model", "empty file name"]),
        (["perplexity", "--steps", "3"], ["unknown flag '--steps'"]),
        (["bench"], ["-m/--model"]),
        (["bench", "-m", "x", "-p", "1,x"], ["-p/--n-prompt", "'x'"]),
        (["bench", "-m", "x", "-o", "xml"], ["--output", "xml"]),
        (["bench", "-m", "x", "-p", "0", "-n", "0"], ["nothing to measure"]),
    ],
)
def test_usage_errors(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("🚨 ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_usage_error_of_a_process(dllama: Command) -> None:
    assert_one_line(dllama("inference", "--nonsense"), 2, "--nonsense")


def test_prompt_is_required_once(tiny: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inference", *tiny.flags]) == 2
    assert "--prompt" in capsys.readouterr().err
    assert main(["inference", *tiny.flags, *PROMPT, "--prompt-file", "x"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_missing_files(dllama: Command, tiny: Files, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert_one_line(dllama("inference", "--model", gone, "--tokenizer", tiny.tokenizer, *PROMPT), 2, str(gone))
    assert_one_line(dllama("inference", "--model", tiny.model, "--tokenizer", gone, *PROMPT), 2, str(gone))
    assert_one_line(dllama("inference", *tiny.flags, "--prompt-file", gone), 2, str(gone))
    assert_one_line(dllama("bench", "-m", gone), 2, str(gone))


@pytest.mark.parametrize("command", ["inference", "perplexity"])
def test_bad_files(command: str, dllama: Command, tiny: Files, tmp_path: Path) -> None:
    def run(model: Path, tokenizer: Path) -> subprocess.CompletedProcess[str]:
        return dllama(command, "--model", model, "--tokenizer", tokenizer, "--prompt", "Hello")

    short = tmp_path / "short.m"
    short.write_bytes(tiny.model.read_bytes()[:-1])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert_one_line(run(tiny.tokenizer, tiny.tokenizer), 3, str(tiny.tokenizer), "expected", "found")
    assert_one_line(run(tiny.model, tiny.model), 3, str(tiny.model), "expected", "found")
    assert_one_line(run(short, tiny.tokenizer), 3, str(short), "expected", "found")
    assert_one_line(run(tmp_path, tiny.tokenizer), 3, str(tmp_path), "directory")
    assert_one_line(run(fifo, tiny.tokenizer), 3, str(fifo), "pipe")
    assert_one_line(run(tiny.model, fifo), 3, str(fifo), "pipe")


def test_bench_of_a_bad_file(dllama: Command, tiny: Files) -> None:
    assert_one_line(dllama("bench", "-m", tiny.tokenizer), 3, str(tiny.tokenizer))


def test_prompt_longer_than_the_context(dllama: Command, tiny: Files) -> None:
    result = dllama("inference", *tiny.flags, "--prompt", "abc " * 100)
    assert_one_line(result, 2, "the model's context takes at most 127")
    assert "--max-seq-len" not in result.stderr  # it cannot help
    assert "Loading weights" not in result.stdout
    result = dllama("inference", *tiny.flags, "--prompt", "abc " * 2, "--max-seq-len", 8)
    assert_one_line(result, 2, "at most 7;", "raise --max-seq-len to at least 10")


def test_prompt_file_that_is_not_text(dllama: Command, tiny: Files, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"abc\xff")
    assert_one_line(dllama("inference", *tiny.flags, "--prompt-file", file), 2, "not UTF-8 at byte 3")


def test_empty_prompt_for_perplexity(dllama: Command, tiny: Files) -> None:
    assert_one_line(dllama("perplexity", *tiny.flags, "--prompt", ""), 2, "at least 2 tokens")


def test_token_outside_the_vocabulary(dllama: Command, tiny: Files) -> None:
    assert_one_line(dllama("inference", *tiny.flags, *PROMPT, "--logit-bias", "999999:1"), 2, "999999")


def test_isa_that_cannot_be_had(dllama: Command, tiny: Files) -> None:
    env = {"DLLAMA_ISA": "quantum"}
    assert_one_line(dllama("--version", env=env), 2, "quantum", "generic")
    assert_one_line(dllama("inference", *tiny.flags, *PROMPT, env=env), 2, "quantum", "generic")
    assert_one_line(dllama("bench", "-m", tiny.model, "-p", 4, "-n", 0, env=env), 2, "quantum", "generic")


def test_generic_level_can_be_forced(dllama: Command, tiny: Files) -> None:
    result = dllama("inference", *tiny.flags, *PROMPT, "--steps", 1, env={"DLLAMA_ISA": "generic"})
    assert result.returncode == 0
    assert "🧠 CPU: generic\n" in result.stdout


def test_unexpected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("dllama.version.describe", broken)
    assert main(["--version"]) == 1
    assert capsys.readouterr().err == "🚨 internal error: ZeroDivisionError: two lines (DLLAMA_DEBUG=1 shows where)\n"
    monkeypatch.setenv("DLLAMA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["--version"])


@pytest.mark.parametrize(
    ("error", "exit_code"), [(KeyboardInterrupt(), 130), (MemoryError(), 5), (OSError(28, "full"), 1)]
)
def test_other_ends(
    error: BaseException, exit_code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise error

    monkeypatch.setattr("dllama.version.describe", broken)
    monkeypatch.setattr("dllama.cli._drop", lambda _stream: None)
    assert main(["--version"]) == exit_code
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (MemoryError("the system refused more than 9 threads"), 5, "the system refused more than 9 threads"),
        (MemoryError("std::bad_alloc"), 5, "the system refused memory; try"),
        (DllamaError("a step failed: no usable probabilities"), 1, "a step failed: no usable probabilities"),
    ],
)
def test_what_errors_say_is_shown(
    error: Exception, exit_code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise error

    monkeypatch.setattr("dllama.version.describe", broken)
    assert main(["--version"]) == exit_code
    err = capsys.readouterr().err
    assert err.startswith(f"🚨 {words}")
    assert err.count("\n") == 1


def test_imports_wait_until_an_interrupt_can_be_caught() -> None:
    """What a plain interpreter has not loaded is loaded inside ``main``."""
    finder = "importlib.machinery, importlib.util, warnings"  # what an editable install loads to find dllama
    code = (
        f"import __future__, sys, {finder}; old = {{*sys.modules}}; import dllama.cli; print(*{{*sys.modules}} - old)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8")
    assert set(result.stdout.split()) == {"dllama", "dllama.cli"}


def test_closed_standard_input(tiny: Files) -> None:
    command = [sys.executable, "-m", "dllama", "inference", *tiny.flags, "--prompt-file", "-"]
    result = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, encoding="utf-8")
    assert_one_line(result, 2, "--prompt-file -", "closed")


def test_commit_is_the_one_checked_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    baked = version.build()["commit"]
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert version.build()["commit"] == baked  # there is no commit yet
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, encoding="utf-8").stdout
    assert version.build()["commit"] == head[:12] != baked
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version.build()["commit"] == baked  # there is no git


def test_reader_that_goes_away(tiny: Files) -> None:
    command = [sys.executable, "-m", "dllama", "inference", *tiny.flags, *PROMPT, "--steps", "64", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tiny: Files) -> None:
    command = [sys.executable, "-m", "dllama", "inference", *tiny.flags, *PROMPT]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8")
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["🚨 No space left on device"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_keeps_the_exit_code(unbuffered: str) -> None:
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "dllama"]
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([*command, "foo"], stderr=full, env=env).returncode == 2
        result = subprocess.run([*command, "inference", "--help"], stdout=full, stderr=subprocess.PIPE, env=env)
    assert result.returncode == 1
    assert result.stderr.decode() == "🚨 No space left on device\n"


def test_interrupt_ends_in_130(tiny: Files) -> None:
    """``--max-seq-len`` 128 ends soon, so a prompt comes from a pipe that never closes."""
    command = [sys.executable, "-m", "dllama", "inference", *tiny.flags, "--prompt-file", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_any_locale(locale: str, dllama: Command, tiny: Files) -> None:
    env = {"LC_ALL": locale, "PYTHONIOENCODING": "latin-1" if "8859" in locale else "utf-8"}
    command = [sys.executable, "-m", "dllama", "inference", *tiny.flags, *PROMPT, "--steps", "2"]
    result = subprocess.run(command, capture_output=True, env={**os.environ, **env})
    assert result.returncode == 0
    assert result.stderr == b""


@pytest.mark.parametrize("command", ["inference", "perplexity"])
def test_not_enough_memory(
    command: str, tiny: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dllama.machine.available_memory", lambda: 1 << 20)
    assert main([command, *tiny.flags, *PROMPT]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "but 1 MiB are free" in err
