"""GGUF files put together byte by byte, so that each part can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAGIC = b"GGUF"
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_Q8_0, TYPE_Q4_K, TYPE_I8 = 0, 1, 2, 8, 12, 24


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def text_pair(key: str, value: str) -> bytes:
    return pair(key, STRING, string(value))


def number_pair(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array_pair(key: str, kind: int, count: int, items: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + items)


@dataclass
class RawTensor:
    name: str | bytes
    sizes: Sequence[int]  # as the file has them: values of a row first
    kind: int = TYPE_F32
    offset: int = 0
    num_dims: int | None = None

    def raw(self) -> bytes:
        num_dims = len(self.sizes) if self.num_dims is None else self.num_dims
        return string(self.name) + struct.pack(f"<I{len(self.sizes)}QIQ", num_dims, *self.sizes, self.kind, self.offset)


@dataclass
class RawFile:
    """A file of any content; the defaults are sound."""

    pairs: Sequence[bytes] = ()
    tensors: Sequence[RawTensor] = ()
    data: bytes = b""
    magic: bytes = MAGIC
    version: bytes = struct.pack("<I", 3)
    num_tensors: int | None = None
    num_pairs: int | None = None
    alignment: int = 32
    rest: bytes = b""

    def raw(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_pairs = len(self.pairs) if self.num_pairs is None else self.num_pairs
        head = self.magic + self.version + struct.pack("<QQ", num_tensors, num_pairs)
        head += b"".join(self.pairs) + b"".join(tensor.raw() for tensor in self.tensors) + self.rest
        return head + bytes(-len(head) % self.alignment) + self.data
