"""Writing GGUF files: any metadata and tensors, in llama.cpp's format, version 3. Nothing here knows what they mean."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama.errors import UsageError
from dllama.formats.checked_file import new_file
from dllama.formats.gguf_types import DEFAULT_ALIGNMENT, FIXED_SIZE, MAGIC, VERSION, GgmlType, ValueType
from dllama.formats.quants import RawRows

# What metadata may be: whole numbers are written in 32 bits if they fit, floats always; bytes as an array of them.
Value = bool | int | float | str | bytes | Sequence[str] | Sequence[int] | Sequence[float] | npt.NDArray[np.generic]
_DTYPES = {np.dtype(code): kind for kind, code in FIXED_SIZE.items() if kind is not ValueType.BOOL}


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written: ``shape`` ends in the values of a row; ``rows`` gives its bytes in chunks."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    rows: Callable[[], Iterable[RawRows]]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) // self.type.block_size * self.type.block_bytes


def write_container(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Sequence[NewTensor],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a GGUF file; ``path`` is untouched until it is complete.

    Args:
        path: Where to write.
        metadata: Values by key.
        tensors: In the order in which they are to lie.
        progress: Called with the bytes of tensors written, and all of them.

    Raises:
        UsageError: ``path`` cannot be written, or a tensor has other bytes than its shape says.
        DllamaError: The disk is full or fails.
    """
    head = _head(metadata, tensors)
    total = sum(_padded(tensor.nbytes) for tensor in tensors)
    done = 0
    with new_file(path, len(head) + total) as file:
        file.write(head)
        for tensor in tensors:
            written = 0
            for chunk in tensor.rows():
                file.write(np.ascontiguousarray(chunk).data)
                written += chunk.nbytes
                if progress:
                    progress(done + written, total)
            if written != tensor.nbytes:
                raise UsageError(f"{tensor.name}: expected {tensor.nbytes} bytes, found {written}")
            file.write(bytes(_padded(written) - written))
            done += _padded(written)


def _head(metadata: Mapping[str, Value], tensors: Sequence[NewTensor]) -> bytes:
    """Build all that stands before the tensors' data."""
    parts = [struct.pack("<IIQQ", MAGIC, VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        parts += [_string(tensor.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        parts.append(struct.pack("<IQ", tensor.type.id, offset))
        offset += _padded(tensor.nbytes)
    head = b"".join(parts)
    return head + bytes(_padded(len(head)) - len(head))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    """Write a value behind its type."""
    match value:
        case bool():
            return _fixed(ValueType.BOOL, value)
        case int():
            kinds = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
            return _fixed(next(kind for kind in kinds if _fits(value, kind)), value)
        case float():
            return _fixed(ValueType.FLOAT32, value)
        case str():
            return struct.pack("<I", ValueType.STRING) + _string(value)
        case bytes():
            return _array(ValueType.UINT8, len(value), value)
        case np.ndarray():
            return _array(_DTYPES[value.dtype], len(value), value.tobytes())
    return _list(value)


def _list(values: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) == len(values):
        return _array(ValueType.STRING, len(values), b"".join(map(_string, texts)))
    is_whole = all(isinstance(value, int) for value in values)
    kind, dtype = (ValueType.INT32, np.int32) if is_whole else (ValueType.FLOAT32, np.float32)
    return _array(kind, len(values), np.array(values, dtype).tobytes())


def _fits(value: int, kind: ValueType) -> bool:
    limits = np.iinfo(np.dtype(FIXED_SIZE[kind]))
    return limits.min <= value <= limits.max


def _fixed(kind: ValueType, value: float) -> bytes:
    return struct.pack(f"<I{FIXED_SIZE[kind]}", kind, value)


def _array(kind: ValueType, count: int, items: bytes) -> bytes:
    return struct.pack("<IIQ", ValueType.ARRAY, kind, count) + items
