"""Flags of the commands that run a model on several machines, and what they show of the others."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dllama.cli.engine_flags import number_type
from dllama.cli.parser import file_name, list_of, number
from dllama.errors import UsageError

if TYPE_CHECKING:
    from dllama.cluster import Cluster

MIB = 1 << 20
_DRAW_S, _LINE_S = 0.2, 10.0  # between two drawings of the bars, and between two lines
_BAR_CELLS = 20
_TIMES, _BYTES = ("compute_us", "sync_us"), ("sent_bytes", "received_bytes")  # counters in the table of nodes
_Show = Callable[[str], None]


def add_cluster_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that ``connect`` and ``engine_options`` read."""
    group = parser.add_argument_group("several machines")
    help_ = "machines that run dllama worker; the model is shared out among them and this one"
    group.add_argument("--workers", nargs="+", action="extend", default=[], metavar="HOST:PORT", help=help_)
    help_ = "weight of each node, this machine first, e.g. 3,1,1 (default: equal)"
    group.add_argument("--shares", type=list_of(number(1e-6, 1e6)), metavar="N,…", help=help_)
    add_key_flag(group)


def add_key_flag(group: argparse._ActionsContainer) -> None:
    """Add the flag of the cluster's key."""
    help_ = "the cluster's key, the same on all machines (or its text in DLLAMA_CLUSTER_KEY)"
    group.add_argument("--key-file", type=file_name, metavar="FILE", help=help_)


def add_wire_flag(group: argparse._ActionsContainer) -> None:
    """Add the flag that ``wire_type`` reads."""
    group.add_argument(
        "--buffer-float-type",
        choices=["f32", "f16", "q80"],
        help="number type of activations between machines (default: q80 for quantized models, else f32)",
    )


def are_workers_given(args: argparse.Namespace) -> bool:
    """Whether the flags name workers; raises UsageError for flags on the command line that are for nothing else."""
    for name in ("shares", "key_file"):
        if not args.workers and name in args.given:
            raise UsageError(f"--{name.replace('_', '-')} goes with --workers HOST:PORT, and none is given")
    return bool(args.workers)


def connect(args: argparse.Namespace, show: _Show) -> Cluster | None:
    """Reach the workers of the flags; None if there are none.

    Raises:
        UsageError: The addresses cannot be used as given. ClusterError: A worker cannot be reached or used.
    """
    if not are_workers_given(args):
        return None
    from dllama.cluster import Cluster
    from dllama.cluster.auth import load_key

    cluster = Cluster(args.workers, load_key(args.key_file), args.shares)
    for index, peer in enumerate(cluster.peers):
        show(f"⭕ Socket[{index}]: connecting to {peer.name} worker")
    cluster.connect()
    for index in range(len(cluster.peers)):
        show(f"⭕ Socket[{index}]: connected")
    show("⭕ Network is initialized")
    for note in cluster.notes():
        show(f"⚠️ {note}")
    return cluster


def wire_type(args: argparse.Namespace) -> Any:
    """Give the number type of ``--buffer-float-type``, None for the default."""
    return number_type(args.buffer_float_type)


class Bars:
    """Shows how far the loading of each node is: bars on a terminal, now and then a line elsewhere.

    Args:
        show: Takes lines.
        is_live: Whether bars may be drawn; None: if standard output is a terminal.
    """

    def __init__(self, show: _Show, is_live: bool) -> None:
        self._show, self._is_live = show, is_live and sys.stdout is not None and sys.stdout.isatty()
        self._states: dict[str, tuple[int, int]] = {}
        self._start = self._last = time.monotonic()
        self._num_drawn = 0
        self._lock = threading.Lock()  # each node's progress comes from a thread of its own

    def __call__(self, name: str, done: int, total: int) -> None:
        """Take how far a node is."""
        with self._lock:
            self._states[name] = done, total
            now = time.monotonic()
            if now - self._last >= (_DRAW_S if self._is_live else _LINE_S):
                self._last = now
                self._draw()

    def close(self) -> None:
        """Remove the bars."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self._num_drawn:
            print(f"\x1b[{self._num_drawn}A\x1b[J", end="", flush=True)
            self._num_drawn = 0

    def _draw(self) -> None:
        if not self._is_live:
            parts = [f"{name} {done // MIB}/{total // MIB} MB" for name, (done, total) in self._states.items()]
            self._show(f"💿 Loaded {', '.join(parts)}")
            return
        self._clear()
        width = max(len(name) for name in self._states)
        for name, (done, total) in self._states.items():
            filled = _BAR_CELLS * done // total if total else _BAR_CELLS
            bar = "█" * filled + "░" * (_BAR_CELLS - filled)
            print(f"💿 {name:{width}} {bar} {done // MIB}/{total // MIB} MB", flush=True)
        self._num_drawn = len(self._states)


def node_table(nodes: list[dict[str, int | str]]) -> list[str]:
    """Write what each node did: time spent computing and waiting for others, bytes, and which was the slowest."""
    if len(nodes) < 2:
        return []
    width = max(len(str(node["name"])) for node in nodes)
    lines = ["Nodes", f"   {'':{width}}  {'compute':>10}  {'waiting':>10}  {'sent':>10}  {'received':>10}"]
    for node in nodes:
        ms, kb = ([int(node.get(name, 0)) for name in names] for names in (_TIMES, _BYTES))
        times, data = (f"{number // 1000:>7d} ms" for number in ms), (f"{number // 1024:>7d} kB" for number in kb)
        lines.append(f"   {node['name']:{width}}  {'  '.join([*times, *data])}")
    lines.append(f"   slowest: {slowest(nodes)}")
    return lines


def slowest(nodes: list[dict[str, int | str]]) -> str:
    """Name the node that computed for the longest time: the others wait for it."""
    return str(max(nodes, key=lambda node: int(node.get("compute_us", 0)))["name"])
