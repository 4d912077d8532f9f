"""``launch.py NAME`` against a server on loopback: the real program, killed and started again, and its words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import (  # type: ignore[import-not-found]
    SLICE,
    DownloadServer,
    files_of,
    model_bytes,
    serve,
    tokenizer_bytes,
)

from dllama.errors import NotEnoughMemory
from dllama.hub import checkout, launcher, model_launch, model_plan
from dllama.hub.catalogue import CATALOGUE
from dllama.hub.part_file import NotEnoughDisk
from dllama.hub.progress import size_text

ROOT = Path(__file__).resolve().parent.parent
ENTRY = CATALOGUE["llama3_2_1b_instruct_q40"]
PARTED = CATALOGUE["qwen3_14b_q40"]
MODEL, TOKENIZER = model_bytes(400_000), tokenizer_bytes()


@pytest.fixture
def server() -> Iterator[DownloadServer]:
    with serve(files_of(ENTRY, MODEL, TOKENIZER)) as state:
        yield state


class Launcher:
    """The real launch.py in a bare checkout of its own, by a Python that has no packages."""

    def __init__(self, root: Path, server: DownloadServer) -> None:
        self.root, self.models = root, root / "models"
        (root / "dllama").mkdir(parents=True)
        shutil.copytree(ROOT / "dllama" / "hub", root / "dllama" / "hub", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("launch.py", "dllama/__init__.py", "dllama/errors.py", "dllama/machine.py"):
            shutil.copy(ROOT / name, root / name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DLLAMA_", "XDG_"))}
        self.env = {**kept, "HF_ENDPOINT": server.url, "no_proxy": "*", "HOME": str(root)}

    def start(self, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-S", "-E", str(self.root / "launch.py"), *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(  # type: ignore[call-overload]
            command, env=self.env, cwd="/", encoding="utf-8", **{**streams, **settings}
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.models.rglob("*") if path.is_file())


@pytest.fixture
def launch(tmp_path: Path, server: DownloadServer) -> Launcher:
    return Launcher(tmp_path / "check out", server)


def paths(name: str) -> list[str]:
    return [f"models/{name}/dllama_model_{name}.m", f"models/{name}/dllama_tokenizer_{name}.t"]


def test_download_without_anything_installed(launch: Launcher) -> None:
    status, out, err = launch.run("llama3-2-1b-instruct-q40", "-skip-run", "-y")
    assert (status, err) == (0, "")
    assert launch.files() == paths(ENTRY.name)
    assert (launch.root / paths(ENTRY.name)[0]).read_bytes() == MODEL
    assert (launch.root / paths(ENTRY.name)[1]).read_bytes() == TOKENIZER
    assert out.count("its SHA-256 is the server's") == 2
    assert not re.search("[\r\x1b]", out)


def test_script_works_from_any_folder(launch: Launcher, tmp_path: Path) -> None:
    assert launch.run(ENTRY.name, "-skip-run", "-y")[0] == 0
    script = launch.root / f"run_{ENTRY.name}.sh"
    dllama = launch.root / ".venv" / "bin" / "dllama"
    dllama.parent.mkdir(parents=True)
    dllama.write_text('#!/bin/sh\nfor each; do echo "[$each]"; done; exit 7\n')
    dllama.chmod(0o755)
    result = subprocess.run([script, "--seed", "a b"], capture_output=True, encoding="utf-8", cwd=tmp_path)
    model, tokenizer = (launch.root / path for path in paths(ENTRY.name))
    begin = f"[chat]\n[--model]\n[{model}]\n[--tokenizer]\n[{tokenizer}]\n"
    end = "[--max-seq-len]\n[4096]\n[--buffer-float-type]\n[q80]\n[--seed]\n[a b]\n"
    assert result.stdout.startswith(begin)
    assert result.stdout.endswith(end)
    assert "nthreads" not in result.stdout  # left to the environment and the configuration file
    assert result.returncode == 7


def test_script_of_a_cluster_starts_one(launch: Launcher) -> None:
    assert launch.run(ENTRY.name, "-skip-run", "-y", "--nodes", "3")[0] == 0
    script = launch.root / f"run_{ENTRY.name}.sh"
    before = script.read_text()
    assert f'/launch.py\' {ENTRY.name} --nodes 3 -skip-script "$@"\n' in before
    # This Python has dllama installed, and is to see the small checkout's alone.
    script.write_text(before.replace(f"exec {sys.executable}", f"exec {sys.executable} -S -E"))
    result = subprocess.run([script, "-skip-run"], capture_output=True, encoding="utf-8", env=launch.env)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"✅ {ENTRY.name} is in" in result.stdout
    assert "-S -E" in script.read_text()  # not written again


def test_skip_script(launch: Launcher) -> None:
    assert launch.run(ENTRY.name, "--skip-run", "--skip-script", "-y")[0] == 0
    assert list(launch.root.glob("run_*")) == []


def test_what_is_there_is_not_fetched(launch: Launcher, server: DownloadServer) -> None:
    assert launch.run(ENTRY.name, "-skip-run", "-y")[0] == 0
    server.seen.clear()
    launch.env["HF_HUB_OFFLINE"] = "1"
    status, out, _ = launch.run(ENTRY.name, "-skip-run")
    assert status == 0
    assert "to download it again, remove that folder first (or: dllama models remove llama3_2_1b" in out
    assert server.seen == []


def test_present_file_that_is_cut_short_is_named(launch: Launcher) -> None:
    assert launch.run(ENTRY.name, "-skip-run", "-y")[0] == 0
    model = launch.root / paths(ENTRY.name)[0]
    os.truncate(model, 1000)
    status, _, err = launch.run(ENTRY.name, "-skip-run")
    assert status == 3
    assert err.endswith(f"by its header, found 1000 bytes; remove it to download it again: rm '{model}'\n")
    assert err.count("\n") == 1


def test_present_file_that_is_cut_short_is_named_if_the_other_is_missing(launch: Launcher) -> None:
    model = launch.root / paths(ENTRY.name)[0]
    model.parent.mkdir(parents=True)
    model.write_bytes(b"<html>")
    status, _, err = launch.run(ENTRY.name, "-skip-run", "-y")
    assert status == 3
    assert err.endswith(f"; remove it to download it again: rm '{model}'\n")
    assert launch.files() == paths(ENTRY.name)[:1]


def test_nobody_to_ask(launch: Launcher, server: DownloadServer) -> None:
    status, out, err = launch.run(ENTRY.name, "-skip-run")
    assert (status, out) == (2, "")
    assert err == f"🚨 {ENTRY.name} is not here, and there is no terminal to ask on; run again with -y to download\n"
    assert server.seen == []


@pytest.mark.parametrize(("answer", "status"), [("\n", 0), ("y\n", 0), ("n\n", 2), ("\x04", 2)])
def test_question(answer: str, status: int, launch: Launcher) -> None:
    master, slave = pty.openpty()
    with launch.start(ENTRY.name, "-skip-run", stdin=slave) as process:
        os.close(slave)
        os.write(master, answer.encode())
        out, err = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == status
    assert f"❓ Download {size_text(len(MODEL) + len(TOKENIZER))} to {launch.models}/{ENTRY.name}?" in out
    assert err == ("" if status == 0 else "🚨 nothing was downloaded\n")
    assert launch.files() == (paths(ENTRY.name) if status == 0 else [])


def test_offline_is_said(launch: Launcher) -> None:
    launch.env["HF_HUB_OFFLINE"] = "1"
    status, _, err = launch.run(ENTRY.name, "-skip-run", "-y")
    assert status == 6
    assert err.endswith("HF_HUB_OFFLINE is set; unset it to download\n")


def test_failed_download_is_one_line(launch: Launcher, server: DownloadServer) -> None:
    server.files.clear()
    status, out, err = launch.run(ENTRY.name, "-skip-run", "-y")
    assert (status, out.splitlines()) == (6, [f"🔎 Asking {server.url} for sizes"])
    assert "answered 404" in err
    assert err.count("\n") == 1
    assert not launch.models.exists()


def test_interrupt_keeps_what_is_there(launch: Launcher, server: DownloadServer) -> None:
    server.faults.rate = 200_000.0
    with launch.start(ENTRY.name, "-skip-run", "-y") as process:
        wait_for(lambda: server.sent_bytes > 100_000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\n🛑 Interrupted; what is there is kept, run the same command again to go on\n"
    out = launch.run(ENTRY.name, "--dry-run", "-skip-run")[1]
    assert re.search(r"dllama_model_.*: 388 kB, [\d.]+ kB are there, [\d.]+ kB to fetch\n", out)
    before = server.sent_bytes
    server.faults.rate = float("inf")
    assert launch.run(ENTRY.name, "-skip-run", "-y")[0] == 0
    assert launch.files() == paths(ENTRY.name)
    assert server.sent_bytes - before < len(MODEL) - 50_000


def test_bar_on_a_terminal_fits_80_columns(launch: Launcher, server: DownloadServer) -> None:
    server.faults.rate = 300_000.0
    master, slave = pty.openpty()
    launch.env |= {"TERM": "xterm", "COLUMNS": "80"}
    with launch.start(ENTRY.name, "-skip-run", "-y", stdout=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while data := os.read(master, 1 << 16):
                shown += data
        process.communicate(timeout=60)
    os.close(master)
    lines = re.split("\r\x1b\\[2K|\r\n", shown.decode())
    bars = [line for line in lines if "█" in line and "/s" in line]
    assert bars
    assert max(map(len, bars)) <= 78
    assert re.search(r"⏬ model █+░+ [\d.]+ kB of \d+ kB, \d+%, [\d.]+ kB/s, \d+ s left$", bars[0])


def test_dry_run_writes_nothing(launch: Launcher, server: DownloadServer) -> None:
    status, out, err = launch.run(ENTRY.name, "--dry-run", "-skip-run")
    assert (status, err) == (0, "")
    assert f"{server.url}/{ENTRY.page}/resolve/main/{ENTRY.model_files[0]}" in out
    assert f"dllama_model_{ENTRY.name}.m: {size_text(len(MODEL))}, to fetch" in out
    assert re.search(
        r"💾 Disk: .* to fetch, .* free\n📀 Memory: 917 MB at a context of 4096 tokens, [\d.]+ .B free", out
    )
    assert not launch.models.exists()
    assert server.gets() == []


def test_dry_run_as_json(launch: Launcher, server: DownloadServer) -> None:
    plan = json.loads(launch.run(ENTRY.name, "--dry-run", "--json", "-skip-run")[1])
    assert plan["folder"] == str(launch.models / ENTRY.name)
    assert [(file["bytes"], file["bytes_there"]) for file in plan["files"]] == [(len(TOKENIZER), 0), (len(MODEL), 0)]
    assert plan["disk"]["needed_bytes"] == len(MODEL) + len(TOKENIZER)
    assert plan["problems"] == []
    assert launch.run(ENTRY.name, "-skip-run", "-y")[0] == 0
    plan = json.loads(launch.run(ENTRY.name, "--dry-run", "--json", "-skip-run")[1])
    assert [file["is_there"] for file in plan["files"]] == [True, True]
    assert plan["disk"]["needed_bytes"] == 0


def test_dry_run_without_a_server(launch: Launcher) -> None:
    launch.env["HF_HUB_OFFLINE"] = "1"
    _, out, _ = launch.run(ENTRY.name, "--dry-run")
    assert "HF_HUB_OFFLINE is set: these sizes are the catalogue's" in out
    assert ".m: 1.75 GB, to fetch" in out


def test_dry_run_tells_what_the_run_would_refuse(launch: Launcher) -> None:
    launch.env["HF_HUB_OFFLINE"] = "1"
    folder = launch.models / ENTRY.name
    folder.mkdir(parents=True)
    (folder / ENTRY.model_name).write_text("<html>")
    status, out, _ = launch.run(ENTRY.name, "--dry-run", "-skip-run")
    assert status == 3
    assert f"rm {shlex.quote(str(folder / ENTRY.model_name))}" in out
    (folder / ENTRY.model_name).unlink()
    (folder / ENTRY.model_name).mkdir()
    assert "something else; move it away" in launch.run(ENTRY.name, "--dry-run", "-skip-run")[1]


def test_odd_names_stay_on_one_line(launch: Launcher) -> None:
    status, _, err = launch.run("a\x1b[31mb\nc")
    assert (status, err.count("\n")) == (2, 1)
    assert "\x1b" not in err


def test_list(launch: Launcher) -> None:
    status, out, _ = launch.run("--list")
    assert status == 0
    assert all(name in out for name in CATALOGUE)
    assert max(map(len, out.splitlines())) < 80
    listed = json.loads(launch.run("--list", "--json")[1])
    assert [model["name"] for model in listed] == list(CATALOGUE)
    assert not any(model["is_here"] for model in listed)


def test_models_go_where_the_user_says(launch: Launcher, tmp_path: Path) -> None:
    launch.env["DLLAMA_MODELS"] = str(tmp_path / "mine")
    assert launch.run(ENTRY.name, "-skip-run", "-y")[0] == 0
    assert (tmp_path / "mine" / ENTRY.name / ENTRY.model_name).read_bytes() == MODEL
    assert launch.files() == []


# --- with the set-up and the conversation noted instead of run ------------------------------------------------------


class Stages:
    """What ``launch.py`` does, in order."""

    def __init__(self, tmp_path: Path, server: DownloadServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stages: list[str] = []
        self.command: list[str] = []
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("DLLAMA_MODELS", str(tmp_path / "models"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(checkout, "ROOT", tmp_path)
        monkeypatch.setattr(checkout, "VENV", tmp_path / ".venv")
        monkeypatch.setattr(checkout, "check_can_set_up", lambda: self.stages.append("check"))
        monkeypatch.setattr(checkout, "set_up", lambda _extras: self.stages.append(f"set up {len(server.gets())}"))
        monkeypatch.setattr(os, "execv", self._exec)
        monkeypatch.setattr(model_plan, "free_memory", lambda: 1 << 40)
        (tmp_path / "launch.py").touch()

    def _exec(self, path: str, command: list[str]) -> None:
        assert path == command[0]
        self.stages.append("run")
        self.command = command
        raise SystemExit(0)

    def run(self, *arguments: str) -> int | str | None:
        try:
            return launcher.main(list(arguments))
        except SystemExit as end:
            return end.code


@pytest.fixture
def stages(tmp_path: Path, server: DownloadServer, monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(tmp_path, server, monkeypatch)


def test_checks_and_sets_up_before_downloading_and_then_runs(stages: Stages, tmp_path: Path) -> None:
    assert stages.run(ENTRY.name, "-y") == 0
    assert stages.stages == ["check", "set up 0", "run"]
    assert stages.command[:2] == [str(tmp_path / ".venv/bin/dllama"), "chat"]
    assert stages.run(ENTRY.name) == 0  # no question, and nothing fetched
    assert stages.stages[3:] == ["set up 4", "run"]


def test_runs_on_several_nodes(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_launch, "run_nodes", lambda command, nodes: 100 * nodes + (command[1] == "chat"))
    assert stages.run(ENTRY.name, "-y", "--nodes", "2") == 201
    monkeypatch.setattr(model_plan, "free_memory", lambda: 900_000_000)  # half of the model has room, all has not
    assert stages.run(ENTRY.name, "--nodes", "2") == NotEnoughMemory.exit_code
    assert stages.run(ENTRY.name, "--nodes", "1") == 0
    assert stages.stages[-1] == "run"


def test_script_that_cannot_be_written_is_told(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"run_{ENTRY.name}.sh.new").mkdir()
    assert stages.run(ENTRY.name, "-y") == 0
    assert "cannot be written: Is a directory" in capsys.readouterr().out
    assert stages.stages[-1] == "run"


def test_too_little_memory_is_told_first(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_plan, "free_memory", lambda: 900_000_000)
    assert stages.run(ENTRY.name, "-y") == NotEnoughMemory.exit_code == 5
    out, err = capsys.readouterr()
    assert "needs 917 MB of memory at a context of 4096 tokens, but 900 MB are free" in err
    assert stages.stages == ["check"]
    assert stages.run(ENTRY.name, "--dry-run") == 5
    assert stages.run(ENTRY.name, "-y", "-skip-run") == 0
    assert out.startswith("🔎 Asking")
    assert out.count("\n") == 1


def test_memory_of_this_machine_does_not_count_where_others_lend_theirs(stages: Stages, monkeypatch) -> None:
    monkeypatch.setattr(model_plan, "free_memory", lambda: 900_000_000)
    assert stages.run(ENTRY.name, "--dry-run", "--workers", "10.0.0.2:9999", "--key-file", "key") == 0


def test_too_little_disk_is_told_first_and_only_for_what_is_missing(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: DownloadServer
) -> None:
    monkeypatch.setattr(model_plan, "free_disk", lambda _folder: 64 << 20)
    assert stages.run(ENTRY.name, "-y") == NotEnoughDisk.exit_code == 5
    assert "but 67.1 MB are free; make room" in capsys.readouterr().err
    assert stages.run(ENTRY.name, "--dry-run", "--json") == 5
    assert server.gets() == []
    monkeypatch.setattr(model_plan, "free_disk", lambda _folder: (64 << 20) + len(MODEL) + len(TOKENIZER))
    assert stages.run(ENTRY.name, "-y", "-skip-run") == 0


def test_unfinished_download_is_gone_on_with_where_it_is(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / "second" / ENTRY.name / (ENTRY.model_name + ".part")
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    monkeypatch.setenv("DLLAMA_MODELS", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert stages.run(ENTRY.name, "-y", "-skip-run") == 0
    assert unfinished.with_suffix("").read_bytes() == MODEL


def test_models_go_to_the_home_folder_where_the_checkout_cannot_be_written(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLLAMA_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("dllama.hub.folders.model_dirs", lambda: [ROOT / "models", tmp_path / "dllama" / "models"])
    monkeypatch.setattr(os, "access", lambda path, _mode: not Path(path).is_relative_to(ROOT))
    assert stages.run(ENTRY.name, "-y", "-skip-run") == 0
    assert (tmp_path / "dllama" / "models" / ENTRY.name / ENTRY.model_name).read_bytes() == MODEL


def test_system_errors_are_one_line(stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ENTRY.name).touch()
    assert stages.run(ENTRY.name, "-y", "-skip-run") == 1
    err = capsys.readouterr().err
    assert err == f"🚨 {os.strerror(errno.EEXIST)}: {tmp_path / 'models' / ENTRY.name}\n"


# --- killed ---------------------------------------------------------------------------------------------------------


def wait_for(is_so: object, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_at_50_moments(tmp_path: Path) -> None:
    model = model_bytes(2_000_000)
    chance, kills, partial = random.Random(3), 50, 0
    with serve(files_of(PARTED, model, TOKENIZER)) as server:
        launch = Launcher(tmp_path / "checkout", server)
        server.faults.rate, server.faults.drop_after = 250_000.0, 150_000
        target = launch.root / paths(PARTED.name)[0]
        for _ in range(kills):
            with launch.start(PARTED.name, "-skip-run", "-skip-script", "-y") as process:
                time.sleep(chance.uniform(0.0, 0.5))
                process.kill()
                process.communicate()
            partial += bool(list(target.parent.glob("*.part")))
            assert not target.exists() or target.read_bytes() == model
        server.faults.rate, server.faults.drop_after = float("inf"), None
        assert launch.run(PARTED.name, "-skip-run", "-skip-script", "-y")[0] == 0
        assert target.read_bytes() == model
        assert launch.files() == paths(PARTED.name)
        assert partial > kills // 2  # most of them hit a download
        # What was on its way when the program ended, and nothing else, came twice.
        assert server.sent_bytes <= len(model) + len(TOKENIZER) + kills * 2 * SLICE
