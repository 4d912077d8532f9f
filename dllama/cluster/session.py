"""One root's session on a worker, from its first message to the freeing of all memory.

Everything that the root says is checked against what this worker computes itself: the plan, the sizes, the memory that
is free. What the worker allocates is what the agreed plan needs, and it connects to nobody but the workers that its
root has named.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dllama import _native, machine
from dllama.cluster import handshake, protocol
from dllama.cluster.addresses import Address, Silence, connect
from dllama.cluster.auth import link_key
from dllama.cluster.cache import TileCache
from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.control import ENDED, LOST_S, Control, Lost
from dllama.cluster.protocol import Agreed, Connect, Facts, Failed, Hello, Linked, Loaded, Refused, Setup, shown
from dllama.cluster.reception import cached_manifest, receive_manifest, receive_weights
from dllama.cluster.tiles import LIST_BYTES, num_tiles, tiles_of
from dllama.engine.sizing import NodeOptions, NodeSize, make_node_config, settle_size
from dllama.errors import ClusterError, DllamaError
from dllama.plan import Plan, make_plan
from dllama.version import build, isa

MIB = 1 << 20
MOST_TILES = 1 << 20  # of a model; Llama 3.1 405B has 625 thousand
LINK_S = 20.0  # for all other nodes to link to this one
_Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker's user decides.

    Attributes:
        num_threads: Compute threads.
        key: The cluster's key; None: anybody who can connect may use this worker.
        cache_dir: Where weights are kept for the next time.
        cache_bytes: Most bytes kept there; 0: none are.
    """

    num_threads: int
    cache_dir: Path
    cache_bytes: int
    key: bytes | None = None


class Session:
    """Serves one root.

    Args:
        channel: The control connection, authenticated; the session closes it.
        session_id: The cluster's name for itself, which its links carry too.
        options: The worker's.
        say: Takes lines for the worker's user.
    """

    def __init__(self, channel: Channel, session_id: bytes, options: WorkerOptions, say: _Say) -> None:
        self.session_id, self.root = session_id, channel.peer
        self._channel, self._options, self._say = channel, options, say
        self._links: dict[int, Channel] = {}
        self._linked = threading.Condition()
        self._setup: Setup | None = None
        self._control: Control | None = None
        self._group: _native.Group | None = None
        self._node: _native.Node | None = None
        self._silences: dict[int, Silence] = {}  # of links to other workers
        self._accused = 0  # the rank of a worker that is no longer heard
        self._lost = ""  # why the session is over

    @property
    def is_ending(self) -> bool:
        """Whether it is over, and only its memory is not freed yet."""
        return bool(self._lost)

    def run(self) -> None:
        """Serve the root until it ends the session, is lost, or something fails; frees everything."""
        self._say(f"⭕ The root node has connected: {self.root}")
        try:
            self._control = Control(self._channel, self._counters, self._leave)
            self._serve(self._control)
            self._leave(ENDED)
        except (Lost, ChannelClosed) as error:
            self._leave(str(error))
        except _native.GroupFailedError as error:
            self._fail(str(error), self._failed_rank())
        except DllamaError as error:
            self._fail(str(error), self._rank, error.exit_code)
        except MemoryError as error:
            self._fail(str(error) or "the system refused memory", self._rank, 5)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not end the worker
            self._fail(f"internal error: {type(error).__name__}: {error}", self._rank)
        self._free()
        self._say(f"🛑 The session is over: {self._lost}")

    def _leave(self, reason: str) -> None:
        """End the session as the root has ended it, or is gone."""
        self.abort("the root has ended it" if reason == ENDED else f"the root is gone: {reason}")

    def abort(self, reason: str) -> None:
        """End the session from any thread: all its waits end, and its memory is freed."""
        self._lost = self._lost or reason
        group = self._group  # ``_free`` forgets it meanwhile
        if group is not None:
            group.abort(reason)
        with self._linked:
            for link in self._links.values():
                link.shut()
            self._linked.notify_all()
        self._channel.shut()

    def expects(self, session_id: bytes, rank: int) -> bool:
        """Whether a link from node ``rank`` is due."""
        return (
            session_id == self.session_id
            and self._setup is not None
            and 0 <= rank < self._setup.rank
            and rank not in self._links
            and not self._lost
        )

    def add_link(self, rank: int, link: Channel) -> None:
        """Take an authenticated link from a node of lower rank."""
        with self._linked:
            if not self.expects(self.session_id, rank):
                link.close()
                return
            self._links[rank] = link
            self._linked.notify_all()

    @property
    def _rank(self) -> int:
        return self._setup.rank if self._setup else -1

    def _counters(self) -> dict[str, int]:
        """Give what goes into a pulse; every second the moment to look after links that have no pulses."""
        for rank, silence in [*self._silences.items()]:
            if silence.seconds() > LOST_S:
                self._accuse(rank)
        node = self._node
        return node.counters() if node is not None else {}

    def _accuse(self, rank: int) -> None:
        """End the session because the node of ``rank`` is not heard, though its link has not ended."""
        self._accused, group = rank, self._group
        if group is not None and self._setup is not None:
            group.abort(f"no sign of life from {self._setup.names[rank]}")

    def _failed_rank(self) -> int:
        failed = self._group.failed_rank if self._group is not None else None
        return self._accused or (self._rank if failed is None else failed)

    def _serve(self, control: Control) -> None:
        control.send(_facts(self._options))
        setup = control.receive(Setup)
        try:
            plan, options, size = check_setup(setup, self._options.num_threads)
        except DllamaError as error:
            self._say_last(Refused(shown(str(error)), error.exit_code))
            return
        self._setup = setup
        cache = TileCache(self._options.cache_dir, self._options.cache_bytes)
        manifest = cached_manifest(setup, cache)
        if setup.commit != _commit():
            self._say(f"⚠️ The root is of another build, commit {setup.commit}; this one's is {_commit()}")
        self._say(f"⭕ nNodes: {len(setup.names)}")
        self._say(f"⭕ NodeIndex: {setup.rank}")
        self._say(f"📀 RequiredMemory: {size.memory.total // MIB} MB")
        control.send(Agreed(manifest is not None))
        control.receive(Connect)
        self._link_up(setup)
        self._node = self._make_node(setup, plan, options, size)
        control.send(Linked())
        manifest = manifest or receive_manifest(setup, self._links[0], cache)
        receive_weights(self._node, setup, plan, manifest, self._links[0], control, cache, self._say)
        machine.give_back_freed_memory()
        control.send(Loaded())
        self._say("💿 Weights loaded")
        self._node.follow()

    def _link_up(self, setup: Setup) -> None:
        """Link to the nodes of higher rank, and wait for those of lower rank to link to this one."""
        key = link_key(self._options.key, self.session_id)
        for rank in range(setup.rank + 1, len(setup.names)):
            self._open_link(setup, rank, key)
        with self._linked:
            self._linked.wait_for(lambda: self._lost or len(self._links) == len(setup.names) - 1, LINK_S)
            absent = set(range(setup.rank)) - {*self._links}
            self._silences = {rank: Silence(link.socket) for rank, link in self._links.items() if rank > 0}
        if self._lost:
            raise Lost(self._lost)
        if absent:
            raise ClusterError(f"{setup.names[min(absent)]} has not linked to it within {LINK_S:.0f} s")

    def _open_link(self, setup: Setup, rank: int, key: bytes) -> None:
        """Link to the worker of ``rank``; raises ClusterError if it cannot be reached, or is another."""
        name = setup.names[rank]
        link = Channel(connect(Address(*setup.hosts[rank - 1]), name))
        with self._linked:
            self._links[rank] = link
        if self._lost:  # while it was connecting; from here on the handshake is ended by ``abort``
            raise Lost(self._lost)
        handshake.connect(link, Hello("link", b"", False, self.session_id, setup.rank), key, name)

    def _make_node(self, setup: Setup, plan: Plan, options: NodeOptions, size: NodeSize) -> _native.Node:
        others = sorted(self._links)
        fds = [self._links[rank].socket.fileno() for rank in others]
        self._group = _native.Group(setup.rank, fds, [setup.names[rank] for rank in others])
        if self._lost:
            raise Lost(self._lost)
        config = make_node_config(setup.config, plan, options, size.max_seq_len, size.num_pages, size.num_slots)
        return _native.Node(config, self._group)

    def _fail(self, reason: str, rank: int, exit_code: int = 4) -> None:
        """Tell the root, unless it is gone, and end the session."""
        if not self._lost:
            self._say_last(Failed(shown(reason), rank, exit_code))

    def _say_last(self, message: Refused | Failed) -> None:
        """End the session with these words to the root, and give it time to read them."""
        self._lost = message.reason
        with suppress(Lost):
            if self._control is not None:
                self._control.send(message)
                self._control.finish()

    def _free(self) -> None:
        if self._control is not None:
            self._control.close()
        self._channel.close()
        self._node = self._group = None
        with self._linked:
            for link in self._links.values():
                link.close()
            self._links.clear()
        tiles_of.cache_clear()
        gc.collect()  # what failed may be in a circle of an exception and its frames, and hold the node's memory
        machine.give_back_freed_memory()


@cache
def _commit() -> str:
    return build()["commit"]


def _facts(options: WorkerOptions) -> Facts:
    return Facts(_commit(), isa(), options.num_threads, machine.available_memory())


def check_setup(setup: Setup, num_threads: int) -> tuple[Plan, NodeOptions, NodeSize]:
    """Compute the plan and this node's sizes, and compare them with the root's and with the memory that is free.

    Raises:
        ClusterError: The root's numbers cannot be.
        NotEnoughMemory: This machine has no room for its part.
    """
    world_size = len(setup.names)
    if not (0 < setup.rank < world_size <= protocol.MAX_NODES and len(setup.hosts) == world_size - 1):
        raise ClusterError(f"the root sent rank {setup.rank} of {world_size} nodes at {len(setup.hosts)} addresses")
    if problem := setup.config.problem():  # before anything is computed from its sizes
        raise ClusterError(f"the root sent a model that cannot be: {problem}")
    if (count := num_tiles(setup.config)) > MOST_TILES:
        raise ClusterError(f"the root sent a model of {count} tiles, expected at most {MOST_TILES}")
    plan = make_plan(setup.config, world_size, setup.shares)
    if plan.digest() != setup.plan:
        raise ClusterError("root and worker compute different plans; install the same version of dllama on both")
    options = NodeOptions(
        num_threads=num_threads,
        max_seq_len=setup.max_seq_len,
        max_batch_tokens=setup.max_batch_tokens,
        kv_type=setup.kv_type,
        kv_tokens=setup.kv_tokens,
        wire_type=setup.wire_type,
    )
    available = machine.available_memory() - count * LIST_BYTES
    return plan, options, settle_size(setup.config, plan, setup.rank, options, available)
