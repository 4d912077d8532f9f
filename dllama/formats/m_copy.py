"""Writing a model of any source as a ``.m`` file, with several threads that read and encode ahead of the writing.

What is read ahead is bounded in bytes, so that a model of any size takes little memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from dllama.formats.m_layout import is_rotated, tensors_in_order
from dllama.formats.m_writer import write_m_file
from dllama.formats.quants import RawRows
from dllama.formats.source import ModelSource, StoredTensor
from dllama.formats.tensor import TensorInfo

_PIECE_VALUES = 1 << 21  # of one piece: 4 or 8 MiB as read, 1.1 MiB as Q40
_PIECES_PER_THREAD = 3  # read and not yet written
_MOST_THREADS = 8


class _Piece(NamedTuple):
    tensor: StoredTensor
    begin: int
    end: int

    def read(self) -> RawRows:
        return self.tensor.read_rows(self.begin, self.end)


def copy_to_m_file(
    source: ModelSource,
    path: str | os.PathLike[str],
    header: bytes | None = None,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> None:
    """Write a model as a ``.m`` file; until it is complete, ``path`` is what it was.

    Args:
        source: The model, in the number types to be written.
        path: Where to.
        header: As ``write_m_file`` takes it.
        on_bytes: Called with the bytes of tensors written by then.

    Raises:
        UsageError: The format cannot hold the model, or ``path`` cannot be written.
        BadFile: The source is broken.
        DllamaError: The disk is full or fails.
    """
    num_threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="dllama-copy") as pool:
        pieces = _read_ahead(pool, source, num_threads * _PIECES_PER_THREAD)
        tensors = groupby(_counted(pieces, on_bytes), key=lambda item: item[0].tensor.name)

        def rows_of(_info: TensorInfo) -> Iterator[RawRows]:
            _, group = next(tensors)
            return (rows for _, rows in group)

        write_m_file(path, source.config, rows_of, header=header)


def _pieces(source: ModelSource) -> Iterator[_Piece]:
    """Cut every tensor, in file order, into pieces of whole rows, those of heads into whole heads."""
    for info in tensors_in_order(source.config):
        tensor = source.tensors[info.name]
        unit = source.config.head_dim if is_rotated(info.name) else 1
        step = max(1, _PIECE_VALUES // info.cols // unit) * unit
        for begin in range(0, info.rows, step):
            yield _Piece(tensor, begin, min(begin + step, info.rows))


def _read_ahead(pool: ThreadPoolExecutor, source: ModelSource, num_pieces: int) -> Iterator[tuple[_Piece, RawRows]]:
    """Read all pieces, in order, ``num_pieces`` of them ahead of whoever takes them."""
    waiting: deque[tuple[_Piece, Future[RawRows]]] = deque()
    try:
        for piece in _pieces(source):
            waiting.append((piece, pool.submit(piece.read)))
            if len(waiting) >= num_pieces:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _counted(
    pieces: Iterator[tuple[_Piece, RawRows]], on_bytes: Callable[[int], None]
) -> Iterator[tuple[_Piece, RawRows]]:
    done = 0
    for piece, rows in pieces:
        yield piece, rows
        done += rows.nbytes
        on_bytes(done)
