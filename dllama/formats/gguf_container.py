"""Reading what a GGUF file says of itself: its metadata, and which tensors it holds where.

GGUF is llama.cpp's format. Nothing here knows what a model or a tokenizer is, and no tensor is read. Every length,
count and offset is compared with the file before it is used, so a file that lies ends in ``BadFile`` before anything
large is allocated. Versions 2 and 3, little-endian; the layout is that of ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.checked_file import CheckedFile
from dllama.formats.gguf_types import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    FIXED_SIZE,
    GGML_TYPES,
    MAGIC,
    GgmlType,
    ValueType,
)

_VERSIONS = (2, 3)
# Generous bounds; the largest vocabularies with their merges and a tokenizer.json take some 50 MB.
_MAX_METADATA = 1 << 28  # bytes before the tensors' data
_MAX_ENTRIES = 1 << 17  # keys, and tensors
_MAX_NAME = (1 << 16) - 1  # bytes of a key or the name of a tensor
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 16
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


@dataclass(frozen=True, slots=True)
class GgufTensorInfo:
    """A tensor of a file: ``shape`` ends in the values of a row, ``offset`` is from the file's begin."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return self.shape[-1] // self.type.block_size * self.type.block_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufContainer:
    """What a GGUF file says of itself.

    Attributes:
        path: The file.
        version: Of the format.
        metadata: Values by key: bool, int, float, str, a numpy array of numbers, or a ``StringArray``.
        tensors: By name, in the file's order.
        data_offset: Where the first tensor may lie.
    """

    path: str
    version: int
    metadata: Mapping[str, object]
    tensors: Mapping[str, GgufTensorInfo]
    data_offset: int


def read_container(path: str | os.PathLike[str], what: str = "model") -> GgufContainer:
    """Read the metadata and the list of tensors of a GGUF file.

    Args:
        path: The file.
        what: What it is to the user, for messages.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound GGUF file.
        UnsupportedModel: It is one of a version that cannot be read.
    """
    with CheckedFile(path, what) as file:
        return parse_container(file)


def parse_container(file: CheckedFile) -> GgufContainer:
    """Read the same from a file that is open; errors as of ``read_container``."""
    reader = _Reader(file)
    version = _read_version(reader)
    num_tensors, num_keys = reader.count("number of tensors", 24), reader.count("number of keys", 13)
    metadata = _read_metadata(reader, num_keys)
    alignment = _alignment(file, metadata)
    tensors = [_read_tensor_info(reader) for _ in range(num_tensors)]
    data_offset = -(-reader.offset // alignment) * alignment
    placed = _placed(file, tensors, data_offset, alignment)
    return GgufContainer(file.path, version, metadata, placed, data_offset)


class _Reader:
    """Takes the parts of the file's head in order; every length is checked against what is left."""

    def __init__(self, file: CheckedFile) -> None:
        self.file, self.offset = file, 0
        self.raw = file.read(0, min(_FIRST_READ, file.size), "byte 0")

    def bad(self, what: str, expected: str, found: str, offset: int | None = None) -> BadFile:
        return self.file.bad(f"byte {self.offset if offset is None else offset} ({what})", expected, found)

    def need(self, end: int, what: str) -> None:
        """Have all bytes before ``end`` in memory, or raise."""
        if end <= len(self.raw):
            return
        most = min(self.file.size, _MAX_METADATA)
        if end > most:
            raise self.bad(what, f"{end - self.offset} bytes", f"{most - self.offset} that may follow")
        size = min(max(end, 2 * len(self.raw)), most)
        self.raw += self.file.read(len(self.raw), size - len(self.raw), f"byte {len(self.raw)}")

    def take(self, num_bytes: int, what: str) -> bytes:
        self.need(self.offset + num_bytes, what)
        self.offset += num_bytes
        return self.raw[self.offset - num_bytes : self.offset]

    def number(self, code: str, what: str) -> int | float:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))
        return value  # type: ignore[no-any-return]

    def integer(self, code: str, what: str) -> int:
        return int(self.number(code, what))

    def count(self, what: str, least_bytes: int) -> int:
        """Read how many entries follow; each takes ``least_bytes`` at least."""
        count = self.integer("Q", what)
        most = min(_MAX_ENTRIES, (self.file.size - self.offset) // least_bytes)
        if count > most:
            raise self.bad(what, f"at most {most}, as the file goes on", str(count), self.offset - 8)
        return count

    def name(self, what: str) -> str:
        length = self.integer("Q", f"length of {what}")
        if not 1 <= length <= _MAX_NAME:
            raise self.bad(f"length of {what}", f"1 to {_MAX_NAME}", str(length), self.offset - 8)
        name = self.text(length, what)
        if not name.isprintable():  # it would be printed in messages
            raise self.bad(what, "printable text", ascii(name)[:50], self.offset - length)
        return name

    def text(self, length: int, what: str) -> str:
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


def _read_version(reader: _Reader) -> int:
    magic = reader.integer("I", "magic number")
    if magic != MAGIC:
        raise reader.bad("magic number", f"0x{MAGIC:08X}, a GGUF file", f"0x{magic:08X}", 0)
    version = reader.integer("I", "version")
    if version in _VERSIONS:
        return version
    found = f"version {version}"
    if version and version & 0xFFFF == 0:
        found = "a big-endian file"
    raise UnsupportedModel(reader.file.path, "byte 4 (version)", "GGUF version 2 or 3, little-endian", found)


def _read_metadata(reader: _Reader, num_keys: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(num_keys):
        offset = reader.offset
        key = reader.name("a key")
        if key in metadata:
            raise reader.bad("a key", "every key once", f"{key!r} again", offset)
        metadata[key] = _read_value(reader, _value_type(reader, key), f"value of {key}")
    return metadata


def _value_type(reader: _Reader, key: str) -> ValueType:
    number = reader.integer("I", f"type of {key}")
    if number not in set(ValueType):
        raise reader.bad(f"type of {key}", f"0 to {max(ValueType).value}", str(number), reader.offset - 4)
    return ValueType(number)


def _read_value(reader: _Reader, kind: ValueType, what: str) -> object:
    if kind is ValueType.STRING:
        return reader.text(reader.integer("Q", f"length of {what}"), what)
    if kind is ValueType.ARRAY:
        return _read_array(reader, what)
    value = reader.number(FIXED_SIZE[kind], what)
    if kind is ValueType.BOOL:
        if value not in (0, 1):
            raise reader.bad(what, "0 or 1", str(value), reader.offset - 1)
        return bool(value)
    return shortest(value) if kind is ValueType.FLOAT32 else value


def _read_array(reader: _Reader, what: str) -> object:
    kind, count = _value_type(reader, what), reader.integer("Q", f"length of {what}")
    if kind is ValueType.ARRAY:
        raise reader.bad(what, "an array of numbers or strings", "an array of arrays")
    size = 8 if kind is ValueType.STRING else struct.calcsize(f"<{FIXED_SIZE[kind]}")
    left = min(reader.file.size, _MAX_METADATA) - reader.offset
    if count > left // size:
        raise reader.bad(f"length of {what}", f"at most {left // size}, as the file goes on", str(count))
    if kind is ValueType.STRING:
        return reader.strings(count, what)
    values = np.frombuffer(reader.take(count * size, what), f"<{FIXED_SIZE[kind]}")
    return values.astype(np.bool_) if kind is ValueType.BOOL else values


def shortest(value: float) -> float:
    """Give the shortest decimal that is ``value`` in float32: 1e-05 where the file's bits say 9.999999747e-06."""
    return float(str(np.float32(value)))


def _alignment(file: CheckedFile, metadata: Mapping[str, object]) -> int:
    value = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):  # type: ignore[operator]
        raise file.bad(ALIGNMENT_KEY, f"a power of two up to {_MAX_ALIGNMENT}", repr(value)[:50])
    return value  # type: ignore[return-value]


def _read_tensor_info(reader: _Reader) -> GgufTensorInfo:
    """Read one entry; its offset is still that from the begin of the data."""
    name = reader.name("a tensor's name")
    num_dims = reader.integer("I", f"dimensions of {name}")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise reader.bad(f"dimensions of {name}", f"1 to {_MAX_DIMS}", str(num_dims), reader.offset - 4)
    shape = tuple(reader.integer("Q", f"shape of {name}") for _ in range(num_dims))[::-1]
    number = reader.integer("I", f"type of {name}")
    if number not in GGML_TYPES:
        raise reader.bad(f"type of {name}", "a type that this version knows", str(number), reader.offset - 4)
    kind = GGML_TYPES[number]
    if math.prod(shape) < 1 or shape[-1] % kind.block_size:
        expected = f"sizes of 1 or more, rows in blocks of {kind.block_size} ({kind.name})"
        raise reader.bad(f"shape of {name}", expected, str(list(shape)))
    return GgufTensorInfo(name, kind, shape, reader.integer("Q", f"offset of {name}"))


def _placed(
    file: CheckedFile, tensors: Sequence[GgufTensorInfo], data_offset: int, alignment: int
) -> dict[str, GgufTensorInfo]:
    """Check where the tensors lie, and give them by name with offsets from the file's begin."""
    placed: dict[str, GgufTensorInfo] = {}
    for info in tensors:
        place, end = f"tensor {info.name}", data_offset + info.offset + info.nbytes
        if info.name in placed:
            raise file.bad(place, "every tensor once", "a second one of this name")
        if info.offset % alignment:
            raise file.bad(place, f"an offset that {alignment} divides", str(info.offset))
        if end > file.size:
            found = f"{file.size}: the file is cut short or its header is wrong; fetch it again"
            raise file.bad(place, f"a file of {end} bytes or more", found)
        placed[info.name] = GgufTensorInfo(info.name, info.type, info.shape, data_offset + info.offset)
    by_offset = sorted(placed.values(), key=lambda info: info.offset)
    for info, following in itertools.pairwise(by_offset):
        if info.offset + info.nbytes > following.offset:
            found = f"a begin inside {info.name}, at byte {following.offset}"
            raise file.bad(f"tensor {following.name}", "tensors that do not overlap", found)
    end = by_offset[-1].offset + by_offset[-1].nbytes if by_offset else data_offset
    if file.size - end >= alignment:
        raise file.bad("size", f"{end} bytes", f"{file.size} bytes: {file.size - end} more than the header describes")
    return placed
