"""Cutting a model's tensors into tiles, which are sent, hashed and cached.

Tiles do not depend on the number of nodes, so that what one plan brought to a machine serves any other. Pure
arithmetic: knows no file and no socket. A tile that a shard needs in part is sent whole; ``assembly.py`` cuts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dllama.config import BLOCK_SIZE, DType, ModelConfig
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.tensor import TensorInfo
from dllama.plan import Range, Shard, TensorSlice, tensor_slice
from dllama.plan.slices import ROW_GROUP

TILING = 2  # raised when tiles are cut in another way, so that nobody takes hashes of the one for those of the other
LIST_BYTES = 400  # of memory for each tile in lists
_LEAST_TILES = 64  # in which FFN columns and vocabulary are cut, where they are long enough
_LEAST_EXPERT_TILES = 4  # the same of each expert, of which there are many thousands
_BLOCK_ROWS = 2048  # of a router, or of a tensor that is cut by columns
_BLOCK_BYTES = 16 << 20  # at most, in such a block of whole rows


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a tensor, its rows in Hugging Face's order; a norm is one row.

    Its canonical bytes are its rows one after the other, of each the stored bytes of its columns.
    """

    tensor: str
    rows: Range
    columns: Range
    dtype: DType

    @property
    def row_bytes(self) -> int:
        """Bytes of one of its rows."""
        return self.dtype.row_bytes(self.columns.size)

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it."""
        return self.rows.size * self.row_bytes


@lru_cache(maxsize=2)
def tiles_of(config: ModelConfig) -> tuple[Tile, ...]:
    """Cut every tensor but ``embed_tokens``, of which workers need nothing.

    Returns:
        Tensors in file order, of each block of rows after block of rows, of each the columns ascending.
    """
    infos = (info for info in tensors_in_order(config) if info.name != "embed_tokens")
    return tuple(tile for info in infos for tile in _cut_tensor(config, info))


def num_tiles(config: ModelConfig) -> int:
    """Count the tiles of a model without making any."""
    infos = (info for info in tensors_in_order(config) if info.name != "embed_tokens")
    steps = ((info, *_steps(config, info)) for info in infos)
    return sum(-(-info.rows // rows) * -(-info.cols // columns) for info, rows, columns in steps)


def tiles_for(config: ModelConfig, shard: Shard, tiles: Sequence[Tile]) -> list[int]:
    """Give the indices of the tiles that ``shard`` needs, wholly or in part, ascending."""
    slices = {name: tensor_slice(config, shard, name) for name in {tile.tensor for tile in tiles}}
    return [index for index, tile in enumerate(tiles) if _is_needed(tile, slices[tile.tensor])]


def overlap(one: Range, other: Range) -> Range:
    """Give what two ranges have in common; of size 0 or less if that is nothing."""
    return Range(max(one.begin, other.begin), min(one.end, other.end))


def byte_slice(dtype: DType, columns: Range, whole: Range) -> slice:
    """Say where ``columns`` lie in a stored row of the columns ``whole``."""
    return slice(dtype.row_bytes(columns.begin - whole.begin), dtype.row_bytes(columns.end - whole.begin))


def _is_needed(tile: Tile, part: TensorSlice) -> bool:
    return overlap(tile.rows, part.rows).size > 0 and overlap(tile.columns, part.columns).size > 0


def _cut_tensor(config: ModelConfig, info: TensorInfo) -> Iterator[Tile]:
    row_step, column_step = _steps(config, info)
    for rows in _cut(info.rows, row_step):
        for columns in _cut(info.cols, column_step):
            yield Tile(info.name, rows, columns, info.dtype)


def _steps(config: ModelConfig, info: TensorInfo) -> tuple[int, int]:
    """Give rows and columns of the tiles of a tensor."""
    query_heads = math.lcm(config.head_dim, BLOCK_SIZE)  # values of the fewest heads that fill whole blocks
    match info.name.rpartition(".")[2]:
        case "q_proj":
            return query_heads, info.cols
        case "k_proj" | "v_proj":
            return config.head_dim, info.cols
        case "gate_proj" | "up_proj" | "lm_head":
            return _many_blocks(info.rows, _least_tiles(info)), info.cols
        case "router":
            return _block_rows(info), info.cols
        case "o_proj":
            return _block_rows(info), query_heads
        case "down_proj":
            return _block_rows(info), _many_blocks(info.cols, _least_tiles(info))
    return info.rows, info.cols


def _least_tiles(info: TensorInfo) -> int:
    return _LEAST_EXPERT_TILES if ".experts." in info.name else _LEAST_TILES


def _many_blocks(size: int, least: int) -> int:
    """Give the longest step of 32, 64, 128 … values that cuts ``size`` into ``least`` parts, or else 32."""
    step = BLOCK_SIZE
    while math.ceil(size / (2 * step)) >= least:
        step *= 2
    return step


def _block_rows(info: TensorInfo) -> int:
    fitting = _BLOCK_BYTES // info.row_bytes // ROW_GROUP * ROW_GROUP
    return max(ROW_GROUP, min(_BLOCK_ROWS, fitting))


def _cut(size: int, step: int) -> Iterator[Range]:
    return (Range(begin, min(begin + step, size)) for begin in range(0, size, step))
