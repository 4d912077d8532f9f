"""A connection that carries messages: each behind its length, read within a time and up to a size."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from contextlib import suppress

import msgspec

from dllama.cluster import protocol
from dllama.cluster.protocol import Bytes, Message, shown
from dllama.errors import DllamaError

_LENGTH = struct.Struct("<I")
STRANGER_LIMIT = 1024  # bytes of a message from whoever has not proved anything yet
MESSAGE_LIMIT = 1 << 20  # of a message from a peer; the largest has the addresses of all nodes and a model's config


class ChannelClosed(DllamaError):
    """The other side is gone, or did not say what was expected in time; its text says which, without a name."""


class Channel:
    """A connected socket, which it owns. One thread may send while another receives.

    Attributes:
        limit: Most bytes of one message that is received.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # a socket's own timeout would be one for both directions
        self._socket, self._sending, self.limit = connection, threading.Lock(), STRANGER_LIMIT

    @property
    def socket(self) -> socket.socket:
        """The connection."""
        return self._socket

    @property
    def peer(self) -> str:
        """The other side's number and port."""
        try:
            host, port = self._socket.getpeername()[:2]
        except (OSError, ValueError):
            return "a peer that is gone"
        host = str(host).removeprefix("::ffff:")
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def send_bytes(self, data: Bytes, seconds: float) -> None:
        """Send all of ``data``; raises ChannelClosed if that cannot be, or not in time."""
        deadline, rest = time.monotonic() + seconds, memoryview(data)
        try:
            with self._sending:
                while rest:
                    try:
                        rest = rest[self._socket.send(rest) :]
                    except BlockingIOError:
                        self._wait(select.POLLOUT, deadline)
        except TimeoutError:
            raise ChannelClosed(f"it took nothing for {seconds:.0f} s") from None
        except (OSError, ValueError) as error:
            raise ChannelClosed(_closed(error)) from None

    def receive_into(self, buffer: memoryview, deadline: float) -> None:
        """Fill ``buffer`` before ``time.monotonic()`` is ``deadline``; raises ChannelClosed if that cannot be."""
        done = 0
        while done < len(buffer):
            try:
                count = self._receive_some(buffer[done:], deadline)
            except TimeoutError:
                raise ChannelClosed("no sign of life from it" if not done else "it stopped in mid-message") from None
            except (OSError, ValueError) as error:
                raise ChannelClosed(_closed(error)) from None
            if count == 0:
                raise ChannelClosed("it closed its connection")
            done += count

    def _receive_some(self, buffer: memoryview, deadline: float) -> int:
        while True:
            try:
                return self._socket.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)

    def _wait(self, event: int, deadline: float) -> None:
        """Wait until the socket is ready; raises TimeoutError if it is not in time."""
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError

    def receive_bytes(self, num_bytes: int, deadline: float) -> bytes:
        """Receive so many bytes, as ``receive_into`` does."""
        data = bytearray(num_bytes)
        self.receive_into(memoryview(data), deadline)
        return bytes(data)

    def send(self, message: Message, seconds: float = 5.0) -> bytes:
        """Send a message and give its bytes."""
        data = protocol.encode(message)
        self.send_bytes(_LENGTH.pack(len(data)) + data, seconds)
        return data

    def receive(self, deadline: float) -> tuple[Message, bytes]:
        """Receive a message, and give its bytes too.

        Raises:
            ChannelClosed: There is none in time, or what comes is none.
        """
        (length,) = _LENGTH.unpack(self.receive_bytes(_LENGTH.size, deadline))
        if not 0 < length <= self.limit:
            raise ChannelClosed(f"it announced a message of {length} bytes, expected 1 to {self.limit}")
        data = self.receive_bytes(length, deadline)
        try:
            return protocol.decode(data), data
        except msgspec.DecodeError as error:
            raise ChannelClosed(f"it sent what is no message: {shown(str(error))}") from None

    def shut(self) -> None:
        """End all waits of this channel, in any thread, and the connection; its descriptor stays until ``close``."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self.shut()
        self._socket.close()


def _closed(error: OSError | ValueError) -> str:
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "it closed its connection"
    return f"the connection failed: {getattr(error, 'strerror', None) or error}"
