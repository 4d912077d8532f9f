"""Clusters over links of 1 Gbit/s: right on any number of nodes, closed to strangers, and no hang without a cable."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster_world import Process, WorkerProcess, wait_until  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.errors import ClusterError, UsageError, WorkerLost
from tools.lan import Host, Lan

DEMO = Path(__file__).resolve().parents[2] / "dllama" / "demo" / "model.m"
PORT = 9999
STEPS = 64
KEY = "a key of the tests, long enough"
GREEDY = ("--prompt", "Once upon a time", "--temperature", 0, "--ignore-eos", "--nthreads", 1)
DETECTED_S = 10.0  # the time to notice a cable pulled
SEPARATED_S = 12.0  # and that two workers do not hear each other
OUTAGE_S = 2.0  # that a cluster lives through


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan(4) as network:
        yield network


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a model whose greedy tokens depend on rounding alone where all else is right."""
    path = tmp_path_factory.mktemp("lan") / "tiny.m"
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_heads": 8, "num_kv_heads": 4, "max_seq_len": 1 << 17}
    write_tiny_model(path, tiny_config(weight_type=DType.F32, **sizes))
    write_tiny_tokenizer(path.with_suffix(".t"))
    return path


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "cluster.key"
    path.write_text(KEY)
    return path


@contextmanager
def workers(hosts: Sequence[Host], folder: Path, key: Path, *, is_ipv6: bool = False) -> Iterator[list[WorkerProcess]]:
    """Run a worker on each host, each listening on its host's address alone."""
    with ExitStack() as stack:
        started = []
        for host in hosts:
            flags = ("--host", host.ipv6 if is_ipv6 else host.ipv4, "--key-file", key)
            worker = WorkerProcess(folder / f"cache-{host.number}", *flags, port=PORT, within=host.command())
            started.append(stack.enter_context(worker))
        yield started


def addresses(hosts: Sequence[Host], *, is_ipv6: bool = False) -> list[str]:
    return [f"[{host.ipv6}]:{PORT}" if is_ipv6 else f"{host.ipv4}:{PORT}" for host in hosts]


def inference(model: Path, *flags: object) -> tuple[object, ...]:
    return ("inference", "--model", model, *GREEDY, *flags)


def run(host: Host, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command on a host to its end."""
    command = host.command(sys.executable, "-m", "dllama", *arguments)
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)


def tokens(host: Host, model: Path, *flags: object) -> list[int]:
    """Give the greedy tokens of a root on a host."""
    done = run(host, *inference(model, "--steps", STEPS, "--json", *flags))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["token_ids"]
    assert len(found) == STEPS
    return found


@contextmanager
def generating(root: Host, model: Path, *flags: object) -> Iterator[Process]:
    """Run a root that generates for minutes, and wait until it does."""
    process = Process(*inference(model, "--steps", 0, *flags), within=root.command())
    try:
        for _ in range(10):
            process.wait_for("Pred")
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize("num_nodes", [2, 3, 4])
@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_any_number_of_nodes_gives_the_tokens_of_one(
    lan: Lan, tiny: Path, key_file: Path, tmp_path: Path, name: str, num_nodes: int
) -> None:
    model = tiny if name == "tiny" else DEMO
    root, *others = lan.hosts[:num_nodes]
    wire = ("--buffer-float-type", "f32")
    with workers(others, tmp_path, key_file):
        found = tokens(root, model, *wire, "--key-file", key_file, "--workers", *addresses(others))
    assert found == tokens(root, model, *wire)


def test_ipv6(lan: Lan, tiny: Path, key_file: Path, tmp_path: Path) -> None:
    root, *others = lan.hosts[:3]
    with workers(others, tmp_path, key_file, is_ipv6=True):
        names = addresses(others, is_ipv6=True)
        assert tokens(root, tiny, "--key-file", key_file, "--workers", *names) == tokens(root, tiny)


def test_no_worker_for_the_network_without_a_key(lan: Lan) -> None:
    host = lan.hosts[1]
    for address in (host.ipv4, host.ipv6, "0.0.0.0", "::"):
        done = run(host, "worker", "--port", PORT, "--host", address)
        assert done.returncode == UsageError.exit_code
        assert "give --key-file FILE" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_root_must_know_the_key(lan: Lan, tiny: Path, key_file: Path, tmp_path: Path) -> None:
    root, other = lan.hosts[:2]
    wrong = tmp_path / "wrong.key"
    wrong.write_text("a key that nobody else has")
    names = addresses([other])
    with workers([other], tmp_path, key_file) as (worker,):
        for flags, why in ((("--key-file", wrong), "does not accept this key"), ((), "asks for a key")):
            done = run(root, *inference(tiny, "--steps", 1, *flags, "--workers", *names))
            assert done.returncode == ClusterError.exit_code
            assert f"worker {names[0]}" in done.stderr
            assert why in done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert worker.wait_for(f"Sent {root.ipv4}", 5)
        assert len(tokens(root, tiny, "--key-file", key_file, "--workers", *names)) == STEPS


@pytest.mark.parametrize(
    ("flags", "local"),
    [
        (("--host", "IPV4", "--key-file", "KEY"), "IPV4"),
        (("--host", "IPV6", "--key-file", "KEY"), "[IPV6]"),
        ((), "127.0.0.1"),
        (("--key-file", "KEY"), "*"),
    ],
)
def test_a_worker_listens_where_it_was_told(
    lan: Lan, key_file: Path, tmp_path: Path, flags: tuple[str, ...], local: str
) -> None:
    host = lan.hosts[1]
    meanings = {"IPV4": host.ipv4, "IPV6": host.ipv6, "[IPV6]": f"[{host.ipv6}]", "KEY": str(key_file)}
    arguments = [meanings.get(flag, flag) for flag in flags]
    with WorkerProcess(tmp_path, *arguments, port=PORT, within=host.command()):
        listed = subprocess.run(host.command("ss", "-Hltn"), capture_output=True, encoding="utf-8", check=True)
    assert [line.split()[3] for line in listed.stdout.splitlines()] == [f"{meanings.get(local, local)}:{PORT}"]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_cable_pulled_out_of_a_worker(tiny: Path, key_file: Path, tmp_path: Path, lost: int) -> None:
    with Lan(3) as network, workers(network.hosts[1:], tmp_path, key_file) as nodes:
        root, *others = network.hosts
        names = addresses(others)
        with generating(root, tiny, "--key-file", key_file, "--workers", *names) as process:
            network.unplug(others[lost - 1])
            begin = time.monotonic()
            assert process.wait(DETECTED_S + 10) == WorkerLost.exit_code
            assert time.monotonic() - begin < DETECTED_S
        assert f"worker {names[lost - 1]}" in process.lines[-1]
        assert names[2 - lost] not in process.lines[-1]
        nodes[2 - lost].wait_for("The session is over", 5)
        nodes[lost - 1].wait_for("The session is over", DETECTED_S)


def test_a_cable_that_is_back_in_time(lan: Lan, tiny: Path, key_file: Path, tmp_path: Path) -> None:
    root, *others = lan.hosts[:3]
    names = addresses(others)
    with (
        workers(others, tmp_path, key_file),
        generating(root, tiny, "--key-file", key_file, "--workers", *names) as process,
    ):
        lan.unplug(others[0])
        time.sleep(OUTAGE_S)
        num_lines = len(process.lines)
        lan.plug(others[0])
        wait_until(lambda: len(process.lines) > num_lines + 5, DETECTED_S)
        assert process.is_alive


def test_two_workers_that_do_not_hear_each_other(tiny: Path, key_file: Path, tmp_path: Path) -> None:
    with Lan(3) as network, workers(network.hosts[1:], tmp_path, key_file) as nodes:
        root, *others = network.hosts
        with generating(root, tiny, "--key-file", key_file, "--workers", *addresses(others)) as process:
            network.separate(*others)
            begin = time.monotonic()
            assert process.wait(SEPARATED_S + 10) in (WorkerLost.exit_code, ClusterError.exit_code)
            assert time.monotonic() - begin < SEPARATED_S
        assert any(f"worker {name}" in process.lines[-1] for name in addresses(others))
        for worker in nodes:
            worker.wait_for("The session is over", 5)
