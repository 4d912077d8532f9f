"""One weight tensor as a model file holds it: what it is, where it lies, and its rows on demand.

Rows come in Hugging Face's order whatever the file's own, so that everything after the reader knows one rotary layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dllama.config import DType
from dllama.formats.checked_file import CheckedFile
from dllama.formats.quants import Floats, RawRows, decode


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, number type and shape of a tensor, with its size as stored.

    ``shape`` is ``(rows, cols)``, or ``(cols,)`` for a vector, which is stored and read as one row.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Stored rows: outputs of a matrix, 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        """Values per row: inputs of a matrix."""
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return self.dtype.row_bytes(self.cols)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor as stored."""
        return self.rows * self.row_bytes

    def room(self, begin: int, end: int, out: RawRows | None) -> RawRows:
        """Give memory for rows ``begin`` to ``end``: ``out``, or new memory if it is None.

        Raises:
            ValueError: There are no such rows, or ``out`` is not contiguous uint8 of just their size.
        """
        if not 0 <= begin <= end <= self.rows:
            raise ValueError(f"{self.name}: rows {begin} to {end} are outside its {self.rows} rows")
        shape = (end - begin, self.row_bytes)
        if out is None:
            return np.empty(shape, np.uint8)
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"{self.name}: rows {begin} to {end} need contiguous uint8 of shape {shape}")
        return out


@dataclass(frozen=True, slots=True)
class Tensor(TensorInfo):
    """A tensor inside an open file.

    ``interleaved_head_dim`` is the head size of a tensor whose rows lie in the file in interleaved rotary order (the
    pair j, j + head_dim / 2 side by side), and 0 when the rows lie in Hugging Face's order.
    """

    file: CheckedFile
    offset: int
    interleaved_head_dim: int = 0

    def read_rows(self, begin: int, end: int, out: RawRows | None = None) -> RawRows:
        """Read rows ``begin`` to ``end`` as stored bytes, and nothing else of the file.

        Args:
            begin: First row, ``0 <= begin <= end <= rows``.
            end: Row after the last.
            out: Where to put them, C-contiguous uint8 ``[end - begin, row_bytes]``; new memory if None.

        Returns:
            ``out``.

        Raises:
            BadFile: The file no longer holds these rows.
        """
        out = self.room(begin, end, out)
        if self.interleaved_head_dim:
            self._read_heads(begin, end, out)
        else:
            self._read_stored(begin, out)
        return out

    def read_floats(self, begin: int = 0, end: int | None = None) -> Floats:
        """Read rows ``begin`` to ``end`` (all of them by default) as float32 values ``[end - begin, cols]``."""
        return decode(self.dtype, self.read_rows(begin, self.rows if end is None else end))

    def _read_stored(self, begin: int, out: RawRows) -> None:
        if out.size:
            place = f"tensor {self.name}"
            self.file.read_into(self.offset + begin * self.row_bytes, out.reshape(-1).data, place)

    def _read_heads(self, begin: int, end: int, out: RawRows) -> None:
        """Read head by head, as any of a head's rows can lie anywhere in its part of the file."""
        head_dim = self.interleaved_head_dim
        head = np.empty((head_dim, self.row_bytes), np.uint8)
        for first in range(begin - begin % head_dim, end, head_dim):
            self._read_stored(first, head)
            low, high = max(begin, first), min(end, first + head_dim)
            out[low - begin : high - begin] = halves_from_interleaved(head, head_dim)[low - first : high - first]


def halves_from_interleaved(heads: RawRows, head_dim: int) -> RawRows:
    """Reorder the rows of whole heads from interleaved pairs to halves: row 2j + c becomes row c * head_dim / 2 + j."""
    rows, row_bytes = heads.shape
    pairs = heads.reshape(rows // head_dim, head_dim // 2, 2, row_bytes)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, row_bytes)


def interleaved_from_halves(heads: RawRows, head_dim: int) -> RawRows:
    """Reorder the rows of whole heads from halves to interleaved pairs, the order that Llama ``.m`` files store."""
    rows, row_bytes = heads.shape
    pairs = heads.reshape(rows // head_dim, 2, head_dim // 2, row_bytes)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, row_bytes)
