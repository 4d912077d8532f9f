"""Making the nodes that an engine runs on: one on this machine, or one here and one on each worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING

from dllama import _native, machine
from dllama.engine.loading import Progress, open_node
from dllama.engine.sizing import SLACK_BYTES, NodeOptions, NodeSize, settle_size
from dllama.errors import NotEnoughMemory, UsageError
from dllama.plan import make_plan

if TYPE_CHECKING:
    from dllama.cluster import Cluster
    from dllama.config import ModelConfig
    from dllama.formats.source import ModelSource

NodeProgress = Callable[[str, int, int], None]  # (name of a node, bytes done, bytes in all)


@dataclass(frozen=True, slots=True)
class Nodes:
    """This machine's node with its size, and the workers that go with it, if there are any."""

    root: _native.Node
    size: NodeSize
    cluster: Cluster | None = None


def join(
    workers: Sequence[str] | Cluster | None, shares: Sequence[float] | None, key_file: str | PathLike[str] | None
) -> Cluster | None:
    """Connect to workers, unless that is done already; None if there are none.

    Raises:
        UsageError: Shares or a key without workers to use them for. ClusterError: A worker cannot be reached or used.
    """
    from dllama.cluster import Cluster
    from dllama.cluster.auth import load_key

    is_none = workers is None or (not workers and isinstance(workers, list | tuple))
    if is_none or isinstance(workers, Cluster):
        for name, value in (("shares", shares), ("key_file", key_file)):
            if value is not None:
                raise UsageError(f"{name}: goes with addresses of workers (workers), and there are none")
        return workers if isinstance(workers, Cluster) else None
    assert workers is not None
    cluster = Cluster(workers, load_key(None if key_file is None else fspath(key_file)), shares)
    cluster.connect()
    return cluster


def settle(config: ModelConfig, options: NodeOptions, cluster: Cluster | None) -> NodeSize:
    """Choose the context and say what this machine's node needs.

    Raises:
        NotEnoughMemory: It does not fit, here or on a worker. UsageError: The model cannot be shared out so.
    """
    if cluster is None:
        free, plan = machine.available_memory(), make_plan(config)
        with suppress(NotEnoughMemory):
            return settle_size(config, plan, 0, options, free - SLACK_BYTES)
        return settle_size(config, plan, 0, options, free)
    from dllama.cluster.opening import settle_cluster

    _, sizes = settle_cluster(config, options, cluster)
    return sizes[0]


def open_nodes(
    file: ModelSource,
    options: NodeOptions,
    cluster: Cluster | None,
    progress: Progress | None,
    node_progress: NodeProgress | None,
) -> Nodes:
    """Make all nodes and bring them their weights; a cluster is closed if that fails.

    Raises:
        As ``open_node`` and ``cluster.opening.open_cluster``.
    """
    if cluster is None:
        return Nodes(*open_node(file, options, progress))
    from dllama.cluster.opening import open_cluster

    try:
        node, size = open_cluster(file, options, cluster, node_progress or (lambda _name, _done, _total: None))
    except BaseException as error:
        cluster.close()
        _forget_locals(error)
        raise
    return Nodes(node, size, cluster)


def _forget_locals(error: BaseException | None) -> None:
    """Let go of what the frames of an error refer to: who keeps the error would keep the node, and so all weights."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
