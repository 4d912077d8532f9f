"""A local network on one machine: each host is a network namespace, linked to a bridge at the speed of an Ethernet.

Needs root, and ``ip`` and ``tc`` of iproute2. Nothing of it is seen outside: the bridge has a namespace of its own.
What a killed process has left goes when the next network is made. Used by ``tests/lan`` and ``benchmarks/cluster.py``.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PREFIX = "dllama-lan"
_DEVICE = "eth0"
_numbers = itertools.count(1)  # of this process's networks
_ENDED_S = 5.0  # for killed processes to be gone
# A burst may pass unslowed after a pause. With smaller ones a busy machine, whose timers come late, misses the rate.
_SHAPE = ("root", "tbf", "burst", "128kb", "latency", "50ms", "rate")


def problem() -> str:
    """Say what keeps this process from making networks; empty if nothing does."""
    if os.geteuid():
        return "only root may make network namespaces"
    missing = [command for command in ("ip", "tc") if not shutil.which(command)]
    return f"{' and '.join(missing)} not found; run: sudo apt-get install -y iproute2" if missing else ""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the network.

    Attributes:
        namespace: Its network namespace.
        number: Counts from 1.
    """

    namespace: str
    number: int

    @property
    def ipv4(self) -> str:
        """Its address."""
        return f"10.77.0.{self.number}"

    @property
    def ipv6(self) -> str:
        """Its other address."""
        return f"fd00:77::{self.number}"

    def command(self, *arguments: object) -> list[str]:
        """Give the command line that runs ``arguments`` on this host, in the process that is started."""
        return ["ip", "netns", "exec", self.namespace, *map(str, arguments)]


class Lan:
    """A network, there while the ``with`` block runs; its processes are killed at the end.

    Args:
        num_hosts: 1 to 200.
        rate: Of every link in each direction, as ``tc`` writes it; None: as fast as it goes.

    Attributes:
        hosts: The machines.
    """

    def __init__(self, num_hosts: int, rate: str | None = "1gbit") -> None:
        self._name, self._rate = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}", rate
        self._switch = f"{self._name}-switch"
        self.hosts = [Host(f"{self._name}-{number}", number) for number in range(1, num_hosts + 1)]

    def __enter__(self) -> Self:
        if why := problem():
            raise RuntimeError(f"no local network can be made: {why}")
        remove_strays()
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "bridge", "up", "type", "bridge")
            for host in self.hosts:
                self._add(host)
        except BaseException:
            _remove(self._name)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self._name)

    def unplug(self, host: Host) -> None:
        """Pull a host's cable: what is sent to it and by it is lost without a word."""
        _run("ip", "-n", self._switch, "link", "set", _port(host), "down")

    def plug(self, host: Host) -> None:
        """Plug it in again."""
        _run("ip", "-n", self._switch, "link", "set", _port(host), "up")

    def separate(self, one: Host, other: Host) -> None:
        """Lose what these two send each other, and nothing else: each sends it to a machine that is not there."""
        for sender, receiver in ((one, other), (other, one)):
            for address in (receiver.ipv4, receiver.ipv6):
                where = ("lladdr", "02:00:00:00:00:77", "dev", _DEVICE, "nud", "permanent")
                _run("ip", "-n", sender.namespace, "neigh", "replace", address, *where)

    def _add(self, host: Host) -> None:
        in_host, in_switch = ("ip", "-n", host.namespace), ("ip", "-n", self._switch)
        _run("ip", "netns", "add", host.namespace)
        _run(*in_switch, "link", "add", _port(host), "type", "veth", "peer", _DEVICE, "netns", host.namespace)
        _run(*in_switch, "link", "set", _port(host), "master", "bridge", "up")
        _run(*in_host, "address", "add", f"{host.ipv4}/24", "dev", _DEVICE)
        _run(*in_host, "address", "add", f"{host.ipv6}/64", "dev", _DEVICE, "nodad")
        for device in ("lo", _DEVICE):
            _run(*in_host, "link", "set", device, "up")
        if self._rate:
            for namespace, device in ((host.namespace, _DEVICE), (self._switch, _port(host))):
                _run("tc", "-n", namespace, "qdisc", "add", "dev", device, *_SHAPE, self._rate)


def remove_strays() -> None:
    """Remove the networks of processes that are no more."""
    for name in {name.rpartition("-")[0] for name in _namespaces()}:
        owner = re.fullmatch(rf"{_PREFIX}-(\d+)-\d+", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            _remove(name)


def _port(host: Host) -> str:
    """Name the switch's end of a host's cable."""
    return f"port{host.number}"


def _namespaces() -> list[str]:
    """List the namespaces of all networks."""
    listed = _run("ip", "netns", "list").splitlines()
    return [line.split()[0] for line in listed if line.startswith(f"{_PREFIX}-")]


def _remove(network: str) -> None:
    """Kill the processes of a network and remove its namespaces, which removes all devices."""
    namespaces = [name for name in _namespaces() if name.rpartition("-")[0] == network]
    deadline = time.monotonic() + _ENDED_S
    while (pids := [pid for name in namespaces for pid in _pids(name)]) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in namespaces:
        _run("ip", "netns", "delete", name)


def _pids(namespace: str) -> list[int]:
    return [int(pid) for pid in _run("ip", "netns", "pids", namespace).split()]


def _run(*command: str) -> str:
    """Run a command and give its output; raises RuntimeError with its last words."""
    done = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
