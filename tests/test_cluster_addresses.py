"""Addresses of workers, as given and as reached."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import closing, suppress

import pytest
from cluster_world import WorkerProcess, free_port, generate  # type: ignore[import-not-found]

from dllama.cluster import Cluster, addresses
from dllama.cluster.addresses import Address, check_distinct, connect, listen, parse_address
from dllama.cluster.channel import Channel
from dllama.engine import Engine
from dllama.errors import ClusterError, UsageError

try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    HAS_IPV6 = True
except OSError:
    HAS_IPV6 = False


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.2:9999", "10.0.0.2", 9999),
        ("pi.local", "pi.local", 9990),
        ("[fd00::2]:1", "fd00::2", 1),
        ("[::1]", "::1", 9990),
        ("host:65535", "host", 65535),
    ],
)
def test_addresses_are_read(text, host, port):
    assert parse_address(text) == Address(host, port)


def test_ipv6_is_written_as_it_is_read():
    assert str(parse_address("[fd00::2]:9999")) == "[fd00::2]:9999"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":9999",
            "a b:1",
            "a\n:1",
            "a\0:1",
            "a:0",
            "a:65536",
            "a:-1",
            "a:1e3",
            "a:٣",
            "a:",
            "a:999999",
            "x" * 256,
        ),
        *("fd00::2", "fd00::2:9999", "[fd00::2", "[fd00::2]9999", "[10.0.0.2]:1", "[]:1", "[fd00::2]:"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match=r"worker address: expected host:port"):
        parse_address(text)


def test_no_worker_is_named_twice():
    with pytest.raises(UsageError, match=r"localhost:1 and 127\.0\.0\.1:1 are the same worker; name it once"):
        check_distinct([Address("localhost", 1), Address("127.0.0.1", 1)])
    check_distinct([Address("127.0.0.1", 1), Address("127.0.0.1", 2)])


def test_loopback_is_not_mixed_with_addresses_of_the_network():
    with pytest.raises(UsageError, match="means a machine to itself"):
        check_distinct([Address("127.0.0.1", 1), Address("192.0.2.1", 1)])


@pytest.mark.parametrize("workers", ["127.0.0.1:1", [], [1], ["127.0.0.1:1"] * 1024])
def test_lists_of_workers_are_checked(workers):
    with pytest.raises(UsageError, match="workers: expected"):
        Cluster(workers)


def test_an_unknown_name_is_said(tiny):
    with pytest.raises(ClusterError, match=r"worker no-such-host\.invalid:9990: no machine of that name is known"):
        Engine.load(tiny.model, workers=["no-such-host.invalid"])


def test_a_closed_port_says_how_to_start_a_worker(tiny):
    port = free_port()
    with pytest.raises(ClusterError, match=rf"no worker listens there; start one: dllama worker --port {port}"):
        Engine.load(tiny.model, workers=[f"127.0.0.1:{port}"])


def test_the_root_among_its_workers_is_said(tiny, monkeypatch):
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)  # an address of this machine in the network
    with pytest.raises(
        ClusterError, match="no worker listens there \\(this machine; the root itself needs no entry\\)"
    ):
        connect(Address("127.0.0.1", free_port()), "worker x")


def test_a_silent_address_is_given_up(monkeypatch):
    monkeypatch.setattr(addresses, "CONNECT_S", 0.1)
    with socket.create_server(
        ("127.0.0.1", 0), backlog=0
    ) as listener:  # the kernel answers for as long as there is room
        address = Address("127.0.0.1", listener.getsockname()[1])
        waiting = [socket.create_connection((address.host, address.port), 0.1)]
        with suppress(TimeoutError):
            waiting.extend(socket.create_connection((address.host, address.port), 0.1) for _ in range(64))
        with pytest.raises(ClusterError, match="no answer within 0 s; is the machine on"):
            connect(address, "worker x")
        for each in waiting:
            each.close()


BANNERS = [b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", b"220 mx ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]


@pytest.mark.parametrize("banner", BANNERS)
def test_another_service_on_the_port_is_said(tiny, banner):
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(banner)
            connection.settimeout(5)
            while connection.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        begin = time.monotonic()
        with pytest.raises(ClusterError, match="a program answers there, but it is no dllama worker; check address"):
            Engine.load(tiny.model, workers=[f"127.0.0.1:{listener.getsockname()[1]}"])
        assert time.monotonic() - begin < 2
        server.join()


@pytest.mark.parametrize("says", [b"", b"\x16\xa8\x67\x01"])
def test_a_worker_of_another_program_that_closes_is_said(tiny, says):
    """As one of distributed-llama does, which takes our first bytes for sizes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(ClusterError, match="closed its connection; is it a dllama worker of this version"):
            Engine.load(tiny.model, workers=[f"127.0.0.1:{listener.getsockname()[1]}"])
        server.join()


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
def test_a_cluster_over_ipv6(tiny, tmp_path):
    with WorkerProcess(tmp_path, "--host", "::1") as worker:
        assert "Listening on [::1]:" in worker.output
        with Engine.load(tiny.model, num_threads=1, workers=[f"[::1]:{worker.port}"]) as engine:
            assert engine.logits([1, 2]).shape[0] == 2


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
def test_everywhere_is_both_versions_of_ip():
    with closing(listen(None, 0)) as listener:
        for host in ("127.0.0.1", "::1"):
            connect(Address(host, listener.getsockname()[1]), "worker x").close()


def test_a_taken_port_and_a_foreign_address_are_said():
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127\.0\.0\.1:{port}: address already in use; choose"):
            listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="check --host"):
        listen("192.0.2.1", 0)
    with pytest.raises(UsageError, match="no machine of that name is known"):
        listen("no-such-host.invalid", 0)


@pytest.mark.slow
def test_a_peer_that_is_busy_for_long_is_not_given_up():
    """The system's limit on what is not acknowledged counts a full window, too: heartbeats must decide instead."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = Channel(connect(Address("127.0.0.1", listener.getsockname()[1]), "worker x"))
        connection, _ = listener.accept()
        receiver = Channel(connection)
        thread = threading.Thread(target=sender.send_bytes, args=(bytes(32 << 20), 60))
        thread.start()
        time.sleep(20)
        assert receiver.receive_bytes(32 << 20, time.monotonic() + 10) == bytes(32 << 20)
        thread.join()
        sender.close()
        receiver.close()


def test_a_peer_that_does_not_read_still_answers():
    """Its window is full, and its system says so; ``tests/lan`` has links that are cut."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = connect(Address("127.0.0.1", listener.getsockname()[1]), "worker x")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0  # it counts a full window
        peer, _ = listener.accept()
        silence = addresses.Silence(connection)
        connection.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                connection.send(bytes(1 << 20))
        time.sleep(0.5)
        assert silence.seconds() == 0.0
        connection.close()
        peer.close()
    assert silence.seconds() == 0.0


class FakeConnection(socket.socket):
    """Says what the system would: bytes not acknowledged, and the milliseconds since the last answer."""

    unacknowledged = last_answer_ms = 0

    def getsockopt(self, *_what: int) -> bytes:  # type: ignore[override]
        return struct.pack("@8x16xI28xI", self.unacknowledged, self.last_answer_ms)


@pytest.fixture
def quiet():
    with FakeConnection() as connection:
        yield connection


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_is_sent_after_a_long_rest_is_not_late(clock, quiet):
    silence = addresses.Silence(connection := quiet)
    for _ in range(10):
        clock[0] += 1
        connection.last_answer_ms += 1000
        assert silence.seconds() == 0.0
    connection.unacknowledged = 1  # sent a moment ago; the last answer is ten seconds old
    assert silence.seconds() == 0.0
    clock[0] += 1
    connection.last_answer_ms = 900
    assert silence.seconds() == 0.0  # answered, and something else is on its way


def test_silence_counts_from_when_something_waits(clock, quiet):
    silence = addresses.Silence(connection := quiet)
    clock[0] += 10
    connection.unacknowledged, connection.last_answer_ms = 5, 10_500
    assert silence.seconds() == 0.0
    for second in range(1, 8):
        clock[0] += 1
        connection.last_answer_ms += 1000
        assert silence.seconds() == second
    connection.unacknowledged = 0
    assert silence.seconds() == 0.0


def test_several_workers_on_one_machine(tiny, tmp_path):
    with WorkerProcess(tmp_path / "1") as one, WorkerProcess(tmp_path / "2") as two:
        assert generate(tiny.model, [one, two], 4) == generate(tiny.model, [one], 4)
