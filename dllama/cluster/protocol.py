"""What root and workers say to each other on control connections: the first bytes, and every message.

A connection begins with a preamble from each side, the same in all versions; then come messages, each behind its length
in four bytes. Both name this protocol's version: a change of anything here or in ``csrc/net/frame.h`` raises it.
"""

from __future__ import annotations

import struct
import time
from typing import Final, Literal

import msgspec

import dllama
from dllama.config import DType, ModelConfig

VERSION: Final = 1
MAGIC: Final = b"dllama\r\n"
PREAMBLE: Final = struct.Struct("<8sI20s")  # magic, protocol version, dllama's version
SESSION_BYTES: Final = 16
NONCE_BYTES: Final = 32
MAC_BYTES: Final = 32
MAX_NODES: Final = 1024
PATIENCE_S: Final = 1e6  # for what takes as long as it takes: heartbeats say whether there is still somebody

Role = Literal["root", "link"]


def never() -> float:
    """Give a deadline that does not come, for waits that end when heartbeats do."""
    return time.monotonic() + PATIENCE_S


def preamble() -> bytes:
    """Give this side's first bytes."""
    return PREAMBLE.pack(MAGIC, VERSION, dllama.__version__.encode()[:20])


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages."""


# --- handshake ----------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """Who connects: a root, or a node of a session that links to another."""

    role: Role
    nonce: bytes
    has_key: bool
    session: bytes  # of the cluster that it belongs to
    rank: int = 0  # of the node that connects


class Challenge(Message, frozen=True):
    """The answer: prove that you know the key."""

    nonce: bytes
    has_key: bool


class Proof(Message, frozen=True):
    """Proof of the key, over everything said before."""

    mac: bytes


class Refused(Message, frozen=True):
    """No, and why, in one line; ``exit_code`` is that of the error it should end in."""

    reason: str
    exit_code: int = 4


# --- a session ----------------------------------------------------------------------------------


class Facts(Message, frozen=True):
    """Worker: what it is, once it has agreed to serve this root."""

    commit: str
    isa: str
    num_threads: int
    available_memory: int


class Setup(Message, frozen=True):
    """Root: the model, the plan, and who takes part."""

    rank: int
    names: list[str]  # by rank; what users call them
    hosts: list[tuple[str, int]]  # of ranks 1 and up, as the root reaches them
    config: ModelConfig
    shares: list[float] | None
    plan: str  # digest
    wire_type: DType
    kv_type: DType
    max_seq_len: int
    kv_tokens: int
    max_batch_tokens: int
    manifest: bytes  # id of the list of all weight tiles


class Agreed(Message, frozen=True):
    """Worker: it has room for its part."""

    has_manifest: bool


class Connect(Message, frozen=True):
    """Root: all have agreed; link to the workers of higher rank."""


class Linked(Message, frozen=True):
    """Worker: it has a link to every other node."""


class Missing(Message, frozen=True):
    """Worker: the tiles that it needs and lacks, as bits of a number, tile 0 lowest."""

    tiles: bytes


class Loaded(Message, frozen=True):
    """Worker: all weights are in place, and it follows."""


class Failed(Message, frozen=True):
    """Worker: it cannot go on; ``rank`` is the node whose fault it seems to be."""

    reason: str
    rank: int
    exit_code: int = 4


class Ask(Message, frozen=True):
    """Root: send a pulse now."""


class Pulse(Message, frozen=True):
    """Heartbeat, with the node's counters once there is one."""

    counters: dict[str, int] = {}


class Bye(Message, frozen=True):
    """Root: the session is over."""


ANY = Hello | Challenge | Proof | Refused | Facts | Setup | Agreed | Connect | Linked | Missing | Loaded | Failed | (
    Ask | Pulse | Bye
)  # fmt: skip
_decoder = msgspec.msgpack.Decoder(ANY)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Write a message as bytes, without its length."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Read one; raises msgspec.DecodeError if it is none."""
    message: Message = _decoder.decode(data)
    return message


def bits(indices: list[int], count: int) -> bytes:
    """Write a set of numbers below ``count`` as bits."""
    field = bytearray(-(-count // 8))
    for index in indices:
        field[index // 8] |= 1 << index % 8
    return bytes(field)


def from_bits(field: bytes, count: int) -> list[int]:
    """Read what ``bits`` wrote; raises ValueError if it is of another length, or has numbers beyond ``count``."""
    if len(field) != -(-count // 8):
        raise ValueError(f"expected {-(-count // 8)} bytes of bits, found {len(field)}")
    indices = [8 * place + bit for place, byte in enumerate(field) if byte for bit in range(8) if byte >> bit & 1]
    if indices and indices[-1] >= count:
        raise ValueError(f"expected numbers below {count}, found {indices[-1]}")
    return indices
