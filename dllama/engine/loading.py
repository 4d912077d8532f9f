"""Making a node and filling it with its slices of a model file.

One thread reads the next piece while the node packs the last one. Memory: two pieces of ``PIECE_BYTES``, and for slices
of columns a copy of the piece's part.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from dllama import _native, machine
from dllama.engine.sizing import PIECE_BYTES, NodeOptions, NodeSize, make_node_config, settle_size
from dllama.errors import NotEnoughMemory, UnsupportedIsa
from dllama.plan import Shard, TensorSlice, make_plan, tensor_slice
from dllama.plan.slices import ROW_GROUP

if TYPE_CHECKING:
    from dllama.formats.source import ModelSource, StoredTensor

U8Array = npt.NDArray[np.uint8]
T = TypeVar("T")
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

_FEWER_THREADS = "use fewer threads (num_threads, --nthreads)"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a slice: ``rows`` is uint8 ``[n, row_bytes]`` of rows ``first_row`` onward."""

    name: str
    first_row: int
    rows: U8Array


def open_node(file: ModelSource, options: NodeOptions, progress: Progress | None) -> tuple[_native.Node, NodeSize]:
    """Make the only node of a group of one and load the whole model into it.

    Raises:
        UnsupportedIsa: ``DLLAMA_ISA`` names a level that cannot be had.
        NotEnoughMemory: It does not fit into what is free, or the system refused memory or threads.
        BadFile: The file changed or cannot be read.
    """
    plan = make_plan(file.config)
    try:
        _native.isa()
        size = settle_size(file.config, plan, 0, options, machine.available_memory())
        node_config = make_node_config(file.config, plan, options, size.max_seq_len, size.num_pages, size.num_slots)
        node = _native.Node(node_config, _native.Group())
    except _native.UnsupportedIsaError as error:
        raise UnsupportedIsa(str(error)) from error
    except MemoryError as error:  # less was free than the system said, e.g. under a limit of the process
        raise NotEnoughMemory(f"{error}; {_advice(error)}") from error
    load_weights(node, file, plan.shards[0], progress)
    return node, size


def load_weights(node: _native.Node, file: ModelSource, shard: Shard, progress: Progress | None = None) -> None:
    """Fill every weight of ``node`` with the part of ``file`` that ``shard`` owns.

    However it ends, nothing reads ``file`` afterwards.

    Raises:
        BadFile: The file changed or cannot be read.
        NotEnoughMemory: The system refused the thread that reads.
    """
    slices = {name: tensor_slice(file.config, shard, name) for name in node.weight_names()}
    done, total = 0, sum(_num_bytes(file.tensors[name], part) for name, part in slices.items())
    with closing(_read_ahead(_pieces(file, slices))) as pieces:  # its reader ends here, before the file is closed
        for piece in pieces:
            node.load_rows(piece.name, piece.first_row, piece.rows)
            done += piece.rows.nbytes
            if progress:
                progress(done, total)


def start_thread(start: Callable[..., T], *arguments: object) -> T:
    """Call what starts a thread; raise NotEnoughMemory if the system refuses it."""
    try:
        return start(*arguments)
    except RuntimeError as error:  # what Python raises when it cannot
        raise NotEnoughMemory(f"the system refused a thread that moves weights; {_FEWER_THREADS}") from error


def _advice(error: MemoryError) -> str:
    """Say what to do about a refusal of the system; its text ends in what was refused (``csrc/base``)."""
    if str(error).endswith("threads"):
        return _FEWER_THREADS
    return "use a smaller model, or a shorter context (max_seq_len)"


def _num_bytes(tensor: StoredTensor, part: TensorSlice) -> int:
    return part.rows.size * tensor.dtype.row_bytes(part.columns.size)


def _pieces(file: ModelSource, slices: dict[str, TensorSlice]) -> Iterator[Piece]:
    """Read all slices piece by piece, in the order of the file.

    A piece's memory is used again by the piece after the next.
    """
    buffers = [np.empty(PIECE_BYTES, np.uint8), np.empty(PIECE_BYTES, np.uint8)]
    for name, tensor in file.tensors.items():
        if name not in slices:
            continue
        part = slices[name]
        step = max(1, PIECE_BYTES // tensor.row_bytes // ROW_GROUP) * ROW_GROUP
        for begin in range(part.rows.begin, part.rows.end, step):
            end = min(begin + step, part.rows.end)
            buffers.reverse()
            rows = tensor.read_rows(begin, end, _room(buffers[0], end - begin, tensor.row_bytes))
            yield Piece(name, begin - part.rows.begin, _cut_columns(rows, tensor, part))


def _room(buffer: U8Array, num_rows: int, row_bytes: int) -> U8Array:
    """Memory for some rows: the buffer's, or new memory for a row group that is larger than a piece."""
    size = num_rows * row_bytes
    memory = buffer[:size] if size <= len(buffer) else np.empty(size, np.uint8)
    return memory.reshape(num_rows, row_bytes)


def _cut_columns(rows: U8Array, tensor: StoredTensor, part: TensorSlice) -> U8Array:
    begin, end = (tensor.dtype.row_bytes(column) for column in (part.columns.begin, part.columns.end))
    return np.ascontiguousarray(rows[:, begin:end])


def _read_ahead(pieces: Iterator[Piece]) -> Generator[Piece, None, None]:
    """Give the same pieces, each read in another thread while the one before is used.

    Closing the generator waits for that thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="dllama-read") as reader:
        upcoming = start_thread(reader.submit, next, pieces, None)
        while piece := upcoming.result():
            upcoming = reader.submit(next, pieces, None)
            yield piece
