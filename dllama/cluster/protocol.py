"""What root and workers say to each other on control connections: the first bytes, and every message.

A connection begins with a preamble from each side, the same in all versions; then come messages, each behind its length
in four bytes. Both name this protocol's version: a change of anything here or in ``csrc/net/frame.h`` raises it.
"""

from __future__ import annotations

import struct
import time
from typing import Annotated, Final, Literal

import msgspec

import dllama
from dllama.config import DType, ModelConfig

VERSION: Final = 2
MAGIC: Final = b"dllama\r\n"
PREAMBLE: Final = struct.Struct("<8sI20s")  # magic, protocol version, dllama's version
SESSION_BYTES: Final = 16
NONCE_BYTES: Final = 32
MAC_BYTES: Final = 32
MAX_NODES: Final = 1024
PATIENCE_S: Final = 1e6  # for what takes as long as it takes: heartbeats say whether there is still somebody

Bytes = bytes | bytearray | memoryview
Role = Literal["root", "link"]
_PER_NODE = msgspec.Meta(max_length=MAX_NODES)
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Port = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
Session = Annotated[bytes, msgspec.Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Mac = Annotated[bytes, msgspec.Meta(min_length=MAC_BYTES, max_length=MAC_BYTES)]


def never() -> float:
    """Give a deadline that does not come, for waits that end when heartbeats do."""
    return time.monotonic() + PATIENCE_S


def shown(text: str) -> str:
    """Make what a peer said fit to be shown: one line of printable characters, not longer than a message may be."""
    return "".join(char if char.isprintable() else "?" for char in text[:1000])


def preamble() -> bytes:
    """Give this side's first bytes."""
    return PREAMBLE.pack(MAGIC, VERSION, dllama.__version__.encode()[:20])


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages."""


# --- handshake ----------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """Who connects: a root, or a node of a session that links to another."""

    role: Role
    nonce: Nonce
    has_key: bool
    session: Session  # of the cluster that it belongs to
    rank: int = 0  # of the node that connects


class Challenge(Message, frozen=True):
    """The answer: prove that you know the key."""

    nonce: Nonce
    has_key: bool


class Proof(Message, frozen=True):
    """Proof of the key, over everything said before."""

    mac: Mac


class Refused(Message, frozen=True):
    """No, and why, in one line; ``exit_code`` is that of the error it should end in."""

    reason: Text
    exit_code: int = 4


# --- a session ----------------------------------------------------------------------------------


class Facts(Message, frozen=True):
    """Worker: what it is, once it has agreed to serve this root."""

    commit: Text
    isa: Text
    num_threads: int
    available_memory: int


class Setup(Message, frozen=True):
    """Root: the model, the plan, and who takes part."""

    rank: int
    names: Annotated[list[Text], _PER_NODE]  # what users call them
    hosts: Annotated[list[tuple[Text, Port]], _PER_NODE]  # of ranks 1 and up, as the root reaches them
    config: ModelConfig
    shares: Annotated[list[float], _PER_NODE] | None
    plan: Text  # digest
    wire_type: DType
    kv_type: DType
    max_seq_len: int
    kv_tokens: int
    max_batch_tokens: int
    manifest: bytes  # id of the list of all weight tiles
    commit: Text  # of the root's build


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

    reason: Text
    rank: int
    exit_code: int = 4


class Ask(Message, frozen=True):
    """Root: send a pulse with this number now."""

    number: int


class Pulse(Message, frozen=True):
    """Heartbeat, with the node's counters once there is one; ``answers`` is the number of an ``Ask``, or 0."""

    answers: int = 0
    counters: Annotated[dict[Text, int], msgspec.Meta(max_length=64)] = {}


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
    try:
        message: Message = _decoder.decode(data)
    except (ValueError, RecursionError) as error:  # text that is no UTF-8, endless nesting
        raise msgspec.DecodeError(str(error)) from None
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
