"""How a worker comes by its weights: what it has in its cache, and the rest from the root."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dllama.cluster import protocol
from dllama.cluster.assembly import Assembly
from dllama.cluster.control import Control
from dllama.cluster.manifest import Manifest, manifest_size, parse_manifest
from dllama.cluster.protocol import Missing, Setup
from dllama.cluster.transfer import load_tiles, missing_tiles
from dllama.errors import DllamaError
from dllama.hub.progress import size_text
from dllama.plan import node_name

if TYPE_CHECKING:
    from dllama import _native
    from dllama.cluster.cache import TileCache
    from dllama.cluster.channel import Channel
    from dllama.plan import Plan


_PATIENCE_S = 10.0  # between two lines that say how far loading is


def cached_manifest(setup: Setup, cache: TileCache) -> Manifest | None:
    """Give the manifest that the root means, if it is in the cache."""
    data = cache.read(setup.manifest, manifest_size(setup.config))
    if data is None:
        return None
    try:
        return parse_manifest(setup.config, bytes(data), setup.manifest)
    except DllamaError:
        return None


def receive_manifest(setup: Setup, link: Channel, cache: TileCache) -> Manifest:
    """Receive the manifest from the root and keep it; raises DllamaError if it is not the one it announced."""
    raw = link.receive_bytes(manifest_size(setup.config), protocol.never())
    manifest = parse_manifest(setup.config, raw, setup.manifest)
    cache.write(setup.manifest, raw)
    return manifest


def receive_weights(
    node: _native.Node,
    setup: Setup,
    plan: Plan,
    manifest: Manifest,
    link: Channel,
    control: Control,
    cache: TileCache,
    say: Callable[[str], None],
) -> None:
    """Fill the node, from the cache and from the root, which is told what is missing.

    Raises:
        DllamaError: The root sent something else than it announced. ChannelClosed, Lost: It is gone.
    """
    digests, shard = manifest.digests(), plan.shards[setup.rank]

    def receive(index: int, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        link.receive_into(memoryview(data), protocol.never())
        return data

    assembly = Assembly(setup.config, shard, node)
    missing = missing_tiles(assembly.tiles, assembly.needed, digests, cache)
    while True:
        _tell(assembly, missing, say)
        control.send(Missing(protocol.bits(missing, len(assembly.tiles))))
        missing = load_tiles(assembly, missing, digests, cache, receive, node_name(0), _Teller(say))
        if not missing:
            break
        say(f"⚠️ {len(missing)} cached pieces of weights were damaged; the root sends them again")
        assembly = Assembly(setup.config, shard, node)
    if cache.problem:
        say(f"⚠️ {cache.problem}")


class _Teller:
    """Says how much is loaded, once loading has taken a while.

    Args:
        say: Takes lines.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._next = say, time.monotonic() + _PATIENCE_S

    def __call__(self, done: int, total: int) -> None:
        """Take bytes done, and all of them."""
        if time.monotonic() >= self._next:
            self._say(f"💿 Loaded {size_text(done)} of {size_text(total)}")
            self._next = time.monotonic() + _PATIENCE_S


def _tell(assembly: Assembly, missing: list[int], say: Callable[[str], None]) -> None:
    total, lacking = (
        sum(assembly.tiles[index].num_bytes for index in indices) for indices in (assembly.needed, missing)
    )
    say(f"💿 {size_text(total - lacking)} of {size_text(total)} of weights are in the cache; the root sends the rest")
