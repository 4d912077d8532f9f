"""Moving tiles: out of the model file to every rank at once, and on a worker into its node.

The root calls ``stream_tiles``, a worker ``missing_tiles`` and ``load_tiles``. How tiles travel is not known here: they
go into sinks, and come from ``receive``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from dllama.cluster.manifest import digest_of
from dllama.cluster.protocol import Bytes
from dllama.cluster.reading import TileReader, look_ahead
from dllama.cluster.tiles import Tile
from dllama.engine.loading import Progress, start_thread
from dllama.errors import ClusterError, DllamaError

if TYPE_CHECKING:
    from dllama.cluster.assembly import Assembly
    from dllama.cluster.cache import TileCache
    from dllama.formats.source import ModelSource

Sink = Callable[[int, Bytes], None]  # (tile, its bytes)
RankProgress = Callable[[int, int, int], None]  # (rank, bytes done, bytes in all); each rank's in a thread of its own

_BUFFERED_BYTES = 24 << 20  # that wait for sinks, or are started ahead on a worker
_NUM_HASHERS = 2


def stream_tiles(
    file: ModelSource,
    tiles: Sequence[Tile],
    wanted: Mapping[int, Sequence[int]],
    sinks: Mapping[int, Sink],
    progress: RankProgress | None = None,
) -> None:
    """Read all wanted tiles once, in order, and hand each to the sinks of the ranks that want it.

    Each sink is called in a thread of its own, so that no rank waits for another until 24 MiB wait for the slowest.
    When one raises, or Ctrl-C comes, the rest end after their tile; however it ends, no sink is called afterwards. A
    sink must therefore end by itself when its peer is gone. Memory: those 24 MiB and the reader's 16.

    Args:
        file: The model.
        tiles: All its tiles.
        wanted: Ascending indices by rank, those of workers checked by ``check_wanted``.
        sinks: Where a rank's tiles go: they must not be kept. An ``Assembly.take`` is one.
        progress: Called after each tile.

    Raises:
        BadFile: The file changed or cannot be read.
        NotEnoughMemory: The system refused a thread.
        Exception: What a sink raised, with a note that names its rank.
    """
    budget = _Budget(_BUFFERED_BYTES)
    senders = {
        rank: _Sender(rank, sinks[rank], budget, sum(tiles[index].num_bytes for index in indices), progress)
        for rank, indices in wanted.items()
    }
    try:
        for sender in senders.values():
            start_thread(sender.start)
        _feed(file, tiles, wanted, senders, budget)
        _finish(senders)
        budget.check()
    except BaseException as error:
        budget.fail(error)
        _finish(senders)
        raise


def check_wanted(wanted: Sequence[int], needed: Sequence[int], peer: str) -> None:
    """Raise ClusterError unless what worker ``peer`` asks for are some of the tiles it needs, ascending."""
    left = iter(needed)
    if not all(index in left for index in wanted):
        raise ClusterError(f"{peer} asked for tiles that it does not need; are both of the same version?")


def missing_tiles(
    tiles: Sequence[Tile], needed: Sequence[int], digests: Sequence[bytes], cache: TileCache
) -> list[int]:
    """Give the tiles that a worker must ask for: those of which the cache has no file of their size."""
    return [index for index in needed if not cache.has(digests[index], tiles[index].num_bytes)]


def load_tiles(
    assembly: Assembly,
    missing: Collection[int],
    digests: Sequence[bytes],
    cache: TileCache,
    receive: Callable[[int, int], Bytes],
    peer: str,
    progress: Progress | None = None,
) -> list[int]:
    """Fill a node with tiles from the cache and, those that are missing, from the root.

    Cached tiles are hashed when they are read here, not when they are announced, so that each is read from the disk
    once. One that turns out bad cannot be asked for at once, as the root is sending others: the rest is received and
    kept, and the worker must announce again what it then lacks, and load again with a new assembly. A tile that was bad
    once is not taken from the cache again, so this ends. Memory: 24 MiB, and the assembly's.

    Args:
        assembly: A new one.
        missing: Tiles that were announced as missing.
        digests: Of all tiles of the model.
        cache: The cache.
        receive: Gives a missing tile's bytes, from its index and size; called for each, ascending.
        peer: Who sends, for messages.
        progress: Called after each tile.

    Returns:
        The tiles to ask for before loading again; none if the node is loaded.

    Raises:
        DllamaError: The root sent something else than the tile it had announced.
        NotEnoughMemory: The system refused a thread.
    """
    tiles, needed, absent = assembly.tiles, assembly.needed, frozenset(missing)

    def fetch(index: int, data: Bytes | None) -> Bytes | None:
        """Take a tile from the cache, or check and keep what was received."""
        if data is None:
            return cache.read(digests[index], tiles[index].num_bytes)
        if digest_of(data) != digests[index]:
            name = tiles[index].tensor
            raise DllamaError(f"{name}: what {peer} sent is not what it announced; did its model file change?")
        cache.write(digests[index], data)
        return data

    def started(pool: ThreadPoolExecutor) -> Iterator[tuple[int, Future[Bytes | None]]]:
        for index in needed:
            size = tiles[index].num_bytes
            data = receive(index, size) if index in absent else None
            yield size, start_thread(pool.submit, fetch, index, data)

    cache.hold(digests[index] for index in needed)
    done, total, is_whole = 0, sum(tiles[index].num_bytes for index in needed), True
    with ThreadPoolExecutor(_NUM_HASHERS, thread_name_prefix="dllama-tiles") as pool:
        for index, fetched in zip(needed, look_ahead(started(pool), _BUFFERED_BYTES), strict=True):
            data = fetched.result()
            is_whole = is_whole and data is not None
            if is_whole and data is not None:
                assembly.take(index, data)
            done += tiles[index].num_bytes
            if progress:
                progress(done, total)
    return [] if is_whole else missing_tiles(tiles, needed, digests, cache)


class _Budget:
    """Bytes that may wait for sinks, and what ended the transfer. One thread takes, many give back."""

    def __init__(self, num_bytes: int) -> None:
        self._all = self._left = num_bytes
        self._changed = threading.Condition()
        self.failure: BaseException | None = None

    def take(self, num_bytes: int) -> None:
        """Wait until so many bytes may be added, or nothing waits at all; raise what ended the transfer."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure or self._left >= min(num_bytes, self._all))
            self.check()
            self._left -= num_bytes

    def give(self, num_bytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._left += num_bytes
            self._changed.notify()

    def fail(self, error: BaseException) -> None:
        """End the transfer; the first reason counts."""
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify()

    def check(self) -> None:
        """Raise what ended the transfer, if it ended."""
        if self.failure:
            raise self.failure


class _Sender:
    """A thread that gives one rank its tiles."""

    def __init__(self, rank: int, sink: Sink, budget: _Budget, total: int, progress: RankProgress | None) -> None:
        self._rank, self._sink, self._budget = rank, sink, budget
        self._total, self._progress = total, progress
        self._tiles: queue.SimpleQueue[tuple[int, memoryview] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"dllama-send-{rank}", daemon=True)
        self._ended = threading.Event()  # an interrupted join() may take the thread for ended
        self.start = self._thread.start

    def put(self, index: int, data: memoryview) -> None:
        """Queue a tile whose bytes were taken from the budget."""
        self._tiles.put((index, data))

    def finish(self) -> None:
        """Wait until all is sent, or the transfer ended."""
        self._tiles.put(None)
        if self._thread.ident is not None:  # it may never have been started
            self._ended.wait()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._send()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            error.add_note(f"while weights were sent to rank {self._rank}")
            self._budget.fail(error)
        finally:
            self._ended.set()

    def _send(self) -> None:
        done = 0
        while (item := self._tiles.get()) and not self._budget.failure:
            index, data = item
            self._sink(index, data)
            done += len(data)
            self._budget.give(len(data))
            if self._progress:
                self._progress(self._rank, done, self._total)


def _feed(
    file: ModelSource,
    tiles: Sequence[Tile],
    wanted: Mapping[int, Sequence[int]],
    senders: Mapping[int, _Sender],
    budget: _Budget,
) -> None:
    takers: dict[int, list[_Sender]] = {}
    for rank, indices in wanted.items():
        for index in indices:
            takers.setdefault(index, []).append(senders[rank])
    reader = TileReader(file)
    for index in sorted(takers):
        budget.take(tiles[index].num_bytes * len(takers[index]))
        data = reader.read(tiles[index])
        for sender in takers[index]:
            sender.put(index, data)


def _finish(senders: Mapping[int, _Sender]) -> None:
    for sender in senders.values():
        sender.finish()
