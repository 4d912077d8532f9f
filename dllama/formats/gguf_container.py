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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dllama.errors import UnsupportedModel
from dllama.formats.checked_file import CheckedFile
from dllama.formats.gguf_reader import MAX_METADATA, Reader, StringArray
from dllama.formats.gguf_types import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    FIXED_SIZE,
    GGML_TYPES,
    MAGIC,
    GgmlType,
    ValueType,
)

__all__ = ["GgufContainer", "GgufTensorInfo", "StringArray", "parse_container", "read_container", "shortest"]

_VERSIONS = (2, 3)
_MAX_STRINGS = 1 << 22  # in an array
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 16


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
    reader = Reader(file)
    version = _read_version(reader)
    num_tensors, num_keys = reader.count("number of tensors", 24), reader.count("number of keys", 13)
    metadata = _read_metadata(reader, num_keys)
    alignment = _alignment(file, metadata)
    tensors = [_read_tensor_info(reader) for _ in range(num_tensors)]
    data_offset = -(-reader.offset // alignment) * alignment
    placed = _placed(file, tensors, data_offset, alignment)
    return GgufContainer(file.path, version, metadata, placed, data_offset)


def _read_version(reader: Reader) -> int:
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


def _read_metadata(reader: Reader, num_keys: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(num_keys):
        offset = reader.offset
        key = reader.name("a key")
        if key in metadata:
            raise reader.bad("a key", "every key once", f"{key!r} again", offset)
        metadata[key] = _read_value(reader, _value_type(reader, key), f"value of {key}")
    return metadata


def _value_type(reader: Reader, key: str) -> ValueType:
    number = reader.integer("I", f"type of {key}")
    if number not in set(ValueType):
        raise reader.bad(f"type of {key}", f"0 to {max(ValueType).value}", str(number), reader.offset - 4)
    return ValueType(number)


def _read_value(reader: Reader, kind: ValueType, what: str) -> object:
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


def _read_array(reader: Reader, what: str) -> object:
    kind, count = _value_type(reader, what), reader.integer("Q", f"length of {what}")
    if kind is ValueType.ARRAY:
        raise reader.bad(what, "an array of numbers or strings", "an array of arrays")
    size = 8 if kind is ValueType.STRING else struct.calcsize(f"<{FIXED_SIZE[kind]}")
    most = (min(reader.file.size, MAX_METADATA) - reader.offset) // size
    if kind is ValueType.STRING:
        most = min(most, _MAX_STRINGS)
    if count > most:
        raise reader.bad(f"length of {what}", f"at most {most}, as the file goes on", str(count))
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


def _read_tensor_info(reader: Reader) -> GgufTensorInfo:
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
