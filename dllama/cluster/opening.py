"""From connected workers to a cluster that is ready for its first step: sizes, links, weights, and how to exchange."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from dllama import _native, machine
from dllama.cluster.assembly import Assembly
from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.manifest import Manifest, manifest_of
from dllama.cluster.protocol import PATIENCE_S, Loaded, Missing, Setup, from_bits
from dllama.cluster.root import Cluster, Peer
from dllama.cluster.tiles import LIST_BYTES, num_tiles
from dllama.cluster.transfer import check_wanted, stream_tiles
from dllama.engine.loading import load_weights
from dllama.engine.sizing import SLACK_BYTES, NodeOptions, NodeSize, make_node_config, settle_sizes
from dllama.errors import ClusterError, NotEnoughMemory
from dllama.plan import Plan, make_plan
from dllama.version import build

if TYPE_CHECKING:
    from dllama.config import ModelConfig
    from dllama.formats.source import ModelSource

Progress = Callable[[str, int, int], None]  # (what or who, bytes done, bytes in all)

_PROBED_TOKENS = (1, 4, 16, 64)
_PROBES = 3
_CLEARLY = 0.9  # of the direct exchange's time: differences below this are noise


def settle_cluster(config: ModelConfig, options: NodeOptions, cluster: Cluster) -> tuple[Plan, list[NodeSize]]:
    """Share the model out among connected nodes, and choose a context that fits what is free on each.

    Raises:
        UsageError: The model cannot be shared so. NotEnoughMemory: It does not fit.
    """
    plan = make_plan(config, cluster.world_size, cluster.shares)
    free = [machine.available_memory(), *(peer.facts.available_memory for peer in cluster.peers if peer.facts)]
    slack = SLACK_BYTES + num_tiles(config) * LIST_BYTES
    with suppress(NotEnoughMemory):  # workers look again, and must not find a little less than what was chosen
        return plan, settle_sizes(config, plan, options, [each - slack for each in free], cluster.names)
    return plan, settle_sizes(config, plan, options, free, cluster.names)


def open_cluster(
    file: ModelSource, options: NodeOptions, cluster: Cluster, progress: Progress
) -> tuple[_native.Node, NodeSize]:
    """Make the root's node and bring every node its weights.

    Args:
        file: The model.
        options: What is wanted of all nodes; threads are this one's.
        cluster: Connected workers. On failure the caller closes it.
        progress: Told how far each node is; the text names the node, or says ``"hashing"``.

    Raises:
        NotEnoughMemory, UsageError: As ``settle_cluster``, here or on a worker.
        BadFile: The file changed or cannot be read.
        ClusterError, WorkerLost: A worker cannot be used, or is gone.
    """

    def watch(name: str, done: int, total: int) -> None:
        cluster.check()  # what takes long ends when a worker is lost
        progress(name, done, total)

    plan, sizes = settle_cluster(file.config, options, cluster)
    manifest = manifest_of(file, partial(watch, "hashing"))
    size = sizes[0]
    agreed = cluster.agree(partial(_setup_of, file, options, cluster, plan, size, manifest))
    group = cluster.link()
    try:
        config = make_node_config(file.config, plan, options, size.max_seq_len, size.num_pages, size.num_slots)
        node = _native.Node(config, group)
    except MemoryError as error:
        raise NotEnoughMemory(f"{error}; use a smaller model, or a shorter context (max_seq_len)") from error
    for peer, answer in agreed.items():
        if not answer.has_manifest:
            _send_manifest(cluster, peer, manifest)
    _bring_weights(file, node, plan, cluster, watch)
    try:
        node.scatter_from = choose_exchange(node, file.config, cluster.world_size, options.max_batch_tokens)
    except _native.GroupFailedError as error:
        raise cluster.explain(error) from error
    cluster.start_counting()
    return node, size


def _setup_of(
    file: ModelSource,
    options: NodeOptions,
    cluster: Cluster,
    plan: Plan,
    size: NodeSize,
    manifest: Manifest,
    peer: Peer,
) -> Setup:
    return Setup(
        rank=peer.rank,
        names=cluster.names,
        hosts=[each.where for each in cluster.peers],
        config=file.config,
        shares=None if cluster.shares is None else list(cluster.shares),
        plan=plan.digest(),
        wire_type=options.wire_type_for(file.config),
        kv_type=options.kv_type_for(file.config),
        max_seq_len=size.max_seq_len,
        kv_tokens=options.kv_tokens or size.max_seq_len,
        max_batch_tokens=options.max_batch_tokens,
        manifest=manifest.id,
        commit=build()["commit"],
    )


def _bring_weights(file: ModelSource, node: _native.Node, plan: Plan, cluster: Cluster, progress: Progress) -> None:
    """Load the root's slices and send the workers what they lack, until all are loaded."""
    own = Assembly(file.config, plan.shards[0], node)
    wanted = _wanted(cluster.gather(Missing), own, plan)
    if wanted:  # one reading of the file serves all
        _send(file, cluster, {0: own.needed, **wanted}, own, progress)
    else:
        load_weights(node, file, plan.shards[0], partial(progress, cluster.names[0]))
    while wanted := _wanted(cluster.gather(Loaded, Missing), own, plan):  # what was damaged in a cache
        _send(file, cluster, wanted, own, progress)


def _wanted(messages: dict[Peer, Missing | Loaded], own: Assembly, plan: Plan) -> dict[int, list[int]]:
    """Give the tiles that each rank lacks, of those that lack some."""
    wanted: dict[int, list[int]] = {}
    for peer, message in messages.items():
        if not isinstance(message, Missing):
            continue
        try:
            indices = from_bits(message.tiles, len(own.tiles))
        except ValueError as error:
            raise ClusterError(f"{peer.title}: it asks for tiles that are none: {error}") from None
        check_wanted(indices, own.needed_by(plan.shards[peer.rank]), peer.title)
        if indices:
            wanted[peer.rank] = indices
    return wanted


def _send(file: ModelSource, cluster: Cluster, wanted: dict[int, list[int]], own: Assembly, progress: Progress) -> None:
    names = cluster.names
    sinks = {peer.rank: partial(_send_tile, cluster.link_of(peer)) for peer in cluster.peers}
    try:
        stream_tiles(
            file, own.tiles, wanted, {0: own.take, **sinks}, lambda rank, *amounts: progress(names[rank], *amounts)
        )
    except ChannelClosed as error:
        raise cluster.explain(error) from None


def _send_manifest(cluster: Cluster, peer: Peer, manifest: Manifest) -> None:
    try:
        cluster.link_of(peer).send_bytes(manifest.raw, PATIENCE_S)
    except ChannelClosed as error:
        raise cluster.explain(error) from None


def _send_tile(link: Channel, _index: int, data: bytes | bytearray | memoryview) -> None:
    link.send_bytes(data, PATIENCE_S)


def choose_exchange(node: _native.Node, config: ModelConfig, world_size: int, max_tokens: int) -> int:
    """Measure from how many tokens in a step on reduce-scatter and all-gather are faster than the direct exchange.

    Both give the same bits. Between two nodes both move the same bytes, and the direct one waits once instead of twice.
    Where sums are normed every node needs all of them, so there is only the direct one.

    Returns:
        Tokens; 0 if it never is.
    """
    if world_size == 2 or config.has_output_norms:
        return 0
    best = 0
    for num_tokens in reversed([count for count in _PROBED_TOKENS if count <= max_tokens]):
        direct, scatter = (
            min(node.probe(num_tokens, is_scatter) for _ in range(_PROBES)) for is_scatter in (False, True)
        )
        if scatter > _CLEARLY * direct:
            break
        best = num_tokens
    return best
