"""Where workers are: addresses as users write them, what they stand for, and sockets to and from them."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dllama.errors import ClusterError, UsageError

DEFAULT_PORT = 9990
CONNECT_S = 5.0  # for an address to answer
_HIGHEST_PORT = 65535
_BACKLOG = 1024  # connections that come at once: beyond it each would wait for a second
_TCP_INFO = struct.Struct("@8x16xI28xI")  # of Linux: tcpi_unacked, tcpi_last_ack_recv (ms)
_KEEPALIVE_S = 30  # routers forget connections that are idle for minutes


@dataclass(frozen=True, slots=True)
class Address:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write it as ``host:port``, IPv6 numbers in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``host``, ``host:port``, ``[ipv6]`` or ``[ipv6]:port``; raises UsageError if it is none of these."""
    expected = f"worker address: expected host:port, e.g. 10.0.0.2:9999 or [fd00::2]:9999, found {text!r:.80}"
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        is_number = bracket and _is_ipv6(host) and (not port or port.startswith(":"))
        host, port = (host, port[1:] if port else str(DEFAULT_PORT)) if is_number else ("", "")
    elif text.count(":") > 1:
        raise UsageError(f"{expected}; numbers of IPv6 stand in brackets")
    else:
        host, colon, port = text.partition(":")
        port = port if colon else str(DEFAULT_PORT)
    if not host or len(host) > 255 or any(char.isspace() or not char.isprintable() for char in host):
        raise UsageError(expected)
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 1 <= int(port) <= _HIGHEST_PORT):
        raise UsageError(f"{expected}; ports are 1 to {_HIGHEST_PORT}")
    return Address(host, int(port))


def _is_ipv6(host: str) -> bool:
    try:
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    except ValueError:
        return False


def check_distinct(addresses: Sequence[Address]) -> None:
    """Make sure that no worker is named twice, and that other workers can reach each.

    Raises:
        UsageError: They are not, or cannot.
        ClusterError: A name that nobody knows.
    """
    seen: dict[tuple[str, int], Address] = {}
    for address in addresses:
        for number in sorted(numbers(address)):
            other = seen.setdefault((number, address.port), address)
            if other is not address:
                raise UsageError(f"workers: {other} and {address} are the same worker; name it once")
    local = [address for address in addresses if is_loopback(address.host)]
    if local and len(local) < len(addresses):
        raise UsageError(
            f"workers: {local[0]} means a machine to itself, and other workers cannot reach it so; "
            "name that worker by its machine's address in the network"
        )


def numbers(address: Address) -> set[str]:
    """Give the IP numbers of a host; raises ClusterError if there is none."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ClusterError(f"worker {address}: no machine of that name is known ({why}); check the name") from None
    return {str(info[4][0]) for info in found}


def is_loopback(host: str) -> bool:
    """Whether a host's numbers reach this machine alone; False for a name that is not known."""
    try:
        found = numbers(Address(host, DEFAULT_PORT))
    except ClusterError:
        return False
    return all(ipaddress.ip_address(number.partition("%")[0]).is_loopback for number in found)


def connect(address: Address, what: str) -> socket.socket:
    """Connect to a worker, trying all its numbers.

    Args:
        address: The worker.
        what: Who connects where, for messages: ``"worker 10.0.0.2:9999"``.

    Raises:
        ClusterError: Nobody answers there.
    """
    numbers(address)
    try:
        connection = socket.create_connection((address.host, address.port), CONNECT_S)
    except ConnectionRefusedError:
        raise _no_worker(address, what) from None
    except TimeoutError:
        advice = "is the machine on, the address right, and the port open in its firewall?"
        raise ClusterError(f"{what}: no answer within {CONNECT_S:.0f} s; {advice}") from None
    except (OSError, UnicodeError) as error:
        raise ClusterError(f"{what}: cannot be reached: {getattr(error, 'strerror', None) or error}") from None
    if connection.getsockname() == connection.getpeername():  # a free port of this machine can connect to itself
        connection.close()
        raise _no_worker(address, what)
    tune(connection)
    return connection


def number_of(connection: socket.socket) -> tuple[str, int] | None:
    """Give IP number and port of the other side; None if it is gone, or if its number means something here alone."""
    try:
        host, port, *scope = connection.getpeername()
    except OSError:
        return None
    return None if scope and scope[1] else (str(host), int(port))


def _no_worker(address: Address, what: str) -> ClusterError:
    hint = " (this machine; the root itself needs no entry)" if _is_here(address.host) else ""
    key = "" if is_loopback(address.host) else " --key-file FILE (without a key it listens to its own machine only)"
    return ClusterError(f"{what}: no worker listens there{hint}; start one: dllama worker --port {address.port}{key}")


def _is_here(host: str) -> bool:
    """Whether a host is this machine, by an address of the network: one can listen there."""
    if is_loopback(host):
        return False
    with suppress(OSError, UnicodeError), socket.create_server((host, 0)):
        return True
    return False


def tune(connection: socket.socket) -> None:
    """Send at once what is sent, and show routers that the connection is still there."""
    _set(connection, "TCP_NODELAY", 1)
    _set(connection, "TCP_KEEPIDLE", _KEEPALIVE_S)
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Silence:
    """Measures for how long the other side's system has not acknowledged what was sent to it.

    A system answers whether its program reads or computes, so this tells a link that is cut from a peer that is busy,
    which TCP_USER_TIMEOUT does not. Linux alone says it.

    Args:
        connection: A connected socket of TCP.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._since: float | None = None  # when something was first seen to wait
        self._looked = time.monotonic()

    def seconds(self) -> float:
        """Look again; 0 if nothing waits to be acknowledged, or nobody knows. To be called every second or so."""
        now, before = time.monotonic(), self._looked
        waits, last_answer = self._state()
        self._looked = now
        if not waits or last_answer < now - before:  # all is answered, or something was since the last look
            self._since = None
            return 0.0
        if self._since is None:  # what was sent after a long rest may be a moment old
            self._since = now
        return min(now - self._since, last_answer)

    def _state(self) -> tuple[bool, float]:
        """Say whether something waits to be acknowledged, and how many seconds ago anything was."""
        try:
            info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            unacknowledged, last_answer_ms = _TCP_INFO.unpack(info)
        except (AttributeError, OSError, struct.error):
            return False, 0.0
        return unacknowledged > 0, last_answer_ms / 1000


def _set(connection: socket.socket, option: str, value: int) -> None:
    """Set an option of TCP where there is such; the peer may be gone already, which the next read says better."""
    if hasattr(socket, option):
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def listen(host: str | None, port: int) -> socket.socket:
    """Listen on a host's address, or on all addresses of this machine if it is None.

    Raises:
        UsageError: The port is taken, or the address is not this machine's.
    """
    is_dual = host is None and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual or (host and _is_ipv6(host)) else socket.AF_INET
    if host and not _is_ipv6(host):
        family = _family_of(host)
    where = Address(host or "0.0.0.0", port)
    try:
        return socket.create_server((host or "", port), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual)
    except OSError as error:
        advice = (
            "choose another --port, or end the program that has it"
            if error.errno == errno.EADDRINUSE
            else "check --host"
        )
        raise UsageError(f"cannot listen on {where}: {_why(error)}; {advice}") from None


def _why(error: OSError) -> str:
    """Say what the system says, without Python's additions."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _family_of(host: str) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise UsageError(f"--host {host}: no machine of that name is known; give an address of this machine") from None
