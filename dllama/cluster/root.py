"""The root's side: reaches the workers, agrees with them on a plan, links all nodes, and watches over them.

What goes wrong with a worker ends in an error that names it as the user did. ``Cluster`` owns every connection; closing
it ends the sessions of all workers, whose memory is then free.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from dllama import _native
from dllama.cluster import handshake, protocol
from dllama.cluster.addresses import Address, check_distinct, connect, number_of, parse_address
from dllama.cluster.auth import link_key
from dllama.cluster.channel import Channel
from dllama.cluster.control import Control, Lost, Said
from dllama.cluster.protocol import Agreed, Bye, Connect, Facts, Failed, Hello, Linked, Loaded, Message, Setup, shown
from dllama.errors import ClusterError, DllamaError, NotEnoughMemory, UsageError, WorkerLost
from dllama.plan import node_name
from dllama.version import build

COUNTERS = ("steps", "tokens", "compute_us", "sync_us", "sent_bytes", "received_bytes")
_VERDICT_S = 1.0  # for the news of a node's end to arrive from all sides
_LAST_PULSE_S = 1.0
_Wanted = TypeVar("_Wanted", bound=Message)
_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class Peer:
    """A worker as the root sees it.

    Attributes:
        where: Host and port for other workers, once it is connected.
    """

    name: str
    address: Address
    rank: int
    where: tuple[str, int] = ("", 0)
    meeting: Channel | None = None  # of the control connection, from before its handshake
    control: Control | None = None
    facts: Facts | None = None
    link: Channel | None = None
    is_loaded: bool = False
    counted: dict[str, int] = field(default_factory=dict)  # counters before there was work

    @property
    def title(self) -> str:
        """How it is called in messages."""
        return f"worker {self.name}"


class Cluster:
    """The workers of one root. Use ``connect``, then ``agree``, then ``link``; ``close`` at any time.

    Args:
        workers: Their addresses, ``"host:port"``, in the order of ranks 1, 2 and so on.
        key: The cluster's key, as ``auth.load_key`` gives it; None: the workers must have none.
        shares: Weight of each node, the root first; None: equal.

    Attributes:
        peers: The workers by rank, the first of rank 1.

    Raises:
        UsageError: The addresses cannot be used as given. ClusterError: A name that nobody knows.
    """

    def __init__(self, workers: Sequence[str], key: bytes | None = None, shares: Sequence[float] | None = None) -> None:
        if isinstance(workers, str) or not all(isinstance(text, str) for text in workers) or not workers:
            raise UsageError(f"workers: expected a list of addresses, host:port, found {workers!r:.80}")
        if len(workers) >= protocol.MAX_NODES:
            raise UsageError(f"workers: expected at most {protocol.MAX_NODES - 1}, found {len(workers)}")
        addresses = [parse_address(text) for text in workers]
        check_distinct(addresses)
        self._key, self.shares, self._session = key, shares, os.urandom(protocol.SESSION_BYTES)
        self.peers = [Peer(str(address), address, rank) for rank, address in enumerate(addresses, 1)]
        self._group: _native.Group | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def world_size(self) -> int:
        """Nodes, the root included."""
        return len(self.peers) + 1

    @property
    def names(self) -> list[str]:
        """What nodes are called in messages, by rank."""
        return [node_name(0), *(peer.title for peer in self.peers)]

    def connect(self) -> None:
        """Reach all workers at once and learn what they are.

        Raises:
            ClusterError: One cannot be reached, does not know the key, or serves another root; all are left then.
        """
        try:
            self._all(self._connect, self.peers)
        except BaseException:
            self.close()
            raise

    def agree(self, setup: Callable[[Peer], Setup]) -> dict[Peer, Agreed]:
        """Have all workers check their part of a plan, and give their answers.

        Raises:
            NotEnoughMemory: One lacks memory. ClusterError: One cannot do its part. WorkerLost: One is gone.
        """

        def ask(peer: Peer) -> Agreed:
            self._tell(peer, setup(peer))
            return self._receive(peer, Agreed)

        return self._all(ask, self.peers)

    def link(self) -> _native.Group:
        """Link all nodes with each other, and give the root's group.

        Raises:
            WorkerLost: One is gone. ClusterError: One cannot be linked to.
        """

        def open_link(peer: Peer) -> None:
            key = link_key(self._key, self._session)
            try:
                peer.link = Channel(connect(peer.address, peer.title))
                handshake.connect(peer.link, Hello("link", b"", False, self._session), key, peer.title)
            except ClusterError as error:  # perhaps for its process has ended
                raise self.explain(error) from None
            self._tell(peer, Connect())
            self._receive(peer, Linked)

        self._all(open_link, self.peers)
        fds = [peer.link.socket.fileno() for peer in self.peers if peer.link is not None]
        self._group = _native.Group(0, fds, [peer.title for peer in self.peers])
        return self._group

    def control(self, peer: Peer) -> Control:
        """Give a worker's control connection, which ``connect`` has made."""
        assert peer.control is not None
        return peer.control

    def link_of(self, peer: Peer) -> Channel:
        """Give the link to a worker, which ``link`` has made."""
        assert peer.link is not None
        return peer.link

    def notes(self) -> list[str]:
        """Say what users should know of these workers."""
        commit = build()["commit"]
        return [
            f"{peer.title} is of another build, commit {shown(peer.facts.commit)}; this one's is {commit}"
            for peer in self.peers
            if peer.facts and peer.facts.commit != commit
        ]

    def gather(self, *wanted: type[_Wanted]) -> dict[Peer, _Wanted]:
        """Receive a message of one of these types from every worker that has not said that it is loaded.

        Raises:
            WorkerLost: One is gone. ClusterError, NotEnoughMemory: One cannot go on.
        """
        messages = self._all(lambda peer: self._receive(peer, *wanted), [p for p in self.peers if not p.is_loaded])
        for peer, message in messages.items():
            peer.is_loaded = isinstance(message, Loaded)
        return messages

    def counters(self) -> list[dict[str, int]]:
        """Give the counters of all workers since ``start_counting``, by rank."""
        return [
            {name: value - peer.counted.get(name, 0) for name, value in counters.items()}
            for peer, counters in self._ask_counters().items()
        ]

    def start_counting(self) -> None:
        """Let the counters begin anew: what was measured when the cluster was opened is no work."""
        for peer, counters in self._ask_counters().items():
            peer.counted = counters

    def _ask_counters(self) -> dict[Peer, dict[str, int]]:
        def ask(peer: Peer) -> dict[str, int]:
            counters = self.control(peer).ask_pulse(_LAST_PULSE_S)
            return {name: counters.get(name, 0) for name in COUNTERS}

        return self._all(ask, self.peers)

    def check(self) -> None:
        """Raise WorkerLost if a worker is gone; for work that does not need the workers but takes long."""
        for peer in self.peers:
            if peer.control and peer.control.reason:
                raise self.explain(WorkerLost(peer.name, peer.control.reason))

    def explain(self, error: Exception) -> DllamaError:
        """Turn the failure of an exchange into an error that names the worker it is about.

        News come from several sides within moments: who is gone without a word is the one, not who complains of it.
        """
        deadline = time.monotonic() + _VERDICT_S
        while True:
            failures = [(peer, self.control(peer).failure) for peer in self.peers if peer.control]
            for peer, failure in failures:
                if peer.control and peer.control.reason and failure is None:
                    return WorkerLost(peer.name, peer.control.reason)
            for peer, failure in failures:
                if failure is not None and failure.rank == peer.rank:
                    return _said(peer, failure.reason, failure.exit_code)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        said = ((failure.rank, f"{peer.title}: {shown(failure.reason)}") for peer, failure in failures if failure)
        own = (self._group.failed_rank or 0 if self._group else 0, str(error))
        rank, why = next((each for each in said if 0 < each[0] < self.world_size), own)
        return WorkerLost(self.peers[rank - 1].name, why) if rank else ClusterError(why)

    def close(self) -> None:
        """End the sessions of all workers and close all connections; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for peer in self.peers:
            if peer.control and not peer.control.reason:
                with suppress(Lost):
                    peer.control.send(Bye())
        for peer in self.peers:
            if peer.link:
                peer.link.close()
            if peer.control:
                peer.control.close()
        self._group = None  # it has descriptors of its own

    def _connect(self, peer: Peer) -> None:
        channel = peer.meeting = Channel(connect(peer.address, peer.title))
        peer.where = number_of(channel.socket) or (peer.address.host, peer.address.port)
        try:
            handshake.connect(channel, Hello("root", b"", False, self._session), self._key, peer.title)
        except BaseException:
            channel.close()
            raise
        peer.control = Control(channel, dict, partial(self._lost, peer))
        peer.facts = self._receive(peer, Facts)

    def _lost(self, peer: Peer, reason: str) -> None:
        """End all waits: without this worker nothing goes on."""
        if self._closed:
            return
        group = self._group  # ``close`` forgets it meanwhile
        if group is not None:
            group.abort(f"{peer.title} was lost: {reason}")
        for peer in self.peers:
            if peer.link:
                peer.link.shut()

    def _shut(self) -> None:
        """End all waits of all connections."""
        for peer in self.peers:
            for channel in (peer.link, peer.meeting):
                if channel:
                    channel.shut()

    def _tell(self, peer: Peer, message: Message) -> None:
        try:
            self.control(peer).send(message)
        except Lost as error:
            raise WorkerLost(peer.name, str(error)) from None

    def _receive(self, peer: Peer, *wanted: type[_Wanted]) -> _Wanted:
        try:
            return self.control(peer).receive(*wanted)
        except Said as said:
            message = said.message
            if isinstance(message, Failed) and message.rank != peer.rank:
                raise self.explain(ClusterError(f"{peer.title}: {shown(message.reason)}")) from None
            raise _said(peer, message.reason, message.exit_code) from None
        except Lost as error:
            raise WorkerLost(peer.name, str(error)) from None

    def _all(self, work: Callable[[Peer], _Result], peers: Sequence[Peer]) -> dict[Peer, _Result]:
        """Do something with several workers at once; the first error ends all of it."""
        with ThreadPoolExecutor(max(1, len(peers)), thread_name_prefix="dllama-root") as pool:
            try:
                futures = {peer: pool.submit(work, peer) for peer in peers}
                for future in as_completed(futures.values()):
                    future.result()
                return {peer: future.result() for peer, future in futures.items()}
            except BaseException:
                self._shut()  # so that the others end, too
                raise


def _said(peer: Peer, reason: str, exit_code: int) -> DllamaError:
    """Make the error for what a worker said."""
    text = f"{peer.title}: {shown(reason)}"
    if exit_code == NotEnoughMemory.exit_code:
        return NotEnoughMemory(text)
    if exit_code == UsageError.exit_code:
        return UsageError(text)
    return ClusterError(text)
