"""A root that knows the key and lies to a real worker, which refuses in words and serves the next."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cluster_world import (  # type: ignore[import-not-found]
    MIB,
    HostileRoot,
    WorkerProcess,
    generate,
    setup_of,
    wait_until,
    write_large_model,
)

from dllama.cluster import protocol
from dllama.cluster.addresses import Address
from dllama.cluster.channel import MESSAGE_LIMIT, ChannelClosed
from dllama.cluster.manifest import manifest_of
from dllama.cluster.protocol import Agreed, Connect, Facts, Failed, Linked, Missing, Pulse, Refused, Setup
from dllama.cluster.tiles import num_tiles, tiles_of
from dllama.config import LayerSpec
from dllama.errors import ClusterError, NotEnoughMemory
from dllama.formats.m_file import open_m_file
from dllama.plan import make_plan

HERE = [Address("127.0.0.1", 9)]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, tiny) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("cache")) as process:
        process.assert_serves(tiny.model)
        yield process


@pytest.fixture(autouse=True)
def survives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the worker before and after each test that has one."""
    if "worker" not in request.fixturenames:
        yield
        return
    worker, tiny = request.getfixturevalue("worker"), request.getfixturevalue("tiny")
    fds, threads, rss = worker.num_fds(), worker.num_threads(), worker.rss_mib()
    yield
    worker.assert_serves(tiny.model)
    wait_until(lambda: worker.num_fds() <= fds and worker.num_threads() <= threads, 7)
    assert worker.rss_mib() < rss + 8


@pytest.fixture
def setup(tiny) -> Setup:
    return setup_of(tiny.model, HERE)


def refusal(worker: WorkerProcess, setup: Setup) -> Refused:
    """Send a setup, and give the words with which it is refused."""
    with HostileRoot(worker.port) as root:
        assert isinstance(root.receive(), Facts)
        root.send(setup)
        answer = root.receive()
        assert isinstance(answer, Refused), answer
        assert root.ends()
        return answer


def test_a_refusal_reaches_the_root_and_the_user(worker, setup):
    assert "rank 7 of 2 nodes" in refusal(worker, msgspec.structs.replace(setup, rank=7)).reason
    worker.wait_for("🛑 The session is over: the root sent rank 7 of 2 nodes")


def test_another_build_is_told_to_the_worker_s_user(worker, setup):
    with agreed(worker, msgspec.structs.replace(setup, commit="abc\x1b[2J")):
        worker.wait_for("⚠️ The root is of another build, commit abc?[2J; this one's is ")


def test_too_large_a_model_is_refused_before_anything_is_allocated(worker, setup):
    rss = worker.rss_mib()
    config = replace(setup.config, max_seq_len=1 << 28, num_layers=200, layers=(LayerSpec(),) * 200)
    plan = make_plan(config, 2).digest()
    huge = msgspec.structs.replace(setup, config=config, plan=plan, max_seq_len=1 << 24, kv_tokens=1 << 24)
    answer = refusal(worker, huge)
    assert re.search(r"needs \d+ MiB of memory \(weights .*\), but \d+ MiB are free", answer.reason)
    assert answer.exit_code == NotEnoughMemory.exit_code
    assert worker.rss_mib() < rss + 8


def raw(setup: Setup, **changes: object) -> bytes:
    """Write a setup with fields that no Setup can have."""
    fields = msgspec.msgpack.decode(protocol.encode(setup))
    return msgspec.msgpack.encode(fields | changes)


RAW = {
    "a million hosts": {"hosts": [["a", 1]] * 1_000_000},
    "as many hosts as a message holds": {"hosts": [["", 1]] * 250_000},
    "as many names": {"names": [""] * 1_000_000},
    "hosts of a megabyte": {"hosts": [["x" * (MIB - 4096), 1]]},
    "port 0": {"hosts": [["127.0.0.1", 0]]},
    "port 65536": {"hosts": [["127.0.0.1", 65536]]},
    "a number of types": {"wire_type": 99},
    "text as rank": {"rank": "1"},
    "unknown fields": {"run": "rm -rf /"},
    "a model without sizes": {"config": {}},
}


@pytest.mark.parametrize("changes", RAW.values(), ids=RAW.keys())
def test_messages_that_are_none_end_the_session(worker, setup, changes):
    rss, data = worker.rss_mib(), raw(setup, **changes)
    with HostileRoot(worker.port) as root, suppress(ChannelClosed):
        root.receive()
        root.channel.send_bytes(struct.pack("<I", len(data)) + data, 5)
        assert root.ends()
    assert worker.rss_mib() < rss + 16


@pytest.mark.parametrize("length", [0, MESSAGE_LIMIT + 1, (1 << 32) - 1])
def test_lengths_that_lie(worker, length):
    with HostileRoot(worker.port) as root:
        root.receive()
        root.channel.send_bytes(struct.pack("<I", length) + bytes(100), 5)
        assert root.ends()


@pytest.mark.parametrize("message", [Connect(), Linked(), Facts("", "", 1, 1), Failed("\x1b[31mno", 1), Refused("no")])
def test_messages_out_of_order_end_the_session(worker, setup, message):
    with HostileRoot(worker.port) as root:
        root.receive()
        root.send(message)
        assert root.ends()
    with HostileRoot(worker.port) as root:
        root.receive()
        root.send(setup)
        assert isinstance(root.receive(), Agreed)
        root.send(message if not isinstance(message, Connect) else setup)
        assert root.ends()
    assert "\x1b" not in worker.output


def test_a_flood_of_messages_ends_the_session(worker, setup):
    with HostileRoot(worker.port) as root:
        root.receive()
        with suppress(ChannelClosed):
            for _ in range(200):
                root.send(setup)
        assert root.ends()


def agreed(worker: WorkerProcess, setup: Setup) -> HostileRoot:
    root = HostileRoot(worker.port)
    root.receive()
    root.send(setup)
    assert isinstance(root.receive(), Agreed)
    return root


def test_links_that_are_not_due_are_refused(worker, setup):
    with agreed(worker, setup) as root:
        for rank, session in ((1, None), (2, None), (-1, None), (1 << 40, None), (0, os.urandom(16))):
            with pytest.raises(ClusterError):
                root.link(rank, session)
        link = root.link()
        with pytest.raises(ClusterError):
            root.link()  # there is one already
        link.close()


def linked(worker: WorkerProcess, setup: Setup):
    """Come as far as a link over which weights go."""
    root = agreed(worker, setup)
    link = root.link()
    root.send(Connect())
    assert isinstance(root.receive(), Linked)
    return root, link


def failure(root: HostileRoot) -> Failed:
    answer = root.receive()
    assert isinstance(answer, Failed), answer
    assert root.ends()
    return answer


def other_weights(tiny, tmp_path: Path) -> Path:
    """Give a model of the same config whose tiles no cache has."""
    file = tmp_path / "other.m"
    shutil.copy(tiny.model, file)
    with file.open("r+b") as stream:
        stream.seek(-20000, os.SEEK_END)
        stream.write(os.urandom(4))
        stream.seek(-4000, os.SEEK_END)
        stream.write(os.urandom(4))
    return file


def test_another_manifest_than_announced_is_refused(worker, tiny, tmp_path):
    model = other_weights(tiny, tmp_path)
    setup = setup_of(model, HERE)
    with open_m_file(model) as file:
        manifest = bytearray(manifest_of(file).raw)
    root, link = linked(worker, setup)
    with root:
        manifest[-1] ^= 1
        link.send_bytes(bytes(manifest), 5)
        assert "manifest: expected the one that was announced, found another" in failure(root).reason
        link.close()


def test_other_tiles_than_announced_are_refused(worker, tiny, tmp_path):
    model = other_weights(tiny, tmp_path)
    setup = setup_of(model, HERE)
    with open_m_file(model) as file:
        manifest = manifest_of(file)
    root, link = linked(worker, setup)
    with root:
        link.send_bytes(manifest.raw, 5)
        missing = root.receive()
        assert isinstance(missing, Missing)
        for index in protocol.from_bits(missing.tiles, num_tiles(setup.config)):
            link.send_bytes(bytes(tiles_of(setup.config)[index].num_bytes), 5)
        assert "what the root sent is not what it announced" in failure(root).reason
        link.close()


def test_weights_that_stop_coming_are_waited_for_as_long_as_the_root_lives(worker, tiny, tmp_path):
    setup = setup_of(other_weights(tiny, tmp_path), HERE)
    root, link = linked(worker, setup)
    with root:
        link.send_bytes(b"x", 5)
        for _ in range(3):
            time.sleep(0.5)
            root.send(Pulse())
    link.close()
    worker.wait_for("the root is gone: it closed its connection", 5)


def followed(worker: WorkerProcess, tiny):
    """Come as far as a worker that waits for steps: all its weights are in its cache."""
    generate(tiny.model, [worker], 1)
    root, link = linked(worker, setup_of(tiny.model, HERE))
    assert root.receive() == Missing(bytes(-(-num_tiles(setup_of(tiny.model, HERE).config) // 8)))
    assert isinstance(root.receive(), protocol.Loaded)
    return root, link


@pytest.mark.parametrize("data", [b"\0" * 64, os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n" * 4])
def test_frames_that_are_none_end_the_session(worker, tiny, data):
    root, link = followed(worker, tiny)
    with root:
        link.send_bytes(data, 5)
        assert failure(root).rank == 0
        link.close()


@pytest.mark.parametrize("length", [0, 1, 1 << 31, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_frames_of_lengths_that_lie_end_the_session(worker, tiny, length):
    root, link = followed(worker, tiny)
    rss = worker.rss_mib()
    with root:
        link.send_bytes(struct.pack("<IHHQIIQ", 0x314C4C44, 1, 0, 1, 0, 0, length) + bytes(64), 5)
        assert failure(root).rank in (0, 1)
        link.close()
    assert worker.rss_mib() < rss + 8


def test_two_roots_at_once(worker, tiny):
    """One is served, the other refused with the reason."""
    outcomes: list[str] = []

    def race() -> None:
        try:
            with HostileRoot(worker.port) as root:
                answer = root.receive()
                outcomes.append(answer.reason if isinstance(answer, Refused) else "served")
                barrier.wait(5)
        except (ClusterError, ChannelClosed) as error:
            outcomes.append(str(error))

    begin = time.monotonic()
    for _ in range(5):
        outcomes.clear()
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert outcomes.count("served") == 1, outcomes
        assert sum("it serves another root, at 127.0.0.1:" in outcome for outcome in outcomes) == 3, outcomes
    assert time.monotonic() - begin < 5


def test_the_same_root_twice_is_told_so(worker):
    with HostileRoot(worker.port) as root, HostileRoot(worker.port, session=root.session) as again:
        answer = again.receive()
        assert isinstance(answer, Refused)
        assert answer.reason == "it serves this very root already; is it named twice?"


def test_a_worker_connects_to_nobody_else(tmp_path):
    """Only to workers of higher rank, and only once the root says so."""
    model = write_large_model(tmp_path / "model.m", 8)
    here = ("127.0.0.1", 0)
    with (
        socket.create_server(here) as lower,
        socket.create_server(here) as higher,
        WorkerProcess(tmp_path) as worker,
    ):
        ports = [lower.getsockname()[1], worker.port, higher.getsockname()[1]]
        addresses = [Address("127.0.0.1", port) for port in ports]
        setup = setup_of(model, addresses, rank=2)
        with agreed(worker, setup) as root:
            for each in (lower, higher):
                each.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    each.accept()
            root.send(Connect())
            higher.settimeout(5)
            connection, _ = higher.accept()
            connection.close()
            with pytest.raises(TimeoutError):
                lower.accept()
            assert f"worker 127.0.0.1:{ports[2]}: it closed its connection" in failure(root).reason


def test_nothing_is_written_beside_the_cache(tmp_path, tiny):
    """A worker's folder holds files named by hashes, and nothing else changes."""
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    with WorkerProcess(cache, env={"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}) as worker:
        worker.assert_serves(tiny.model)
    assert list(home.rglob("*")) == []
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    assert all(re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{62}", str(path.relative_to(cache))) for path in files)


def test_memory_that_the_system_refuses_ends_the_session_and_not_the_worker(tiny, tmp_path):
    model = write_large_model(tmp_path / "large.m", 192)
    with WorkerProcess(tmp_path / "cache") as worker:
        worker.assert_serves(tiny.model)
        limit = worker.data_bytes() + 64 * MIB  # threads and a tiny model fit, half of the large one does not
        resource.prlimit(worker.pid, resource.RLIMIT_DATA, (limit, limit))
        with pytest.raises(NotEnoughMemory, match=f"worker {worker.address}: "):
            generate(model, [worker], 1)
        worker.assert_serves(tiny.model)
