"""``launch.py``: what it asks for, what it does again, and what a cut-short set-up leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dllama.errors import UsageError
from dllama.hub import checkout, launcher
from dllama.hub.folders import Installed

LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"
PYPROJECT = """
[build-system]
requires = ["builder>=1"]
[project]
dependencies = ["library>=2"]
[project.optional-dependencies]
test = ["tester>=3"]
"""


class Setup:
    """launch.py on a small checkout of its own, with stages that are noted instead of run."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.stages: list[str] = []
        self.commands: list[list[str]] = []
        self.fails_in: str | None = None
        monkeypatch.setattr(checkout, "ROOT", root)
        monkeypatch.setattr(checkout, "VENV", root / ".venv")
        monkeypatch.setattr(checkout, "STAMP", root / ".venv" / "dllama-setup.json")
        monkeypatch.setattr(checkout, "LOG", root / "build" / "setup.log")
        monkeypatch.setattr(checkout, "run_stage", self._run_stage)
        monkeypatch.setattr(checkout, "missing_packages", list)
        (root / "launch.py").touch()
        (root / "csrc").mkdir()
        (root / "csrc" / "core.cpp").write_text("int x;")
        (root / "pyproject.toml").write_text(PYPROJECT)

    def _run_stage(self, title: str, _usual: str, command: list[str], _log: object) -> None:
        stage = title.split(maxsplit=1)[0]
        self.stages.append(stage)
        self.commands.append(command)
        if stage == self.fails_in:
            raise KeyboardInterrupt
        if stage == "Making":
            python = self.root / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text("#!/bin/sh\n")  # asked only whether it has pip, it says yes
            python.chmod(0o755)
            checkout.STAMP.unlink(missing_ok=True)

    def run(self, *extras: str) -> list[str]:
        """Set up; give the stages that ran."""
        self.stages.clear()
        self.commands.clear()
        checkout.set_up(list(extras))
        return self.stages


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, monkeypatch)


ALL = ["Making", "Installing", "Compiling"]


def test_first_run_does_all_and_second_nothing(setup: Setup) -> None:
    assert setup.run() == ALL
    assert {"builder>=1", "library>=2"} <= set(setup.commands[1])
    assert setup.run() == []


def test_changed_sources_are_compiled_again(setup: Setup) -> None:
    setup.run()
    (setup.root / "csrc" / "core.cpp").write_text("int y;")
    assert setup.run() == ["Compiling"]
    (setup.root / "csrc" / "new.cpp").write_text("")
    assert setup.run() == ["Compiling"]
    assert setup.run() == []


def test_extras_are_added_to_what_is_there(setup: Setup) -> None:
    setup.run()
    assert setup.run("test") == ["Installing"]
    assert "tester>=3" in setup.commands[0]
    assert setup.run() == setup.run("test") == []


def test_unknown_extra(setup: Setup) -> None:
    with pytest.raises(UsageError, match="unknown extra 'tests'; available: test"):
        setup.run("tests")


def test_interrupted_install_begins_anew(setup: Setup) -> None:
    setup.fails_in = "Installing"
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    setup.fails_in = None
    assert setup.run() == ALL
    assert "--clear" in setup.commands[0]


def test_interrupted_compilation_is_repeated(setup: Setup) -> None:
    setup.fails_in = "Compiling"
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    setup.fails_in = None
    assert setup.run() == ["Compiling"]
    assert setup.run() == []


def test_interrupted_venv_begins_anew(setup: Setup) -> None:
    setup.fails_in = "Making"
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    setup.fails_in = None
    assert setup.run() == ALL


def test_moved_checkout_or_other_python_begins_anew(setup: Setup) -> None:
    setup.run()
    stamp = json.loads(checkout.STAMP.read_text())
    checkout.STAMP.write_text(json.dumps({**stamp, "base": "another"}))
    assert setup.run() == ALL


@pytest.mark.parametrize("text", ["", "[]", "{", '{"packages": 3}'])
def test_damaged_stamp_is_not_trusted(text: str, setup: Setup) -> None:
    setup.run()
    checkout.STAMP.write_text(text)
    assert setup.run() == ["Installing", "Compiling"]


def test_missing_packages_are_named_in_one_apt_line(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "missing_packages", lambda: ["g++", "python3-venv"])
    assert launcher.main(["setup"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("sudo apt-get install -y g++ python3-venv\n")
    assert not (setup.root / ".venv").exists()


def test_compiler_is_not_missed_by_those_who_are_set_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "missing_packages", lambda: ["g++"])
    with pytest.raises(UsageError, match="sudo apt-get install -y g"):
        checkout.check_can_set_up()
    monkeypatch.setattr(checkout, "missing_packages", list)
    setup.run()
    monkeypatch.setattr(checkout, "missing_packages", lambda: ["g++"])
    checkout.check_can_set_up()


def test_what_is_missing_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert checkout.missing_packages() == []
    monkeypatch.setattr("dllama.hub.checkout.shutil.which", lambda _name: None)
    assert checkout.missing_packages() == ["g++"]
    monkeypatch.setattr("dllama.hub.checkout.sysconfig.get_path", lambda _name: str(tmp_path))
    assert checkout.missing_packages() == ["g++", "python3-dev"]
    monkeypatch.setattr("dllama.hub.checkout.importlib.util.find_spec", lambda _name: None)
    assert checkout.missing_packages() == ["g++", "python3-dev", "python3-venv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a model; available: demo"),
        (["--list", "more"], "unknown argument 'more'"),
        (["llama9"], "unknown name 'llama9'; available: demo"),
        (["llama3.2_1b_instruct_q40"], "did you mean llama3_2_1b_instruct_q40?"),
        (["demo", "--dry-run"], "--dry-run is for models"),
        (["demo", "--json"], "--json goes with --list or --dry-run"),
        (["qwen3_0.6b_q40", "more"], "unknown argument 'more'"),
        (["demo", "--sed", "1"], "unrecognized arguments: --sed"),
        (["demo", "--steps", "x"], "--steps"),
        (["demo", "more"], "unknown argument 'more'"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_demo(setup: Setup, capfd: pytest.CaptureFixture[str]) -> None:
    dllama = setup.root / ".venv" / "bin" / "dllama"
    dllama.parent.mkdir(parents=True)
    dllama.write_text('#!/bin/sh\necho "$@"\nexit ${DEMO_STATUS:-0}\n')
    dllama.chmod(0o755)
    assert launcher.main(["demo", "--steps", "8", "--nodes", "1"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"inference --model \S+/demo/model\.m .* --steps 8 --seed 2 --text\n", out)
    assert "Next things to try" in out
    assert "launch.py --list" in out
    dllama.write_text("#!/bin/sh\nexit 5\n")
    assert launcher.main(["demo", "--nodes", "1"]) == 5
    assert "Next things" not in capfd.readouterr().out


def test_demo_without_its_model(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = setup.root / "dllama" / "demo"
    empty = Installed("demo", demo, demo / "model.m", demo / "tokenizer.t")
    monkeypatch.setattr("dllama.hub.folders.bundled_model", lambda: empty)
    assert launcher.main(["demo"]) == 1
    assert "model.m is missing" in capsys.readouterr().err


def test_interrupt_has_no_traceback(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.fails_in = "Compiling"
    assert launcher.main(["setup"]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_failed_stage_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    monkeypatch.setattr(checkout, "LOG", tmp_path / "build" / "setup.log")
    code = "print('[1/2] good'); print('broken here'); raise SystemExit(3)"
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        with pytest.raises(checkout.SetupError, match=r"(?s)build/setup\.log.*broken here"):
            checkout.run_stage("Compiling", "soon", [sys.executable, "-c", code], log)
        log.seek(0)
        assert "broken here" in log.read()
    assert "Compiling" in capsys.readouterr().out


def test_failed_stage_shows_the_first_error_of_the_compiler() -> None:
    lines = [f"{number}" for number in range(40)]
    lines[5] = "a.cpp:3:1: error: expected ';'"
    lines[30] = "error: subprocess-exited-with-error"
    assert checkout.what_failed(lines) == ("its first error is", lines[5:17])
    lines[5] = "CMake Error at CMakeLists.txt:3 (message):"
    assert checkout.what_failed(lines)[1] == lines[5:17]
    lines[5] = "5"
    assert checkout.what_failed(lines) == ("its last lines are", lines[28:])


def test_paths_are_given_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "my files"
    here.mkdir()
    monkeypatch.chdir(here)
    assert checkout.from_here(here / "a" / "dllama") == "a/dllama"
    assert checkout.from_here(here / "dllama") == "./dllama"
    assert checkout.from_here(tmp_path / "your files" / "x") == "'../your files/x'"


@pytest.mark.parametrize("what", ["build is a file", "no pyproject.toml"])
def test_system_errors_are_one_line(
    what: str, setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "build is a file":
        (setup.root / "build").touch()
    else:
        (setup.root / "pyproject.toml").unlink()
    monkeypatch.setattr(launcher, "drop", lambda _stream: None)
    assert launcher.main(["setup"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("🚨 ")
    assert str(setup.root) in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(unbuffered: str) -> None:
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        help_ = subprocess.run([sys.executable, LAUNCH, "--help"], stdout=full, stderr=subprocess.PIPE, env=env)
        assert subprocess.run([sys.executable, LAUNCH, "foo"], stderr=full, env=env).returncode == 2
    assert help_.returncode == 1
    assert help_.stderr.decode() == "🚨 No space left on device\n"


def test_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, LAUNCH, "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


def test_terminal_without_emoji() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    result = subprocess.run([sys.executable, LAUNCH, "foo"], capture_output=True, env=env)
    assert result.returncode == 2
    assert result.stderr.startswith(b"? unknown name 'foo'")


def test_old_python_is_told_so() -> None:
    code = "import runpy, sys; sys.version_info = (3, 10); runpy.run_path(sys.argv[1], run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code, str(LAUNCH)], capture_output=True, encoding="utf-8")
    assert result.returncode == 2
    assert result.stderr.startswith("🚨 dllama needs Python 3.11 or newer")
    assert result.stderr.count("\n") == 1
