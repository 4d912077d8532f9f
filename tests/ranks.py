"""Several ranks in one process: each rank its own node in a thread, linked by socket pairs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from dllama import _native
from dllama.engine import Engine
from dllama.engine.loading import load_weights
from dllama.engine.sizing import NodeOptions, make_node_config, settle_size
from dllama.formats.m_file import open_m_file
from dllama.formats.source import ModelSource
from dllama.plan import make_plan


def make_groups(world_size: int) -> list[_native.Group]:
    links: list[dict[int, socket.socket]] = [{} for _ in range(world_size)]
    for a, b in combinations(range(world_size), 2):
        links[a][b], links[b][a] = socket.socketpair()
    groups = [_native.Group(rank, [link[peer].fileno() for peer in sorted(link)]) for rank, link in enumerate(links)]
    for link in links:
        for end in link.values():
            end.close()
    return groups


@contextmanager
def ranks(
    model: Path | ModelSource, world_size: int, shares=None, scatter_from: int = 0, **options
) -> Iterator[Engine]:
    """An engine on rank 0, with followers in threads; it must end all of them."""
    node_options = NodeOptions(**options)
    file = open_m_file(model) if isinstance(model, Path) else model
    plan = make_plan(file.config, world_size, shares)
    size = settle_size(file.config, plan, 0, node_options, 1 << 40)
    config = make_node_config(file.config, plan, node_options, size.max_seq_len, size.num_pages, size.num_slots)
    nodes = [_native.Node(config, group) for group in make_groups(world_size)]
    for node, shard in zip(nodes, plan.shards, strict=True):
        load_weights(node, file, shard)
    nodes[0].scatter_from = scatter_from
    threads = [threading.Thread(target=node.follow) for node in nodes[1:]]
    for thread in threads:
        thread.start()
    try:
        with Engine(nodes[0], file, None, node_options, size) as engine:
            yield engine
    finally:
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
