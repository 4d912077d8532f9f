"""A conversation on several machines: what becomes of it when one of them is lost."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from cluster_world import WorkerProcess  # type: ignore[import-not-found]
from terminal import Terminal  # type: ignore[import-not-found]

STORY = "tell me a story about a fox"


def chat(tmp_path: Path, *flags: str) -> Terminal:
    env = {**os.environ, "TERM": "xterm", "HOME": str(tmp_path), "COLUMNS": "80"}
    command = [sys.executable, "-m", "dllama", "chat", "--model", "demo", "--nthreads", "1", "--seed", "1", *flags]
    return Terminal(command, env, str(tmp_path), rows=40)


@pytest.mark.parametrize("first", ["", "hello\r"])
def test_a_lost_worker_ends_a_chat_that_can_be_gone_on_with(tmp_path, first):
    with WorkerProcess(tmp_path / "cache") as worker, WorkerProcess(tmp_path / "cache") as other:
        with chat(tmp_path, "--workers", worker.address, "--shares", "2,1") as terminal:
            terminal.wait_for_prompt(1)
            terminal.send(first)
            terminal.wait_for_prompt(2 if first else 1)
            worker.kill()
            terminal.send(f"{STORY}\r")
            assert terminal.wait_for_end() == 7
            said = " ".join(terminal.raw.split())
        assert f"worker {worker.address} was lost" in said
        command = shlex.split(said.partition("go on with: ")[2])
        assert command[command.index("--workers") + 1] == worker.address
        assert "--shares=2,1" in command
        session = command[command.index("--load") + 1]
        assert json.loads(Path(session).read_text())["messages"][-1]["content"] == STORY
        with chat(tmp_path, "--workers", other.address, "--load", session) as terminal:
            terminal.wait_for_prompt(1)
            terminal.send("/regen\r")
            terminal.wait_for("Once upon a time")
            terminal.send("\x03")
            terminal.wait_for_prompt(2)
            terminal.send("\x04")
            assert terminal.wait_for_end() == 0
