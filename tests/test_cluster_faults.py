"""Nodes that die, freeze and come back, in a real cluster: losses are named in time, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_world import (  # type: ignore[import-not-found]
    PROMPT,
    HostileRoot,
    Process,
    WorkerProcess,
    busy_cores,
    generate,
    load,
    num_fds,
    own_rss_mib,
    wait_until,
    workers,
    write_large_model,
)
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.cluster.protocol import Facts
from dllama.config import DType
from dllama.engine import Engine, EngineStopped, SamplingParams
from dllama.errors import ClusterError, NotEnoughMemory, WorkerLost

ENDED = "🛑 The session is over"
LOST_S = 2.0  # after a process is killed
FROZEN_S = 10.0  # after it is stopped without a word
FREED_S = 5.0  # for a worker to be ready after its root is killed
GREEDY = SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True)
LONG_PROMPT = [token % 256 for token in range(4000)]
PAUSE_S = 0.002  # after each tile, so that the worker keeps pace
ON_THE_WAY = 8 << 20  # bytes in buffers of the system and in tiles that are not written yet


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 48 MiB, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("large")
    write_tiny_tokenizer(folder / "large.t")
    return write_large_model(folder / "large.m")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    with workers(tmp_path, 2) as nodes:
        yield nodes


@pytest.fixture
def one(tmp_path: Path) -> Iterator[WorkerProcess]:
    with workers(tmp_path, 1) as (node,):
        yield node


def restarted(nodes: list[WorkerProcess], index: int, tmp_path: Path) -> None:
    """Start a worker again that was killed, on its port and with its cache."""
    port = nodes[index].port
    nodes[index].stop()
    nodes[index] = WorkerProcess(tmp_path / f"cache-{index}", port=port)


def loss(engine: Engine, worker: WorkerProcess, at: str) -> tuple[WorkerLost, float]:
    """Kill a worker in the prefill or at a token, and give the error and the seconds until it came."""
    killed = 0.0

    def kill() -> None:
        nonlocal killed
        killed = time.monotonic()
        worker.send_signal(signal.SIGKILL)

    if at == "prefill":
        threading.Timer(0.15, kill).start()
    count = 0
    try:
        for count, _ in enumerate(engine.generate(LONG_PROMPT if at == "prefill" else PROMPT, GREEDY), 1):
            if str(count) == at:
                kill()
    except WorkerLost as error:
        assert count == 0 if at == "prefill" else int(at) <= count <= int(at) + 2
        return error, time.monotonic() - killed
    raise AssertionError("it was not lost")


@pytest.mark.parametrize(("num_workers", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_killed_worker_is_named_in_time_and_can_rejoin(large, tmp_path, num_workers, victim):
    with workers(tmp_path, num_workers) as nodes:
        expected = generate(large, nodes, 3)
        for at in ("prefill", "1", "10"):
            with load(large, nodes) as engine:
                error, seconds = loss(engine, nodes[victim], at)
                assert error.name == nodes[victim].address
                assert error.exit_code == 7
                assert seconds < LOST_S
                with pytest.raises(EngineStopped, match=re.escape(f"worker {error.name} was lost")):
                    engine.logits([1])
            restarted(nodes, victim, tmp_path)
            assert generate(large, nodes, 3) == expected
        for node in nodes:
            assert "internal error" not in node.output
            assert "Traceback" not in node.output


@pytest.mark.parametrize("at", ["🔷️ Eval", "🔶 Pred"])
def test_the_command_ends_with_its_exit_code(large, one, at):
    root = inference(large, one)
    root.wait_for(at)
    one.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert root.wait() == 7
    assert time.monotonic() - begin < LOST_S
    errors = [line for line in root.lines if line.startswith("🚨")]
    assert errors == [f"🚨 worker {one.address} was lost: it closed its connection"]
    root.stop()


def inference(model: Path, *nodes: WorkerProcess) -> Process:
    """Start a root that generates for long."""
    flags = ["--model", model, "--tokenizer", model.with_suffix(".t"), "--prompt", "Hello", "--steps", 4000]
    return Process("inference", *flags, "--ignore-eos", "--nthreads", 1, "--workers", *(each.address for each in nodes))


def test_a_root_that_is_interrupted_leaves_its_worker_free(large, one):
    root = inference(large, one)
    root.wait_for("🔶 Pred")
    root.send_signal(signal.SIGINT)
    assert root.wait() == 130
    one.wait_for(ENDED, FREED_S)
    one.assert_serves(large)
    root.stop()


def test_a_worker_lost_while_the_root_hashes_ends_it(large, tmp_path, one):
    model = tmp_path / "unknown.m"
    shutil.copy(large, model)
    calls: list[str] = []

    def progress(name: str, _done: int, _total: int) -> None:
        calls.append(name)
        if len(calls) == 1:
            one.kill()
            time.sleep(0.3)

    with pytest.raises(WorkerLost) as caught:
        load(model, [one], node_progress=progress)
    assert caught.value.name == one.address
    assert calls == ["hashing"]


def test_a_worker_that_is_asked_to_end_is_lost_in_words(large, one):
    with load(large, [one]) as engine:
        outputs = engine.generate(PROMPT, GREEDY)
        next(outputs)
        one.send_signal(signal.SIGTERM)
        with pytest.raises(WorkerLost, match=re.escape(one.address)):
            for _ in outputs:
                pass
        assert one.wait() == 0


def test_a_loss_while_idle_is_met_at_the_next_step(large, two):
    with load(large, two) as engine:
        two[1].kill()
        time.sleep(0.2)
        begin = time.monotonic()
        with pytest.raises(WorkerLost) as caught:
            engine.logits(PROMPT)
        assert caught.value.name == two[1].address
        assert time.monotonic() - begin < LOST_S


def test_who_keeps_the_error_keeps_no_weights(large, one):
    with load(large, [one]) as engine:
        engine.logits(PROMPT)
        before = own_rss_mib()
        error, _ = loss(engine, one, "1")
    assert own_rss_mib() < before - 16  # half of the weights
    assert error.__traceback__ is not None


def test_a_frozen_worker_is_detected(large, two):
    with load(large, two) as engine:
        outputs = engine.generate(PROMPT, GREEDY)
        next(outputs)
        two[1].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(WorkerLost, match="no sign of life from it") as caught:
            for _ in outputs:
                pass
        assert caught.value.name == two[1].address
        assert time.monotonic() - begin < FROZEN_S
    two[0].wait_for(ENDED, 5)
    two[1].send_signal(signal.SIGCONT)
    two[1].wait_for(ENDED, 5)
    assert len(generate(large, two, 2)) == 2  # it was only asleep


@pytest.mark.slow
def test_a_worker_that_freezes_while_it_gets_weights_is_detected(large, one):
    frozen = 0.0

    def freeze() -> None:
        nonlocal frozen
        frozen = time.monotonic()
        one.send_signal(signal.SIGSTOP)

    with pytest.raises(WorkerLost, match="no sign of life from it"):
        load(large, [one], node_progress=Transfer(one, 0.5, freeze))
    assert time.monotonic() - frozen < FROZEN_S
    one.send_signal(signal.SIGCONT)
    one.wait_for(ENDED, 5)
    one.assert_serves(large)


def test_a_frozen_root_is_detected(large, one):
    before = one.rss_mib()
    root = inference(large, one)
    root.wait_for("🔶 Pred")
    root.send_signal(signal.SIGSTOP)
    seconds = wait_until(lambda: "the root is gone: no sign of life from it" in one.output, FROZEN_S)
    assert seconds > 3
    one.assert_serves(large)
    assert one.rss_mib() < before + 16
    root.send_signal(signal.SIGCONT)
    assert root.wait() in (4, 7)  # it finds that its worker has left it
    root.stop()


def test_a_killed_root_frees_its_worker(large, one):
    one.assert_serves(large, 10)
    one.wait_for(ENDED)
    before = one.rss_mib()
    root = inference(large, one)
    root.wait_for("🔶 Pred")
    assert one.rss_mib() > before + 16  # half of the weights
    root.kill()
    seconds = wait_until(lambda: one.rss_mib() < before + 4, FREED_S)
    one.assert_serves(large, FREED_S - seconds)
    root.stop()


def test_a_root_that_ends_frees_its_worker(large, one):
    before = one.rss_mib()
    generate(large, [one], 1)
    assert one.wait_for(ENDED, FREED_S) == f"{ENDED}: the root has ended it"
    assert one.rss_mib() < before + 4


def is_free(worker: WorkerProcess) -> bool:
    """Whether every session that began has ended."""
    return worker.output.count("⭕ The root node has connected") == worker.output.count(ENDED)


class Transfer:
    """Watches the weights of a worker, slows them down, and does something at a share of them."""

    def __init__(self, worker: WorkerProcess, share: float, act) -> None:
        self._name, self._share, self._act = f"worker {worker.address}", share, act
        self.done = self.total = 0
        self._is_done = False

    def __call__(self, name: str, done: int, total: int) -> None:
        if name != self._name:
            return
        if not self._is_done:
            self.done, self.total = done, total
            time.sleep(PAUSE_S)
        if done >= self._share * total and not self._is_done:
            self._is_done = True
            self._act()


def needed_bytes(large: Path, one: WorkerProcess) -> int:
    """Load once more, and give the bytes that the worker was sent."""
    second = Transfer(one, 2, lambda: None)
    load(large, [one], node_progress=second).close()
    return second.total


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_worker_killed_while_it_gets_weights_continues(large, tmp_path, share):
    with workers(tmp_path, 1) as nodes:
        transfer = Transfer(nodes[0], share, lambda: nodes[0].send_signal(signal.SIGKILL))
        with pytest.raises(WorkerLost) as caught:
            load(large, nodes, node_progress=transfer)
        assert caught.value.name == nodes[0].address
        restarted(nodes, 0, tmp_path)
        rest = needed_bytes(large, nodes[0])
        assert transfer.total - transfer.done <= rest <= transfer.total - transfer.done + ON_THE_WAY
        assert needed_bytes(large, nodes[0]) == 0


KILLED_ROOT = """
import os, signal, sys, time
from dllama.engine import Engine
def progress(name, done, total):
    time.sleep(float(sys.argv[4]))
    if name == "worker " + sys.argv[2] and done >= float(sys.argv[3]) * total:
        print(done, total, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
Engine.load(sys.argv[1], num_threads=1, workers=[sys.argv[2]], node_progress=progress)
"""


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_root_killed_while_it_sends_weights_continues(large, one, share):
    before = one.rss_mib()
    command = [sys.executable, "-c", KILLED_ROOT, str(large), one.address, str(share), str(PAUSE_S)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done, total = map(int, killed.stdout.split())
    wait_until(lambda: ENDED in one.output, FREED_S)
    rest = needed_bytes(large, one)
    assert total - done <= rest <= total - done + ON_THE_WAY
    assert needed_bytes(large, one) == 0
    wait_until(lambda: one.rss_mib() < before + 16, FREED_S)


def test_a_damaged_cache_is_mended(large, tmp_path):
    with workers(tmp_path, 1) as (worker,):
        expected = generate(large, [worker], 3)
        tiles = sorted((tmp_path / "cache-0").rglob("?" * 62))
        for tile in tiles[::3]:
            data = bytearray(tile.read_bytes())
            data[len(data) // 2] ^= 1
            tile.write_bytes(data)
        assert generate(large, [worker], 3) == expected
        assert "cached pieces of weights were damaged; the root sends them again" in worker.output


@pytest.mark.parametrize("rounds", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_nothing_leaks_when_roots_are_killed(large, one, rounds):
    """Each at another moment of its life."""
    one.assert_serves(large, 10)
    sizes = []
    for round_ in range(rounds):
        root = inference(large, one)
        root.wait_for(["Socket[0]: connecting", "Network is initialized", "Loading weights", "🔶 Pred"][round_ % 4])
        root.kill()
        root.stop()
        if round_ % 4 == 3:
            one.assert_serves(large, 4)
            wait_until(lambda: is_free(one), FREED_S)
            sizes.append((one.num_fds(), one.num_threads(), one.rss_mib()))
    (first_fds, first_threads, first_rss), (fds, threads, rss) = sizes[0], sizes[-1]
    assert fds <= first_fds
    assert threads <= first_threads
    assert rss < 1.02 * first_rss + 2


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_nothing_leaks_when_workers_are_killed(large, tmp_path, rounds):
    """On the root, which here is this process, and on the worker that stays."""
    with workers(tmp_path, 2) as nodes:
        generate(large, nodes, 1)
        sizes = []
        for round_ in range(rounds):
            with load(large, nodes) as engine:
                error, _ = loss(engine, nodes[1], str(1 + round_ % 3))
            assert error.name == nodes[1].address
            del engine, error
            restarted(nodes, 1, tmp_path)
            wait_until(lambda: is_free(nodes[0]), FREED_S)
            sizes.append((num_fds(os.getpid()), threading.active_count(), nodes[0].num_fds(), nodes[0].rss_mib()))
        (own_first, threads_first, fds_first, rss_first), (own_last, threads_last, fds_last, rss_last) = (
            sizes[0],
            sizes[-1],
        )
        assert own_last <= own_first
        assert threads_last <= threads_first
        assert fds_last <= fds_first
        assert rss_last < 1.02 * rss_first + 4


def test_everything_killed_at_once_starts_again(large, tmp_path):
    with workers(tmp_path, 2) as nodes:
        root = inference(large, *nodes)
        root.wait_for("🔶 Pred")
        for process in (root, *nodes):
            process.send_signal(signal.SIGKILL)
        for index in range(2):
            restarted(nodes, index, tmp_path)
        assert len(generate(large, nodes, 2)) == 2
        root.stop()


def test_a_second_root_is_refused_while_the_first_goes_on(large, tiny, one):
    with load(large, [one]) as engine:
        outputs = engine.generate(PROMPT, GREEDY)
        next(outputs)
        begin = time.monotonic()
        with pytest.raises(ClusterError, match=r"it serves another root, at 127\.0\.0\.1:\d+; wait until") as caught:
            load(tiny.model, [one])
        assert time.monotonic() - begin < 1
        assert one.address in str(caught.value)
        assert [next(outputs).token_id is not None for _ in range(5)] == [True] * 5
    one.wait_for("⭕ Sent a root at 127.0.0.1")
    one.assert_serves(tiny.model)


def test_too_little_memory_on_a_worker_is_said_before_loading(tmp_path, one):
    config = tiny_config(weight_type=DType.F32, num_layers=64, num_heads=8, num_kv_heads=4, max_seq_len=1 << 24)
    write_tiny_model(tmp_path / "long.m", config)
    before = one.rss_mib()
    expected = rf"worker {one.address} needs \d+ MiB of memory \(weights \d+, KV \d+, .*but \d+ MiB are free; it fits"
    with pytest.raises(NotEnoughMemory, match=expected):
        Engine.load(tmp_path / "long.m", workers=[one.address], shares=[1, 3], max_seq_len=1 << 24)
    assert one.rss_mib() < before + 4


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_busy_machine_loses_nobody(large, one, seconds):
    with load(large, [one]) as engine, busy_cores():
        outputs, end = engine.generate(LONG_PROMPT[:3900], GREEDY), time.monotonic() + seconds
        while time.monotonic() < end:
            if next(outputs, None) is None:
                outputs = engine.generate(PROMPT, GREEDY)


def test_an_idle_cluster_rests(large, two):
    with load(large, two) as engine:
        engine.logits(PROMPT)
        time.sleep(0.3)
        before = [*(node.cpu_seconds() for node in two), time.process_time()]
        time.sleep(2)
        after = [*(node.cpu_seconds() for node in two), time.process_time()]
        for begin, end in zip(before, after, strict=True):
            assert end - begin < 0.05 * 2


def test_an_idle_worker_rests(one):
    time.sleep(0.3)  # its start is over
    begin = one.cpu_seconds()
    time.sleep(1)
    assert one.cpu_seconds() - begin < 0.05


def test_a_root_that_only_pulses_keeps_its_worker(one):
    """As one that hashes a large file does."""
    with HostileRoot(one.port) as root:
        assert isinstance(root.receive(), Facts)
