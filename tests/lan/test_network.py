"""The network of namespaces itself: as fast as it says, alone, and gone when it should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.lan import Host, Lan

MEGABYTES = 30
RECEIVE = """
import socket, time
with socket.create_server(("0.0.0.0", 9000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    begin, received = time.perf_counter(), 0
    while data := connection.recv(1 << 20):
        received += len(data)
    print(received / (time.perf_counter() - begin))
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000)) as connection:
    connection.sendall(bytes(int(sys.argv[2]) * 10**6))
"""
LEAVE = "import os, signal, tools.lan as lan; lan.Lan(2).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, encoding="utf-8").stdout
    return [line.split()[0] for line in listed.splitlines()]


def transfer(sender: Host, receiver: Host) -> float:
    """Send some megabytes and give the bytes per second."""
    with subprocess.Popen(
        receiver.command(sys.executable, "-c", RECEIVE), stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        subprocess.run(sender.command(sys.executable, "-c", SEND, receiver.ipv4, MEGABYTES), check=True)
        return float(process.stdout.read())


def test_links_are_no_faster_than_they_say() -> None:
    with Lan(2, "200mbit") as lan:
        one, other = lan.hosts
        for rate in (transfer(one, other), transfer(other, one)):
            assert 5e6 < rate < 1.05 * 200e6 / 8


def test_two_networks_side_by_side_do_not_meet() -> None:
    with Lan(1) as one, Lan(2) as other:
        names = [host.namespace for lan in (one, other) for host in lan.hosts]
        assert len({*names}) == 3
        assert {*names} < {*namespaces()}
    assert not {*names} & {*namespaces()}


def test_processes_end_with_their_network() -> None:
    with pytest.raises(ZeroDivisionError), Lan(1) as lan:  # noqa: PT012
        process = subprocess.Popen(lan.hosts[0].command("sleep", 60))
        raise ZeroDivisionError
    assert process.wait(5) == -signal.SIGKILL
    assert not any(name.startswith(f"dllama-lan-{os.getpid()}-") for name in namespaces())


def test_what_a_killed_process_left_goes_when_the_next_network_is_made() -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", LEAVE], cwd=root) as process:
        assert process.wait() == -signal.SIGKILL
    left = [name for name in namespaces() if name.startswith(f"dllama-lan-{process.pid}-")]
    assert len(left) == 3
    with Lan(1):
        assert not {*left} & {*namespaces()}
