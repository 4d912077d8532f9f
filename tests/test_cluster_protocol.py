"""Messages as bytes: what is written is read, and no bytes do more than be refused."""

from __future__ import annotations

import socket
import struct
import threading
import time

import msgspec
import pytest
from cluster_world import setup_of  # type: ignore[import-not-found]
from hypothesis import given
from hypothesis import strategies as st

from dllama.cluster import protocol
from dllama.cluster.addresses import Address
from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.protocol import (
    Agreed,
    Bye,
    Challenge,
    Facts,
    Failed,
    Hello,
    Message,
    Missing,
    Proof,
    Pulse,
    Refused,
    bits,
    from_bits,
    shown,
)


@pytest.fixture(scope="module")
def messages(tiny) -> list[Message]:
    return [
        Hello("root", bytes(32), True, bytes(16)),
        Challenge(bytes(32), False),
        Proof(bytes(32)),
        Refused("no", 5),
        Facts("commit", "avx2", 4, 1 << 34),
        setup_of(tiny.model, [Address("10.0.0.2", 9999)], shares=[1.0, 2.0]),
        Agreed(True),
        Missing(b"\x01\x02"),
        Failed("a disk broke", 1),
        Pulse(3, {"steps": 1}),
        Bye(),
    ]


def test_messages_are_read_as_they_were_written(messages):
    for message in messages:
        assert protocol.decode(protocol.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Hello("root", bytes(31), True, bytes(16)),
        Hello("root", bytes(32), True, bytes(17)),
        Challenge(b"", False),
        Proof(bytes(33)),
        Refused("x" * 1025),
        Pulse(0, {str(number): 0 for number in range(65)}),
        Facts("x" * 2000, "", 1, 1),
    ],
)
def test_fields_have_limits(message):
    with pytest.raises(msgspec.DecodeError, match="length"):
        protocol.decode(protocol.encode(message))


@given(st.sets(st.integers(0, 99)))
def test_bits_keep_a_set_of_numbers(numbers):
    assert from_bits(bits(sorted(numbers), 100), 100) == sorted(numbers)


@pytest.mark.parametrize("field", [b"", bytes(12), bytes(14), bytes(12) + b"\x10"])
def test_bits_of_another_length_or_beyond_are_refused(field):
    with pytest.raises(ValueError, match="expected"):
        from_bits(field, 100)


def test_what_peers_say_is_shown_on_one_line():
    assert shown("a\x1b[2J\r\nb\u202e\0") == "a?[2J??b??"
    assert len(shown("x" * 5000)) == 1000


def test_a_slow_reader_and_a_fast_one_share_no_time_limit():
    """A send that may last long does not let a receive of the other thread last longer."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    sender = threading.Thread(target=channel.send_bytes, args=(bytes(32 << 20), 10))
    begin = time.monotonic()
    sender.start()
    with pytest.raises(ChannelClosed, match="no sign of life"):
        channel.receive_bytes(1, begin + 0.5)
    assert time.monotonic() - begin < 2
    theirs.settimeout(5)
    received = 0
    while received < 32 << 20:
        received += len(theirs.recv(1 << 20))
    sender.join()
    channel.close()
    theirs.close()


def test_a_message_that_stops_is_told_from_none():
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall(struct.pack("<I", 10) + b"12345")
    with pytest.raises(ChannelClosed, match="it stopped in mid-message"):
        channel.receive(time.monotonic() + 0.2)
    theirs.close()
    with pytest.raises(ChannelClosed, match="it closed its connection"):
        channel.receive(time.monotonic() + 0.2)
    channel.close()
