"""A copy of a foreign model's quantized weights in this user's cache folder, so that the next start reads less.

It is written on the way of the first load: rows that are read in order are converted, given to the node and written.
When all are there, the copy gets its name. It is found again while files and settings are the same, else made anew; it
is a help, never a need: where it cannot be written the model is read without it. Embeddings are not in it, as those of
a few tokens are read from the model itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dllama.errors import DllamaError
from dllama.formats.checked_file import CheckedFile, new_file
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.opened import OpenModel
from dllama.formats.quants import Floats, RawRows, decode
from dllama.formats.source import ModelSource, StoredTensor
from dllama.formats.tensor import TensorInfo
from dllama.hub import folders

_MAGIC = b"dllama copy 1\n\0\0"  # raised when anything about the form or the codecs changes
_HEADER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_FREE_BYTES = 1 << 30  # of the disk, left for others
_NOT_COPIED = "embed_tokens"


def with_copy(source: ModelSource) -> ModelSource:
    """Give a model that reads weights from their copy, or else writes one; ``source`` itself if that saves nothing."""
    return _CopiedModel(source) if source.config.weight_type.is_quantized else source


@dataclass(frozen=True, slots=True)
class _CopiedTensor(TensorInfo):
    """A tensor that lies ``offset`` bytes behind the beginning of the copy, once it is written."""

    source: StoredTensor
    copy: _Copy
    offset: int

    def read_rows(self, begin: int, end: int, out: RawRows | None = None) -> RawRows:
        """Read rows from the copy, or convert them and write them there; as the source's."""
        out = self.room(begin, end, out)
        if self.copy.whole is None:
            self.source.read_rows(begin, end, out)
            self.copy.keep(self, begin, out)
        elif out.size:
            place = f"tensor {self.name}"
            self.copy.whole.read_into(self.offset + begin * self.row_bytes, out.reshape(-1).data, place)
        return out

    def read_floats(self, begin: int = 0, end: int | None = None) -> Floats:
        """Read rows ``begin`` to ``end`` (all of them by default) as float32 values ``[end - begin, cols]``."""
        return decode(self.dtype, self.read_rows(begin, self.rows if end is None else end))


class _CopiedModel(OpenModel[StoredTensor]):
    """A model with a copy: the source's own in all but the weights."""

    def __init__(self, source: ModelSource) -> None:
        infos = [info for info in tensors_in_order(source.config) if info.name != _NOT_COPIED]
        self._source, self._copy = source, _Copy(source, sum(info.nbytes for info in infos))
        tensors: dict[str, StoredTensor] = dict(source.tensors)
        offset = _HEADER_BYTES
        for info in infos:
            tensors[info.name] = _CopiedTensor(
                info.name, info.dtype, info.shape, source.tensors[info.name], self._copy, offset
            )
            offset += info.nbytes
        super().__init__(source.path, source.config, tensors, [self._copy, source])

    def embedding_rows(self, token_ids: Sequence[int]) -> Floats:
        """Read embeddings as the source does."""
        return self._source.embedding_rows(token_ids)

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        """Give the source's facts."""
        return self._source.summary(max_seq_len)

    def identity(self) -> str:
        """Give the source's: where weights are read does not change them."""
        return self._source.identity()


class _Copy:
    """The file: whole from the beginning, growing, or given up. Tensors may be read by one thread at a time.

    Attributes:
        whole: The file when all rows are in it.
    """

    def __init__(self, source: ModelSource, num_bytes: int) -> None:
        self._path = folders.copy_path(Path(source.path), source.config.weight_type.name.lower())
        self._header = _header_of(source)
        self._source, self._size = source, _HEADER_BYTES + num_bytes
        self.whole: CheckedFile | None = self._find()
        self._left = num_bytes
        self._rows_done: dict[str, int] = {}
        self._last: _CopiedTensor | None = None
        self._growing: tuple[ExitStack, BinaryIO] | None = None
        self._is_given_up = False
        self._finisher: threading.Thread | None = None

    def _find(self) -> CheckedFile | None:
        """Open the copy if it is that of the source as it is now."""
        with suppress(DllamaError), ExitStack() as stack:
            file = stack.enter_context(CheckedFile(self._path, "copy"))
            if file.size == self._size and file.read(0, _HEADER_BYTES, "header") == self._header:
                stack.pop_all()
                return file
        return None

    def keep(self, tensor: _CopiedTensor, begin: int, rows: RawRows) -> None:
        """Write rows of a tensor; the last of all make the copy whole.

        Rows that do not follow on those before tell that the model is not read as a whole: there will be no copy.
        """
        if self._is_given_up or not rows.size:
            return
        if not self._follows(tensor, begin):
            self._give_up()
            return
        try:
            _, file = self._growing = self._growing or self._begin()
            _write_at(file, tensor.offset + begin * tensor.row_bytes, rows.reshape(-1).data)
        except (DllamaError, OSError):  # no room, or no folder: the model is there all the same
            self._give_up()
            return
        self._rows_done[tensor.name], self._last = begin + len(rows), tensor
        self._left -= rows.nbytes
        if not self._left:
            self._complete()

    def _follows(self, tensor: _CopiedTensor, begin: int) -> bool:
        """Whether rows are the next of the tensor under way, or the first of another while none is."""
        last = self._last
        is_under_way = last is not None and self._rows_done[last.name] < last.rows
        return begin == self._rows_done.get(tensor.name, 0) and (tensor is last or not is_under_way)

    def _begin(self) -> tuple[ExitStack, BinaryIO]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_strays(self._path)
        with ExitStack() as stack:
            file = stack.enter_context(new_file(self._path, self._size + _FREE_BYTES))
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(self._header)
            file.flush()
            return stack.pop_all(), file

    def _complete(self) -> None:
        """Read from it henceforth, and let it get its name as soon as the disk has it."""
        assert self._growing is not None
        stack, file = self._growing
        try:
            if _header_of(self._source) != self._header:
                raise DllamaError("the model changed meanwhile")
            self.whole = CheckedFile(file.name, "copy")
        except DllamaError:
            self._give_up()
            return
        self._growing = None
        finisher = threading.Thread(target=_close, args=(stack,), name="dllama-copy")
        try:
            finisher.start()
        except RuntimeError:  # the system refuses threads
            _close(stack)
        else:
            self._finisher = finisher

    def _give_up(self) -> None:
        self._is_given_up = True
        if self._growing is not None:
            stack, self._growing = self._growing[0], None
            error = DllamaError("given up")  # leaves no file behind
            with suppress(DllamaError, OSError):
                stack.__exit__(type(error), error, None)

    def close(self) -> None:
        """Close it, whole or not; wait until a whole one has its name."""
        self._give_up()
        if self._finisher is not None:
            self._finisher.join()
        if self.whole is not None:
            self.whole.close()


def _close(stack: ExitStack) -> None:
    with suppress(DllamaError, OSError):  # a full disk: no copy
        stack.close()


def _write_at(file: BinaryIO, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file.fileno(), data[done:], offset + done)


def _header_of(source: ModelSource) -> bytes:
    return _MAGIC + hashlib.sha256(f"{source.identity()} {source.config!r}".encode()).digest()


def _remove_strays(path: Path) -> None:
    """Remove what was left of copies whose writers were killed: nobody has locked them."""
    for stray in path.parent.glob("*.part"):
        with suppress(OSError), stray.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stray.unlink()
