"""Putting a node's slices together from tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from dllama.cluster.tiles import Tile, byte_slice, overlap, tiles_for, tiles_of
from dllama.engine.sizing import PIECE_BYTES
from dllama.plan import TensorSlice, tensor_slice
from dllama.plan.slices import ROW_GROUP

if TYPE_CHECKING:
    from dllama.cluster.protocol import Bytes
    from dllama.config import ModelConfig
    from dllama.plan import Shard

U8Array = npt.NDArray[np.uint8]


class Loadable(Protocol):
    """What an assembly fills: a ``_native.Node``."""

    def weight_names(self) -> list[str]:
        """Every tensor to fill."""

    def load_rows(self, name: str, first_row: int, rows: U8Array, /) -> None:
        """Take rows ``[n, row_bytes]`` of the node's slice; ``first_row`` a multiple of 64."""


class Assembly:
    """Fills every weight of a node from its tiles, given in order.

    Rows are collected until there are some MiB of them, as the core packs by rows and tiles are often narrower than the
    slice, or end between groups of rows. Memory: 8 MiB, or the rows that tiles side by side have if those are more: up
    to 17 MiB.

    Args:
        config: The model.
        shard: What the node owns of it.
        node: The node.

    Attributes:
        tiles: All tiles of the model.
        needed: Indices of those that must be given, ascending.
    """

    def __init__(self, config: ModelConfig, shard: Shard, node: Loadable) -> None:
        self._config, self.tiles = config, tiles_of(config)
        self.needed = tiles_for(config, shard, self.tiles)
        self._node = node
        self._slices = {name: tensor_slice(config, shard, name) for name in node.weight_names()}
        self._num_taken = 0
        self._buffer = np.empty(self._buffer_bytes(), np.uint8)
        self._first_row = self._num_rows = 0  # of the slice under way: where the buffer begins, and its whole rows

    def needed_by(self, shard: Shard) -> list[int]:
        """Give the indices of the tiles that another node of the same model needs."""
        return tiles_for(self._config, shard, self.tiles)

    @property
    def is_complete(self) -> bool:
        """Whether every weight is loaded."""
        return self._num_taken == len(self.needed)

    def take(self, index: int, data: Bytes) -> None:
        """Load the next tile: its canonical bytes, which may be used for something else afterwards.

        Raises:
            ValueError: It is not the next one that is needed, or not of its size.
        """
        if self.is_complete or index != self.needed[self._num_taken]:
            raise ValueError(f"tile {index} is not the next that this node needs")
        tile = self.tiles[index]
        if len(data) != tile.num_bytes:
            raise ValueError(f"tile {index} of {tile.tensor} has {tile.num_bytes} bytes, not {len(data)}")
        self._num_taken += 1
        part = self._slices.get(tile.tensor)
        if part is not None:  # else the core has no use for it, as for norms of heads where there are none
            self._put(tile, part, np.frombuffer(data, np.uint8).reshape(tile.rows.size, tile.row_bytes))

    def _put(self, tile: Tile, part: TensorSlice, source: U8Array) -> None:
        rows, columns = overlap(tile.rows, part.rows), overlap(tile.columns, part.columns)
        buffer = self._buffer_of(tile, part)
        if self._num_rows + rows.size > len(buffer):
            self._load(tile.tensor, buffer, self._num_rows // ROW_GROUP * ROW_GROUP)
        place = buffer[self._num_rows : self._num_rows + rows.size, byte_slice(tile.dtype, columns, part.columns)]
        wanted = source[rows.begin - tile.rows.begin :, byte_slice(tile.dtype, columns, tile.columns)]
        place[:] = wanted[: rows.size]
        if columns.end == part.columns.end:  # the last of those side by side
            self._num_rows += rows.size
        if (rows.end, columns.end) == (part.rows.end, part.columns.end):
            self._load(tile.tensor, buffer, self._num_rows)
            self._first_row = self._num_rows = 0

    def _load(self, name: str, buffer: U8Array, count: int) -> None:
        """Give the first ``count`` rows of the buffer to the node, and move the rest to its beginning."""
        self._node.load_rows(name, self._first_row, buffer[:count])
        rest = self._num_rows - count
        buffer[:rest] = buffer[count : self._num_rows]
        self._first_row, self._num_rows = self._first_row + count, rest

    def _buffer_of(self, tile: Tile, part: TensorSlice) -> U8Array:
        """Give the buffer as rows of a slice."""
        row_bytes = tile.dtype.row_bytes(part.columns.size)
        num_rows = len(self._buffer) // row_bytes
        return self._buffer[: num_rows * row_bytes].reshape(num_rows, row_bytes)

    def _buffer_bytes(self) -> int:
        """Bytes that hold the rows of any needed tile and those that remain of the one before."""
        tiles = (self.tiles[index] for index in self.needed)
        sizes = (
            (tile.rows.size + ROW_GROUP - 1) * tile.dtype.row_bytes(self._slices[tile.tensor].columns.size)
            for tile in tiles
            if tile.tensor in self._slices
        )
        return max([PIECE_BYTES, *sizes])
