"""The handshake: who is let in, and what each side is told, over a pair of sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from cluster_world import WorkerProcess, load  # type: ignore[import-not-found]

import dllama
from dllama.cluster import auth, handshake, protocol
from dllama.cluster.auth import load_key
from dllama.cluster.channel import STRANGER_LIMIT, Channel, ChannelClosed
from dllama.cluster.handshake import Stranger
from dllama.cluster.protocol import Challenge, Facts, Hello, Proof, Refused
from dllama.cluster.root import Cluster, Peer
from dllama.errors import ClusterError, UsageError

KEY, OTHER = b"k" * 32, b"o" * 32
SESSION = b"s" * 16
ROOT = Hello("root", b"", False, SESSION)


@dataclass
class Met:
    """What both sides made of a handshake; None: all is well."""

    root: Exception | None = None
    worker: Exception | None = None
    hello: Hello | None = None
    to_worker: bytearray = field(default_factory=bytearray)
    to_root: bytearray = field(default_factory=bytearray)


def thread_of(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def answer(connection: socket.socket, key: bytes | None, met: Met, seconds: float = 5.0) -> None:
    """Do the worker's part."""
    channel, deadline = Channel(connection), time.monotonic() + seconds
    try:
        met.hello, transcript = handshake.answer(channel, deadline)
        handshake.prove(channel, met.hello, transcript, key, deadline)
    except Stranger as error:
        met.worker = error
    channel.close()


def pump(source: socket.socket, target: socket.socket, log: bytearray, flip: int | None) -> None:
    """Carry bytes, one bit changed at byte ``flip``."""
    with suppress(OSError):
        while data := bytearray(source.recv(65536)):
            if flip is not None and len(log) <= flip < len(log) + len(data):
                data[flip - len(log)] ^= 1
            log += data
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def meet(root_key, worker_key, *, hello=ROOT, flip_to_worker=None, flip_to_root=None, seconds=5.0) -> Met:
    """Have a root and a worker meet, through somebody in the middle."""
    met = Met()
    (root, middle_root), (middle_worker, worker) = socket.socketpair(), socket.socketpair()
    threads = [
        thread_of(pump, middle_root, middle_worker, met.to_worker, flip_to_worker),
        thread_of(pump, middle_worker, middle_root, met.to_root, flip_to_root),
        thread_of(answer, worker, worker_key, met, seconds),
    ]
    channel = Channel(root)
    try:
        handshake.connect(channel, hello, root_key, "worker x")
    except ClusterError as error:
        met.root = error
    channel.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for each in (middle_root, middle_worker):
        each.close()
    return met


def with_version(monkeypatch: pytest.MonkeyPatch, number: int, version: str) -> Met:
    """Have a worker of another version meet this root: the worker's side speaks in a thread of its own."""
    ours, theirs = protocol.preamble(), protocol.PREAMBLE.pack(protocol.MAGIC, number, version.encode())
    root_thread = threading.current_thread()
    monkeypatch.setattr(protocol, "preamble", lambda: ours if threading.current_thread() is root_thread else theirs)
    return meet(KEY, KEY)


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("hello", [ROOT, Hello("link", b"", False, SESSION, 3)])
def test_those_who_share_a_key_are_let_in(key, hello):
    met = meet(key, key, hello=hello)
    assert (met.root, met.worker) == (None, None)
    assert met.hello is not None
    assert (met.hello.role, met.hello.session, met.hello.rank) == (hello.role, SESSION, hello.rank)


def test_a_wrong_key_is_said_on_both_sides():
    met = meet(OTHER, KEY)
    assert str(met.root) == "worker x: it does not accept this key; give both the same --key-file"
    assert str(met.worker) == "it does not know the key"


def test_a_key_on_one_side_only_is_said_on_both_sides():
    met = meet(None, KEY)
    assert str(met.root) == "worker x: it asks for a key; give its --key-file (or DLLAMA_CLUSTER_KEY)"
    assert str(met.worker) == "it has no key"
    met = meet(KEY, None)
    assert "it has no key, so it cannot prove who it is; start it with the same --key-file" in str(met.root)
    assert str(met.worker) == "it has a key, this worker has none"


@pytest.mark.parametrize("number", [protocol.VERSION - 1, protocol.VERSION + 1])
def test_other_versions_are_said_on_both_sides(monkeypatch, number):
    met = with_version(monkeypatch, number, "9.8.7")
    this, other = f"dllama {dllama.__version__} (protocol {protocol.VERSION})", f"dllama 9.8.7 (protocol {number})"
    assert str(met.root) == f"worker x: it is {other}, this is {this}; install the same version of dllama on both"
    assert str(met.worker) == f"it is {this}, this is {other}; install the same version of dllama on both"


def test_a_hostile_version_is_shown_on_one_line(monkeypatch):
    met = with_version(monkeypatch, 7, "1\x1b[2J\n\r")
    assert str(met.root).isprintable()
    assert "1?[2J??" in str(met.root)


def test_other_builds_are_noted():
    cluster = Cluster(["127.0.0.1:1"])
    cluster.peers[0].facts = Facts("abc\x1b", "avx2", 1, 1)
    (note,) = cluster.notes()
    assert note.startswith("worker 127.0.0.1:1 is of another build, commit abc?; this one's is ")


def replay(recorded: bytes, key: bytes | None) -> Met:
    """Say to a worker what a root said before."""
    met = Met()
    ours, worker = socket.socketpair()
    thread = thread_of(answer, worker, key, met)
    ours.sendall(recorded)
    ours.shutdown(socket.SHUT_WR)
    thread.join(10)
    with suppress(ConnectionResetError):  # the worker may not have read all
        while data := ours.recv(65536):
            met.to_root += data
    ours.close()
    return met


def test_a_recorded_handshake_is_of_no_use():
    recorded = meet(KEY, KEY)
    again = replay(bytes(recorded.to_worker), KEY)
    assert str(again.worker) == "it does not know the key"
    assert recorded.to_root != again.to_root


def test_a_worker_proves_nothing_to_strangers():
    """Nor can it be made to answer for somebody else: its own proof comes last, and only for who has proved the key."""
    recorded = meet(KEY, KEY)
    again = replay(bytes(recorded.to_worker), KEY)
    channel_bytes = bytes(again.to_root)[protocol.PREAMBLE.size :]
    kinds = [type(message) for message in messages(channel_bytes)]
    assert kinds == [Challenge, Refused]


def messages(data: bytes) -> list[protocol.Message]:
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(protocol.decode(data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def test_a_root_that_sends_its_words_back_is_refused():
    """Reflection: what the worker says is sent to it as the root's part."""
    met = Met()
    ours, worker = socket.socketpair()
    thread = thread_of(answer, worker, KEY, met)
    channel = Channel(ours)
    channel.send_bytes(protocol.preamble(), 5)
    channel.receive_bytes(protocol.PREAMBLE.size, time.monotonic() + 5)
    channel.send(Hello("root", os.urandom(32), True, SESSION))
    challenge, _ = channel.receive(time.monotonic() + 5)
    channel.send(challenge)
    assert isinstance(channel.receive(time.monotonic() + 5)[0], Refused)
    thread.join(10)
    assert str(met.worker) == "it does not know the key"
    channel.close()


def impostor(connection: socket.socket, proof_of: object) -> None:
    """Answer as a worker that does not know the key; ``proof_of`` makes its proof from the root's."""
    channel, deadline = Channel(connection), time.monotonic() + 5
    with suppress(ChannelClosed):
        channel.receive_bytes(protocol.PREAMBLE.size, deadline)
        channel.send_bytes(protocol.preamble(), 5)
        channel.receive(deadline)
        channel.send(Challenge(os.urandom(32), True))
        proof, _ = channel.receive(deadline)
        assert isinstance(proof, Proof)
        channel.send(Proof(proof_of(proof.mac)))  # type: ignore[operator]


@pytest.mark.parametrize("proof_of", [lambda mac: mac, lambda _mac: bytes(32)])
def test_a_worker_that_does_not_know_the_key_is_refused(proof_of):
    ours, theirs = socket.socketpair()
    thread = thread_of(impostor, theirs, proof_of)
    channel = Channel(ours)
    with pytest.raises(ClusterError, match="it does not know the key of this cluster"):
        handshake.connect(channel, ROOT, KEY, "worker x")
    channel.close()
    thread.join(10)
    theirs.close()


def test_a_link_does_not_pass_for_a_root():
    """What proves a link is made of another key, and the role is part of what is proved."""
    assert auth.link_key(KEY, SESSION) not in (KEY, auth.link_key(KEY, b"t" * 16), auth.link_key(OTHER, SESSION))
    met = meet(auth.link_key(KEY, SESSION), KEY)
    assert str(met.worker) == "it does not know the key"


def test_no_bit_can_be_changed(monkeypatch):
    """Whatever is changed in what one side says before its proof, the other notices."""
    plain = meet(KEY, KEY)
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 0.5)  # a length that became larger is waited for
    for index in range(0, len(plain.to_worker), 7):
        met = meet(KEY, KEY, flip_to_worker=index, seconds=0.5)
        assert met.root or met.worker, f"byte {index} to the worker"
    for index in range(0, len(plain.to_root), 7):
        met = meet(KEY, KEY, flip_to_root=index, seconds=0.5)
        assert met.root, f"byte {index} to the root"


@pytest.mark.parametrize("length", [0, STRANGER_LIMIT + 1, 1 << 31, (1 << 32) - 1])
def test_strangers_send_short_messages(length):
    met = replay(protocol.preamble() + struct.pack("<I", length) + b"x" * 100, KEY)
    assert f"it announced a message of {length} bytes, expected 1 to {STRANGER_LIMIT}" in str(met.worker)


def test_a_handshake_has_one_deadline(monkeypatch):
    """A byte now and then does not extend it."""
    met, (ours, worker) = Met(), socket.socketpair()
    begin = time.monotonic()
    thread = thread_of(answer, worker, KEY, met, 0.5)
    with suppress(OSError):
        for byte in protocol.preamble() + bytes(1000):
            ours.send(bytes([byte]))
            time.sleep(0.05)
    thread.join(10)
    assert time.monotonic() - begin < 2
    assert "it stopped in mid-message" in str(met.worker)
    ours.close()


@pytest.mark.parametrize(
    ("start", "who"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "it is a web client, no dllama root"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), "it speaks TLS, which dllama does not"),
        (struct.pack("<II", 1, 0), "it is a root of distributed-llama, whose protocol is another; start this"),
        (struct.pack("<II", 3, 2) + struct.pack("<I", 10) + b"127.0.0.1\0", "it is a root of distributed-llama"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "it is no dllama root"),
        (bytes(64), "it is no dllama root"),
    ],
)
def test_strangers_are_told_apart(start, who):
    assert who in str(replay(start, KEY).worker)


def test_whoever_says_nothing_is_no_news():
    assert str(replay(b"", KEY).worker) == ""


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "cluster.key"
    file.write_bytes(b"0123456789abcdef\n")
    monkeypatch.setenv(auth.KEY_VARIABLE, "fedcba9876543210")
    from_file, from_environment = load_key(str(file)), load_key(None)
    assert from_file != from_environment
    file.write_bytes(b"  fedcba9876543210\n\n")
    assert load_key(str(file)) == from_environment
    monkeypatch.delenv(auth.KEY_VARIABLE)
    assert load_key(None) is None


@pytest.mark.parametrize("text", [b"", b"short", b" " * 100, b"x" * 4097])
def test_keys_that_are_none_are_refused(tmp_path, text):
    file = tmp_path / "cluster.key"
    file.write_bytes(text)
    with pytest.raises(UsageError, match=r"expected a key of 16 to 4096 bytes, found .*; make one: head -c 32"):
        load_key(str(file))


def test_a_key_file_that_is_none_is_said(tmp_path):
    for file in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="--key-file"):
            load_key(str(file))


# --- with a real worker -------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "cluster.key"
    file.write_text("a key of this cluster")
    return file


def test_a_cluster_with_a_key(tiny, tmp_path, key_file):
    other = tmp_path / "other.key"
    other.write_text("the key of another one")
    with WorkerProcess(tmp_path / "cache", "--host", "127.0.0.1", "--key-file", key_file) as worker:
        with pytest.raises(ClusterError, match=f"worker {worker.address}: it asks for a key"):
            load(tiny.model, [worker])
        worker.wait_for("away: it has no key")
        with pytest.raises(ClusterError, match=f"worker {worker.address}: it does not accept this key"):
            load(tiny.model, [worker], key_file=other)
        worker.wait_for("away: it does not know the key")
        load(tiny.model, [worker], key_file=key_file).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_a_worker_wants_a_key(dllama, host):
    result = dllama("worker", "--host", host, "--port", 0)
    assert result.returncode == 2
    assert "give --key-file FILE, the same on all machines, or allow it with --insecure" in result.stderr


def test_without_a_key_a_worker_listens_to_this_machine_alone(tmp_path):
    with WorkerProcess(tmp_path) as worker:
        assert "Listening on 127.0.0.1:" in worker.output
        assert "Only this machine can connect" in worker.output
    with WorkerProcess(tmp_path, "--insecure") as worker:
        assert "Listening on 0.0.0.0:" in worker.output
        assert "Everybody who can reach this port can use this worker" in worker.output
    with WorkerProcess(tmp_path, env={auth.KEY_VARIABLE: "0123456789abcdef"}) as worker:
        assert "Listening on 0.0.0.0:" in worker.output


def test_peers_are_named_as_users_named_them():
    cluster = Cluster(["localhost:1"])
    assert cluster.names == ["the root", "worker localhost:1"]
    assert isinstance(cluster.peers[0], Peer)
