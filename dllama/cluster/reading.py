"""Reading tiles: from a model file, and some of them ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from dllama.cluster.tiles import Tile, byte_slice
from dllama.plan import Range

if TYPE_CHECKING:
    from dllama.formats.source import ModelSource

U8Array = npt.NDArray[np.uint8]
T = TypeVar("T")


class TileReader:
    """Gives the bytes of a file's tiles; not for use by two threads at once.

    Tiles beside each other lie mingled in the file. Their rows are read once, when the first of them is wanted, and
    kept until one of other rows is: at most 16 MiB.
    """

    def __init__(self, file: ModelSource) -> None:
        self._file = file
        self._place: tuple[str, Range] | None = None  # of the rows that are kept
        self._rows = np.empty((0, 0), np.uint8)

    def read(self, tile: Tile) -> memoryview:
        """Give the canonical bytes of a tile, in memory of their own.

        Raises:
            BadFile: The file changed or cannot be read.
        """
        tensor = self._file.tensors[tile.tensor]
        if tile.columns.size == tensor.cols:
            return tensor.read_rows(tile.rows.begin, tile.rows.end).reshape(-1).data
        if self._place != (tile.tensor, tile.rows):
            self._place = None
            self._rows = tensor.read_rows(tile.rows.begin, tile.rows.end, self._room(tile, tensor.row_bytes))
            self._place = (tile.tensor, tile.rows)
        columns = byte_slice(tile.dtype, tile.columns, Range(0, tensor.cols))
        return self._rows[:, columns].copy().reshape(-1).data

    def _room(self, tile: Tile, row_bytes: int) -> U8Array:
        shape = (tile.rows.size, row_bytes)
        return self._rows if self._rows.shape == shape else np.empty(shape, np.uint8)


def look_ahead(started: Iterable[tuple[int, T]], limit_bytes: int) -> Iterator[T]:
    """Give the same things later, so that ``limit_bytes`` of those behind are started already, or a little more.

    Args:
        started: Bytes of each thing, and the thing, which taking it from here starts.
        limit_bytes: Bytes of things that are started and not given yet.
    """
    waiting: deque[tuple[int, T]] = deque()
    total = 0
    for size, thing in started:
        waiting.append((size, thing))
        total += size
        while total > limit_bytes:
            size, thing = waiting.popleft()
            total -= size
            yield thing
    for _, thing in waiting:
        yield thing
