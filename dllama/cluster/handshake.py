"""The first moments of a connection, on both sides: versions, then mutual proof of the key (``auth``)."""

from __future__ import annotations

import os
import time
from typing import TypeVar

from dllama.cluster import protocol
from dllama.cluster.auth import Transcript
from dllama.cluster.channel import MESSAGE_LIMIT, Channel, ChannelClosed
from dllama.cluster.protocol import Challenge, Hello, Message, Proof, Refused, shown
from dllama.errors import ClusterError

HANDSHAKE_S = 5.0
_SAME = "install the same version of dllama on both"
_Wanted = TypeVar("_Wanted", bound=Message)


class Stranger(ClusterError):
    """Somebody connected who is no dllama of this version, or knows no key."""


def connect(channel: Channel, hello: Hello, key: bytes | None, name: str) -> None:
    """Do the connecting side's part.

    Args:
        channel: A fresh connection.
        hello: Who connects; its nonce and ``has_key`` are made here.
        key: The key to prove.
        name: Who is at the other end, for messages, e.g. ``"worker 10.0.0.2:9999"``.

    Raises:
        ClusterError: The other side is no dllama worker, of another version, or does not know the key.
    """
    deadline, transcript = time.monotonic() + HANDSHAKE_S, Transcript(key)
    hello = Hello(hello.role, os.urandom(protocol.NONCE_BYTES), key is not None, hello.session, hello.rank)
    try:
        ours = protocol.preamble()
        channel.send_bytes(ours, HANDSHAKE_S)
        theirs = _receive_preamble(channel, deadline, name)
        for said in (ours, theirs, channel.send(hello)):
            transcript.add(said)
        challenge = _next(channel, Challenge, deadline, name, transcript)
        _check_keys(challenge, key, name)
        channel.send(Proof(transcript.proof(of_connecting=True)))
        proof = _next(channel, Proof, deadline, name, None)
    except ChannelClosed as error:
        raise ClusterError(f"{name}: {error}; is it a dllama worker of this version?") from None
    if not transcript.is_proof(proof.mac, of_connecting=False):
        raise ClusterError(f"{name}: it does not know the key of this cluster; give both the same --key-file")
    channel.limit = MESSAGE_LIMIT


def _receive_preamble(channel: Channel, deadline: float, name: str) -> bytes:
    magic = channel.receive_bytes(len(protocol.MAGIC), deadline)
    if magic != protocol.MAGIC:
        raise ClusterError(f"{name}: a program answers there, but it is no dllama worker; check address and port")
    theirs = magic + channel.receive_bytes(protocol.PREAMBLE.size - len(magic), deadline)
    if theirs != protocol.preamble():
        _, version, text = protocol.PREAMBLE.unpack(theirs)
        raise ClusterError(f"{name}: it is {_version(version, text)}, this is {_this()}; {_SAME}")
    return theirs


def _version(protocol_version: int, text: bytes) -> str:
    name = text.rstrip(b"\0").decode("ascii", "replace")
    return f"dllama {shown(name)} (protocol {protocol_version})"


def _this() -> str:
    _, version, text = protocol.PREAMBLE.unpack(protocol.preamble())
    return _version(version, text)


def _check_keys(challenge: Challenge, key: bytes | None, name: str) -> None:
    if challenge.has_key and key is None:
        raise ClusterError(f"{name}: it asks for a key; give its --key-file (or DLLAMA_CLUSTER_KEY)")
    if key is not None and not challenge.has_key:
        raise ClusterError(f"{name}: it has no key, so it cannot prove who it is; start it with the same --key-file")


def answer(channel: Channel, deadline: float) -> tuple[Hello, Transcript]:
    """Do the listening side's part up to who connects; ``prove`` does the rest once the key is known.

    Raises:
        Stranger: Whoever connects is no dllama of this version. An empty text: it said nothing at all.
    """
    transcript, start = Transcript(), bytearray(protocol.PREAMBLE.size)
    magic = memoryview(start)[: len(protocol.MAGIC)]
    try:
        channel.receive_into(magic[:1], deadline)
    except ChannelClosed:
        raise Stranger("") from None
    try:
        channel.receive_into(magic[1:], deadline)
    except ChannelClosed as error:
        raise Stranger(f"it is no dllama root: {error}") from None
    if bytes(magic) != protocol.MAGIC:
        raise Stranger(_who(bytes(magic)))
    try:
        channel.receive_into(memoryview(start)[len(magic) :], deadline)
        channel.send_bytes(protocol.preamble(), HANDSHAKE_S)
        if start != protocol.preamble():
            _, version, text = protocol.PREAMBLE.unpack(start)
            raise Stranger(f"it is {_version(version, text)}, this is {_this()}; {_SAME}")
        hello, said = channel.receive(deadline)
    except ChannelClosed as error:
        raise Stranger(f"its handshake failed: {error}") from None
    if not isinstance(hello, Hello):
        raise Stranger("its handshake failed: it did not say who it is")
    for each in (bytes(start), protocol.preamble(), said):
        transcript.add(each)
    return hello, transcript


def prove(channel: Channel, hello: Hello, transcript: Transcript, key: bytes | None, deadline: float) -> None:
    """Have the connecting side prove that it knows ``key``, and prove it to them.

    Raises:
        Stranger: It does not; it has been told.
    """
    transcript.key = key
    try:
        transcript.add(channel.send(Challenge(os.urandom(protocol.NONCE_BYTES), key is not None)))
        if hello.has_key != (key is not None):
            raise Stranger("it has a key, this worker has none" if hello.has_key else "it has no key")
        proof, _ = channel.receive(deadline)
        if not isinstance(proof, Proof) or not transcript.is_proof(proof.mac, of_connecting=True):
            channel.send(Refused("it does not accept this key; give both the same --key-file"))
            raise Stranger("it does not know the key")
        channel.send(Proof(transcript.proof(of_connecting=False)))
    except ChannelClosed as error:
        raise Stranger(f"its handshake failed: {error}") from None
    channel.limit = MESSAGE_LIMIT


def _next(
    channel: Channel, wanted: type[_Wanted], deadline: float, name: str, transcript: Transcript | None
) -> _Wanted:
    message, said = channel.receive(deadline)
    if isinstance(message, Refused):
        raise ClusterError(f"{name}: {shown(message.reason)}")
    if not isinstance(message, wanted):
        raise ChannelClosed("it said something else than expected")
    if transcript is not None:
        transcript.add(said)
    return message


def _who(start: bytes) -> str:
    """Guess who speaks so."""
    if start[:5] in (b"GET /", b"POST ", b"HEAD ", b"PUT /", b"OPTIO"):
        return "it is a web client, no dllama root"
    if start[0] == 0x16 and start[1] == 3:
        return "it speaks TLS, which dllama does not"
    if start[0] != 0 and not any(start[1:4]) and not any(start[5:8]) and start[4] < start[0]:
        return "it is a root of distributed-llama, whose protocol is another; start this project's dllama on the root"
    return "it is no dllama root"
