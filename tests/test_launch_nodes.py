"""``launch.py`` with ``--nodes``: real workers and roots on this machine, what they get told, and that they all end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from terminal import Terminal  # type: ignore[import-not-found]

from dllama import machine
from dllama.errors import ClusterError
from dllama.hub import checkout, launcher, local_workers

ROOT = Path(__file__).resolve().parent.parent
# The real launcher without its set-up, which would make .venv anew for another Python.
LAUNCH = """
import sys
from pathlib import Path
from dllama.hub import checkout, launcher, local_workers
checkout.VENV = Path(sys.prefix)
checkout.set_up = lambda extras: None
launcher.run_demo = {run_demo}
sys.exit(launcher.main(["demo", *sys.argv[1:]]))
"""
DEMO = [sys.executable, "-c", LAUNCH.format(run_demo="launcher.run_demo")]
CHAT = [
    sys.executable,
    "-c",
    LAUNCH.format(
        run_demo="lambda o: local_workers.run_nodes([str(checkout.program()), 'chat', '--model', 'demo'], 2)"
    ),
]
ENV = {**os.environ, "DLLAMA_CONFIG": os.devnull}


def wait_for(is_so: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def command_of(pid: int) -> str:
    """Give a process's command line, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def workers_of(launch: int) -> list[int]:
    children = [int(pid) for pid in Path(f"/proc/{launch}/task/{launch}/children").read_text().split()]
    return [pid for pid in children if " worker " in command_of(pid)]


@contextmanager
def chat() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a chat through pipes on two nodes that has given an answer; give its launcher and its worker's number."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        CHAT, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENV, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("⭕ Starting 1 worker")
        assert process.stderr is not None
        assert process.stdout.readline(), process.stderr.read()
        (worker,) = workers_of(process.pid)
        yield process, worker
        process.kill()
    wait_for(lambda: not command_of(worker), 2)


# --- real nodes -----------------------------------------------------------------------------------------------------


def test_demo_is_a_cluster() -> None:
    done = subprocess.run([*DEMO, "--steps", "8"], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("⭕ Starting 1 worker on this machine")
    assert re.search(r"^Nodes\n.*\n +the root .* kB\n +worker 127\.0\.0\.1:\d+ .* kB\n", done.stdout, re.MULTILINE)
    assert "That was the bundled model, on a cluster of 2 nodes" in done.stdout
    assert "Listening" not in done.stdout
    port = int(re.search(r"worker 127\.0\.0\.1:(\d+)", done.stdout)[1])  # type: ignore[index]
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("where", ["environment", "file"])
def test_key_is_known_to_both_sides(where: str, tmp_path: Path) -> None:
    key, config = "a key of more than 16 bytes", tmp_path / "config.toml"
    (tmp_path / "key").write_text(key)
    config.write_text(f"key-file = '{tmp_path / 'key'}'")
    setting = {"DLLAMA_CLUSTER_KEY": key} if where == "environment" else {"DLLAMA_CONFIG": str(config)}
    done = subprocess.run([*DEMO, "--steps", "2"], capture_output=True, text=True, env={**ENV, **setting})
    assert (done.returncode, done.stderr) == (0, "")


def test_worker_that_cannot_start_is_one_line() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, env={**ENV, "DLLAMA_NTHREADS": "many"})
    assert done.returncode == ClusterError.exit_code
    expected = "🚨 worker on this machine ended with exit code 2; it said last: 🚨 DLLAMA_NTHREADS: expected "
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_killed_launcher_takes_its_workers_along() -> None:
    with chat() as (process, worker):
        process.kill()
        wait_for(lambda: not command_of(worker), 2)


@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [
        (signal.SIGINT, True, 130),  # as a terminal's Ctrl-C
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, False, 129),
    ],
)
def test_signals_reach_the_root(number: signal.Signals, to_all: bool, status: int) -> None:
    with chat() as (process, worker):
        send = os.killpg if to_all else os.kill
        send(process.pid, number)
        with suppress(subprocess.TimeoutExpired):  # an end of input, which ends it too, comes later than the signal
            process.wait(timeout=1)
        out, err = process.communicate(timeout=20)
        assert process.returncode == status, out + err
        assert not command_of(worker)


def test_lost_worker_is_named_with_its_last_words() -> None:
    with chat() as (process, worker):
        os.kill(worker, signal.SIGKILL)
        _, err = process.communicate("hello\n", timeout=20)
    assert process.returncode in (4, 7)
    assert re.search(r"🚨 worker 127\.0\.0\.1:\d+ ended with exit code 137; it said last: 💿 Weights loaded\n$", err)


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_worker_ends_in_order(how: str) -> None:
    command = [sys.executable, "-m", "dllama", "worker", "--port", "0", "--until-eof"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=ENV) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while "Listening" not in process.stdout.readline():
            pass
        if how == "SIGTERM":
            process.terminate()
            assert process.wait(10) == 0
        process.stdin.close()
        assert process.stdout.read() == "🛑 Stopped\n"
    assert process.returncode == 0


def test_stopped_worker_is_ended_too() -> None:
    with chat() as (process, worker):
        os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not command_of(worker), 15)


def test_keys_of_a_terminal_are_the_roots(tmp_path: Path) -> None:
    with Terminal(CHAT, {**ENV, "TERM": "xterm", "HOME": str(tmp_path)}, str(tmp_path)) as terminal:
        terminal.wait_for_prompt(1)
        (worker,) = workers_of(terminal.process.pid)
        terminal.send("hel\x03")
        terminal.wait_for_prompt(2)
        terminal.send("hello\r")
        terminal.wait_for_prompt(3)
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0
        assert not command_of(worker)


# --- with a program that only notes what it is told -----------------------------------------------------------------

PROGRAM = """#!/bin/sh
echo "$@${{DLLAMA_WORKERS:+ $DLLAMA_WORKERS}}" >> {folder}/$1.txt
[ $1 = worker ] || exit 9
{worker}
"""
LISTENS = "echo Listening on 127.0.0.1:77...; exec cat"


class Program:
    """Stands in for ``dllama``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".venv" / "bin" / "dllama"
        self.path.parent.mkdir(parents=True)
        self.write(LISTENS)

    def write(self, worker: str) -> None:
        self.path.write_text(PROGRAM.format(folder=self.folder, worker=worker))
        self.path.chmod(0o755)

    def told(self, command: str) -> list[str]:
        return (self.folder / f"{command}.txt").read_text().splitlines()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(checkout, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(machine, "physical_cores", lambda: 7)
    monkeypatch.setenv("DLLAMA_CONFIG", os.devnull)
    monkeypatch.delenv("DLLAMA_NTHREADS", raising=False)
    return Program(tmp_path)


def test_cores_are_shared_out(program: Program, capfd: pytest.CaptureFixture[str]) -> None:
    assert local_workers.run_nodes([str(program.path), "chat", "-x"], 3) == 9
    assert program.told("chat") == ["chat -x --nthreads 2 127.0.0.1:77 127.0.0.1:77"]
    place = "--host 127.0.0.1 --port 0 --until-eof --cache-size 0"
    assert program.told("worker") == [f"worker {place} --nthreads 2"] * 2
    assert capfd.readouterr() == ("⭕ Starting 2 workers on this machine\n", "")


def test_more_nodes_than_cores(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    local_workers.run_nodes([str(program.path), "chat"], 8)
    assert all(line.endswith("--nthreads 1") for line in program.told("worker"))
    assert "8 nodes take turns on 7 cores, which is slow" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "is_given"), [("nthreads = 3", []), ("[worker]\nnthreads = 3", ["chat"])])
def test_threads_of_the_settings_win(
    text: str, is_given: list[str], program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(text)
    monkeypatch.setenv("DLLAMA_CONFIG", str(tmp_path / "config.toml"))
    local_workers.run_nodes([str(program.path), "chat"], 2)
    assert [name for name in ("chat", "worker") if "--nthreads" in program.told(name)[0]] == is_given
    monkeypatch.setenv("DLLAMA_NTHREADS", "5")
    local_workers.run_nodes([str(program.path), "chat"], 2)
    assert "--nthreads" not in program.told("chat")[1] + program.told("worker")[1]


def test_one_node_is_the_plain_command(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert local_workers.run_nodes([str(program.path), "chat", "-x"], 1) == 9
    assert program.told("chat") == ["chat -x"]
    assert capsys.readouterr().out == ""


def test_silent_worker_is_not_waited_for_without_end(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "_START_S", 0.2)
    program.write("echo; echo hm; echo; exec cat")
    with pytest.raises(ClusterError, match=r"^worker on this machine did not start within 0 s; it said last: hm$"):
        local_workers.run_nodes([str(program.path), "chat"], 2)
    assert not (program.folder / "chat.txt").exists()


def test_worker_that_talks_much_is_not_stopped_by_it(program: Program) -> None:
    program.write(f"echo Listening on 127.0.0.1:77...; seq 100000; touch {program.folder}/said; exec cat")
    with local_workers._local_workers(1, []):
        wait_for((program.folder / "said").exists, 10)


def test_interrupt_while_workers_start(program: Program) -> None:
    program.write("exec cat")
    code = LAUNCH.format(run_demo="launcher.run_demo").replace(
        "Path(sys.prefix)", f"Path({str(program.folder)!r}) / '.venv'"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=ENV, stderr=subprocess.PIPE, text=True) as process:
        wait_for((program.folder / "worker.txt").exists, 10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--nodes", "0"], "--nodes: expected a number from 1 to 64, found '0'"),
        (["demo", "--nodes", "65"], "found '65'"),
        (["demo", "--nodes", "²"], "found '²'"),
        (["setup", "--nodes", "2"], "leave it away with --list, --dry-run and setup"),
        (["--list", "--nodes", "2"], "leave it away"),
        (["qwen3_0.6b_q40", "--dry-run", "--nodes", "2"], "leave it away"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_ignored_children_are_waited_for_all_the_same() -> None:
    """Some parents ignore SIGCHLD, and their children inherit that."""
    code = "import sys; from dllama.hub import local_workers; sys.exit(local_workers.run_in_front(['/bin/false']))"
    command = ["bash", "-c", "trap '' CHLD; exec \"$@\"", "bash", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=checkout.ROOT, timeout=20).returncode == 1
