"""Taking the head of a GGUF file apart: numbers, texts and lists of them, each length checked against what is left."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile

# Generous bounds; the largest vocabularies with their merges and a tokenizer.json take some 50 MB.
MAX_METADATA = 1 << 27  # bytes before the tensors' data
_MAX_ENTRIES = 1 << 16  # keys, and tensors
_MAX_NAME = (1 << 16) - 1  # bytes of a key or the name of a tensor
_FIRST_READ = 1 << 16  # bytes; each later read is as large as all before it


class StringArray(Sequence[str]):
    """Strings of a file, decoded when they are asked for: a start reads hundreds of thousands and needs few.

    Bytes that are not UTF-8 come as lone surrogates; ``encode("utf-8", "surrogateescape")`` makes them bytes again.
    """

    def __init__(self, raw: bytes, ends: array[int]) -> None:
        self._raw, self._ends = raw, ends  # each string stands behind 8 bytes of length

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Decode one string, or some."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        end, index = self._ends[index], index % len(self)
        begin = (self._ends[index - 1] if index else 0) + 8
        return self._raw[begin:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        """Decode them one by one."""
        raw, begin = self._raw, 8
        for end in self._ends:
            yield raw[begin:end].decode("utf-8", "surrogateescape")
            begin = end + 8


class Reader:
    """Takes the parts of the file's head in order; every length is checked against what is left."""

    def __init__(self, file: CheckedFile) -> None:
        self.file, self.offset = file, 0
        self.raw = file.read(0, min(_FIRST_READ, file.size), "byte 0")

    def bad(self, what: str, expected: str, found: str, offset: int | None = None) -> BadFile:
        """Build the error for what stands at ``offset``, or at the place reached."""
        return self.file.bad(f"byte {self.offset if offset is None else offset} ({what})", expected, found)

    def need(self, end: int, what: str) -> None:
        """Have all bytes before ``end`` in memory, or raise."""
        if end <= len(self.raw):
            return
        most = min(self.file.size, MAX_METADATA)
        if end > most:
            raise self.bad(what, f"{end - self.offset} bytes", f"{most - self.offset} that may follow")
        size = min(max(end, 2 * len(self.raw)), most)
        self.raw += self.file.read(len(self.raw), size - len(self.raw), f"byte {len(self.raw)}")

    def take(self, num_bytes: int, what: str) -> bytes:
        """Read some bytes."""
        self.need(self.offset + num_bytes, what)
        self.offset += num_bytes
        return self.raw[self.offset - num_bytes : self.offset]

    def number(self, code: str, what: str) -> int | float:
        """Read a number, by its code of ``struct``."""
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))
        return value  # type: ignore[no-any-return]

    def integer(self, code: str, what: str) -> int:
        """Read a whole number."""
        return int(self.number(code, what))

    def count(self, what: str, least_bytes: int) -> int:
        """Read how many entries follow; each takes ``least_bytes`` at least."""
        count = self.integer("Q", what)
        most = min(_MAX_ENTRIES, (self.file.size - self.offset) // least_bytes)
        if count > most:
            raise self.bad(what, f"at most {most}, as the file goes on", str(count), self.offset - 8)
        return count

    def name(self, what: str) -> str:
        """Read a name, length first: some printable characters."""
        length = self.integer("Q", f"length of {what}")
        if not 1 <= length <= _MAX_NAME:
            raise self.bad(f"length of {what}", f"1 to {_MAX_NAME}", str(length), self.offset - 8)
        name = self.text(length, what)
        if not name.isprintable():  # it would be printed in messages
            raise self.bad(what, "printable text", ascii(name)[:50], self.offset - length)
        return name

    def text(self, length: int, what: str) -> str:
        """Read ``length`` bytes of UTF-8."""
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            offset = self.offset - length + error.start
            raise self.bad(what, "UTF-8 text", f"byte 0x{raw[error.start]:02X}", offset) from None

    def strings(self, count: int, what: str) -> StringArray:
        """Read ``count`` strings; written inline, as there may be half a million."""
        first, ends, unpack = self.offset, array("I"), struct.Struct("<Q").unpack_from
        at, have = self.offset, len(self.raw)
        for _ in range(count):
            if at + 8 > have:
                self.offset = at
                self.need(at + 8, what)
                have = len(self.raw)
            (length,) = unpack(self.raw, at)
            at += 8
            if length > have - at:
                self.offset = at
                self.need(at + length, what)
                have = len(self.raw)
            at += length
            ends.append(at - first)
        self.offset = at
        return StringArray(self.raw[first:at], ends)
