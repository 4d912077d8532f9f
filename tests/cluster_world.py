"""A cluster for tests: real worker processes on this machine, roots good and bad, and what the system says of them."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.cluster import handshake, protocol
from dllama.cluster.addresses import Address, connect
from dllama.cluster.auth import link_key
from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.manifest import manifest_of
from dllama.cluster.protocol import Hello, Message, Pulse, Setup
from dllama.config import DType, LayerSpec
from dllama.engine import Engine, SamplingParams
from dllama.formats.m_file import open_m_file
from dllama.plan import make_plan
from dllama.version import build

READY_S = 20.0  # for a worker to start on a busy machine
SERVED_S = 2.0  # for a worker to serve a good root, whatever happened before
MIB = 1 << 20
PROMPT = [5, 6, 7, 8]


class Process:
    """A ``dllama`` command in a process of its own, and its lines; ended by ``stop``."""

    def __init__(self, *arguments: object, env: dict[str, str] | None = None, within: Sequence[str] = ()) -> None:
        command = [*within, sys.executable, "-m", "dllama", *map(str, arguments)]
        self.lines: list[str] = []
        self._seen = 0
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**os.environ, **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, text: str, seconds: float = READY_S) -> str:
        """Wait for the next line with ``text`` behind those that were waited for before, and give it."""
        deadline = time.monotonic() + seconds
        while True:
            while self._seen < len(self.lines):
                self._seen += 1
                if text in self.lines[self._seen - 1]:
                    return self.lines[self._seen - 1]
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} within {seconds} s:\n{self.output}") from None
            assert line is not None, f"it ended without a line with {text!r}:\n{self.output}"

    def wait(self, seconds: float = READY_S) -> int:
        """Wait for the end, and give the exit code."""
        status = self._process.wait(seconds)
        self._reader.join()
        return status

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def stop(self) -> None:
        if self.is_alive:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stop_reading(self) -> None:
        """Close this end of its output, which it then cannot write."""
        fd = self._process.stdout.fileno() if self._process.stdout else -1
        with open(os.devnull, "rb") as null:  # noqa: PTH123  # the reader may be in the middle of a read
            os.dup2(null.fileno(), fd)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._queue.put(line)
        self._queue.put(None)

    def rss_mib(self) -> float:
        """Resident memory, without pages of files."""
        return _status_kb(self.pid, "RssAnon") / 1024

    def data_bytes(self) -> int:
        """What the system counts against a limit of data."""
        return _status_kb(self.pid, "VmData") * 1024

    def num_threads(self) -> int:
        return int(_status(self.pid)["Threads"])

    def num_fds(self) -> int:
        return num_fds(self.pid)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class WorkerProcess(Process):
    """``dllama worker`` on a port of its own, listening once this is made."""

    def __init__(self, cache: Path, *flags: object, port: int = 0, **kinds: Any) -> None:
        super().__init__("worker", "--port", port, "--nthreads", 1, "--cache-dir", cache, *flags, **kinds)
        try:
            line = self.wait_for("Listening on")
        except BaseException:
            self.stop()
            raise
        found = re.search(r":(\d+)\.\.\.$", line)
        assert found, line
        self.port = int(found[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def connect(self) -> socket.socket:
        """Connect as anybody can."""
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def assert_serves(self, model: Path, seconds: float = SERVED_S) -> None:
        """Make sure that a good root is served soon, tries included, and gets tokens."""
        begin = time.monotonic()
        assert len(generate(model, [self], 3)) == 3
        assert time.monotonic() - begin < seconds
        assert "Traceback" not in self.output, self.output
        assert "internal error" not in self.output, self.output


@contextmanager
def workers(tmp_path: Path, count: int, *flags: object) -> Iterator[list[WorkerProcess]]:
    """Start several workers, each with a cache of its own, and stop them again."""
    started: list[WorkerProcess] = []
    try:
        started.extend(WorkerProcess(tmp_path / f"cache-{index}", *flags) for index in range(count))
        yield started
    finally:
        for worker in started:
            worker.stop()


def load(model: Path, nodes: Sequence[WorkerProcess], **kinds) -> Engine:
    """Load a model on this process and workers."""
    return Engine.load(model, num_threads=1, workers=[node.address for node in nodes], **kinds)


def generate(model: Path, nodes: Sequence[WorkerProcess], count: int) -> list[int]:
    """Give some greedy tokens of a cluster."""
    sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    with load(model, nodes) as engine:
        return [output.token_id for output in engine.generate(PROMPT, sampling) if output.token_id is not None]


def write_large_model(path: Path, mib: int = 48) -> Path:
    """Write a model of some MiB, whose prompts and weights take a moment: there is time to break something."""
    intermediate = mib * MIB // (3 * 512 * 4 * 4) // 32 * 32
    config = tiny_config(
        weight_type=DType.F32,
        hidden_size=512,
        intermediate_size=intermediate,
        num_layers=4,
        layers=(LayerSpec(),) * 4,
        head_dim=32,
        max_seq_len=8192,
    )
    write_tiny_model(path, config)
    return path


def setup_of(model: Path, addresses: Sequence[Address], rank: int = 1, **changes: object) -> Setup:
    """Give a sound setup for a worker, ``changes`` made to it."""
    with open_m_file(model) as file:
        config, manifest = file.config, manifest_of(file)
    setup = Setup(
        rank=rank,
        names=["the root", *(f"worker {address}" for address in addresses)],
        hosts=[(address.host, address.port) for address in addresses],
        config=config,
        shares=None,
        plan=make_plan(config, len(addresses) + 1).digest(),
        wire_type=DType.F32,
        kv_type=DType.F32,
        max_seq_len=64,
        kv_tokens=64,
        max_batch_tokens=16,
        manifest=manifest.id,
        commit=build()["commit"],
    )
    return msgspec.structs.replace(setup, **changes)


class HostileRoot:
    """A root that has proved the key and then says what it likes."""

    def __init__(self, port: int, key: bytes | None = None, session: bytes | None = None) -> None:
        self.port, self.key, self.session = port, key, session or os.urandom(protocol.SESSION_BYTES)
        self.channel = self._connect(Hello("root", b"", False, self.session), key)

    def _connect(self, hello: Hello, key: bytes | None) -> Channel:
        channel = Channel(connect(Address("127.0.0.1", self.port), "the worker"))
        try:
            handshake.connect(channel, hello, key, "the worker")
        except BaseException:
            channel.close()
            raise
        return channel

    def link(self, rank: int = 0, session: bytes | None = None) -> Channel:
        session = session or self.session
        return self._connect(Hello("link", b"", False, session, rank), link_key(self.key, session))

    def send(self, message: Message) -> None:
        self.channel.send(message)

    def receive(self, seconds: float = 5.0) -> Message:
        """Give the next message that is no pulse."""
        deadline = time.monotonic() + seconds
        while True:
            message, _ = self.channel.receive(deadline)
            if not isinstance(message, Pulse):
                return message

    def ends(self, seconds: float = 5.0) -> bool:
        """Whether the worker closes the connection in time."""
        try:
            while True:
                self.receive(seconds)
        except ChannelClosed as error:
            return "closed" in str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()


def wait_until(is_so: Callable[[], bool], seconds: float) -> float:
    """Wait for something, and give the seconds that it took; fails if it does not come in time."""
    begin = time.monotonic()
    while not is_so():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - begin


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every CPU of this machine busy."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def num_fds(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def own_rss_mib() -> float:
    """Resident memory of this process, without pages of files."""
    return _status_kb(os.getpid(), "RssAnon") / 1024


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _status_kb(pid: int, name: str) -> int:
    return int(_status(pid)[name].removesuffix(" kB"))
