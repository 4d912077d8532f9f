"""Whoever connects to a worker and is no root: it survives them all, keeps nothing of them, and serves a good root."""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from cluster_world import MIB, WorkerProcess, wait_until  # type: ignore[import-not-found]

from dllama.cluster import protocol
from dllama.cluster.protocol import Ask, Bye, Challenge, Hello, Message, Pulse, Refused
from dllama.cluster.worker import MOST_PENDING

TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2
HTTP = b"GET /v1/models HTTP/1.1\r\nHost: worker\r\n\r\n"
OLD_ROOT = struct.pack("<III", 2, 0, 10) + b"127.0.0.1\0" + struct.pack("<I", 9998)
HELLO = Hello("root", bytes(32), False, bytes(16))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, tiny) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("cache")) as process:
        process.assert_serves(tiny.model)  # what it keeps for good is allocated
        yield process


@pytest.fixture(autouse=True)
def survives(worker: WorkerProcess, tiny) -> Iterator[None]:
    """Compare the worker before and after each test."""
    fds, threads, rss = worker.num_fds(), worker.num_threads(), worker.rss_mib()
    yield
    worker.assert_serves(tiny.model)
    wait_until(lambda: worker.num_fds() <= fds and worker.num_threads() <= threads, 7)
    assert worker.rss_mib() < rss + 4


def framed(message: Message) -> bytes:
    data = protocol.encode(message)
    return struct.pack("<I", len(data)) + data


def say(worker: WorkerProcess, data: bytes, seconds: float = 0.5) -> bytes:
    """Connect, send something, and give what comes back."""
    got = b""
    with worker.connect() as connection, suppress(ConnectionError, TimeoutError):
        connection.settimeout(seconds)
        connection.sendall(data)
        while part := connection.recv(65536):
            got += part
    return got


def test_random_bytes(worker):
    rng = random.Random(1)
    for size in (1, 7, 8, 9, 31, 32, 33, 100, 1000, 65536):
        for start in (b"", protocol.MAGIC, protocol.preamble()):
            say(worker, start + rng.randbytes(size), 0.01)


@pytest.mark.parametrize("data", [HTTP, TLS_HELLO, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", OLD_ROOT, bytes(4096)])
def test_other_protocols_are_closed_at_once(worker, data):
    begin = time.monotonic()
    assert say(worker, data, 5) == b""
    assert time.monotonic() - begin < 1


def test_strangers_are_told_of_in_few_lines(tmp_path):
    with WorkerProcess(tmp_path) as other:
        say(other, HTTP, 5)
        other.wait_for("away: it is a web client")
        say(other, OLD_ROOT, 5)
        other.wait_for("it is a root of distributed-llama, whose protocol is another")
        for _ in range(60):
            say(other, b"x" * 32, 5)
        other.wait_for("More strangers connect")
        assert len(other.lines) < 40  # a minute may end meanwhile, and the next begin
        assert all(line for line in other.lines)


def test_half_a_handshake_then_silence_ends_in_5_s(worker, tiny):
    begin, starts = time.monotonic(), protocol.preamble() + framed(HELLO)
    connections = [worker.connect() for _ in range(0, len(starts), 5)]
    for length, connection in zip(range(0, len(starts), 5), connections, strict=True):
        connection.settimeout(8)
        connection.sendall(starts[:length])
    worker.assert_serves(tiny.model)
    for connection in connections:
        with suppress(ConnectionError):
            while connection.recv(4096):
                pass
        connection.close()
    assert 3 < time.monotonic() - begin < 7


def test_half_a_handshake_then_reset(worker):
    for data in (b"", protocol.MAGIC, protocol.preamble(), protocol.preamble() + framed(HELLO)[:20]):
        for _ in range(10):
            connection = worker.connect()
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


@pytest.mark.parametrize("length", [0, 1025, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_lengths_that_lie(worker, length):
    got = say(worker, protocol.preamble() + struct.pack("<I", length) + bytes(1000), 5)
    assert got in (b"", protocol.preamble())


@pytest.mark.parametrize("message", [Challenge(bytes(32), False), Pulse(), Bye(), Ask(1), Refused("no")])
def test_messages_out_of_order(worker, message):
    assert say(worker, protocol.preamble() + framed(message), 5) in (b"", protocol.preamble())
    got = say(worker, protocol.preamble() + framed(HELLO) + framed(message), 5)
    assert b"Proof" not in got


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x80",
        b"\x91" * 1000,
        b"\x81\xa1x" * 300,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x82\xa4type\xa5Hello\xa4role\xa9\x1b[31mboss",
        b"\x82\xa4type\xa6\x1b[31mX",
        b"\x82\xa4type\xa5Hello\xa4r\xbdle\x00",
    ],
)
def test_messages_that_are_none(worker, data):
    assert say(worker, protocol.preamble() + struct.pack("<I", len(data)) + data, 5) in (b"", protocol.preamble())
    assert "\x1b" not in worker.output


def test_links_that_nobody_announced(worker):
    hello = Hello("link", os.urandom(32), True, os.urandom(16))
    got = say(worker, protocol.preamble() + framed(hello), 5)
    assert got == protocol.preamble()


def test_connecting_and_closing_a_thousand_times(worker):
    for _ in range(1000):
        worker.connect().close()


def test_many_silent_connections(worker, tiny):
    """The oldest make room: a good root is served among them, and none costs more than a thread and a descriptor."""
    rss, fds = worker.rss_mib(), worker.num_fds()
    connections = [worker.connect() for _ in range(3 * MOST_PENDING)]
    wait_until(lambda: worker.num_fds() <= fds + MOST_PENDING + 1, 4)
    worker.assert_serves(tiny.model)
    assert worker.rss_mib() < rss + MOST_PENDING * 64 / 1024 + 4  # 64 KiB each
    for connection in connections:
        connection.close()


def test_a_flood_of_data_is_not_kept(worker):
    """A stranger may send no more than a message of a KiB at a time, whatever it has to say."""
    rss = worker.rss_mib()
    for start in (b"", protocol.preamble(), protocol.preamble() + framed(HELLO)):
        with worker.connect() as connection, suppress(ConnectionError, TimeoutError):
            connection.settimeout(1)
            connection.sendall(start + bytes(8 * MIB))
    assert worker.rss_mib() < rss + 4


def test_nobody_need_read_what_a_worker_says(tmp_path, tiny):
    with WorkerProcess(tmp_path) as unread:
        unread.stop_reading()
        for _ in range(3):
            say(unread, HTTP, 5)
            unread.assert_serves(tiny.model)


def test_few_descriptors(tmp_path, tiny):
    """A worker that may not open more files sends new connections to wait, and goes on when some are free again."""
    with WorkerProcess(tmp_path) as small:
        small.assert_serves(tiny.model)
        resource.prlimit(small.pid, resource.RLIMIT_NOFILE, (40, 40))
        connections = [small.connect() for _ in range(60)]
        time.sleep(0.5)
        begin = small.cpu_seconds()
        time.sleep(0.5)
        assert small.cpu_seconds() - begin < 0.25  # it does not spin
        for connection in connections:
            connection.close()
        small.assert_serves(tiny.model)
