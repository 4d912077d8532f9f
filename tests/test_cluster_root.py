"""The root among workers that lie, break off or say nothing: each ends in an error that names the worker."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from cluster_world import PROMPT, WorkerProcess, num_fds, workers  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama.cluster import handshake
from dllama.cluster.addresses import listen
from dllama.cluster.auth import link_key
from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.protocol import (
    Agreed,
    Connect,
    Facts,
    Failed,
    Hello,
    Linked,
    Loaded,
    Message,
    Missing,
    Pulse,
    Refused,
    Setup,
)
from dllama.cluster.tiles import num_tiles
from dllama.engine import Engine
from dllama.errors import ClusterError, DllamaError, NotEnoughMemory, UsageError, WorkerLost

NUM_TILES = num_tiles(tiny_config())
FACTS = Facts("commit", "avx2", 1, 1 << 36)
Part = Callable[["FakeWorker"], None]


class FakeWorker:
    """Listens as a worker does, lets a root in, and then plays a part on its control connection."""

    def __init__(self, part: Part) -> None:
        self._listener, self._part = listen("127.0.0.1", 0), part
        self.port: int = self._listener.getsockname()[1]
        self.link: Channel | None = None
        self._linked = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        self.control = self._accept()[0]
        links = threading.Thread(target=self._accept_links, daemon=True)
        links.start()
        with suppress(ChannelClosed):
            self._part(self)
        self.control.close()

    def _accept(self) -> tuple[Channel, Hello]:
        connection, _ = self._listener.accept()
        channel, deadline = Channel(connection), time.monotonic() + 5
        try:
            hello, transcript = handshake.answer(channel, deadline)
            key = link_key(None, hello.session) if hello.role == "link" else None
            handshake.prove(channel, hello, transcript, key, deadline)
        except BaseException:
            channel.close()
            raise
        return channel, hello

    def _accept_links(self) -> None:
        with suppress(OSError, ChannelClosed, handshake.Stranger):  # the root may give up in the middle of it
            self.link, _ = self._accept()
            self._linked.set()

    def say(self, message: Message) -> None:
        self.control.send(message)

    def hear(self, wanted: type[Message]) -> Message:
        while True:
            message, _ = self.control.receive(time.monotonic() + 10)
            if isinstance(message, wanted):
                return message

    def come_to(self, stage: str, *, has_manifest: bool = True) -> None:
        """Behave as far as a stage."""
        self.say(FACTS)
        if stage == "facts":
            return
        self.hear(Setup)
        self.say(Agreed(has_manifest))
        if stage == "agreed":
            return
        self.hear(Connect)
        assert self._linked.wait(5)
        self.say(Linked())

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self.link:
            self.link.close()


@pytest.fixture
def play() -> Iterator[Callable[[Part], FakeWorker]]:
    made: list[FakeWorker] = []

    def start(part: Part) -> FakeWorker:
        made.append(FakeWorker(part))
        return made[-1]

    yield start
    for worker in made:
        worker.close()


def error_of(tiny, worker: FakeWorker) -> DllamaError:
    """Load on a worker that plays a part, and give what comes of it; no descriptor stays open on this side."""
    before = num_fds(os.getpid())
    begin = time.monotonic()
    with pytest.raises(DllamaError) as caught:
        Engine.load(tiny.model, num_threads=1, workers=[worker.address])
    assert time.monotonic() - begin < 5
    assert worker.address in str(caught.value)
    assert str(caught.value).isprintable()
    worker.close()
    assert num_fds(os.getpid()) <= before
    return caught.value


def test_a_refusal_is_told(tiny, play):
    error = error_of(tiny, play(lambda it: it.say(Refused("no\x1b[31m\nroom"))))
    assert type(error) is ClusterError
    assert "no?[31m?room" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"), [(5, NotEnoughMemory), (2, UsageError), (4, ClusterError), (0, ClusterError)]
)
def test_errors_of_workers_keep_their_exit_code(tiny, play, code, kind):
    def part(it: FakeWorker) -> None:
        it.come_to("facts")
        it.hear(Setup)
        it.say(Refused("not here", code))

    assert type(error_of(tiny, play(part))) is kind


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("stage", ["facts", "agreed", "linked"])
def test_a_worker_that_breaks_off_is_lost(tiny, play, stage, has_manifest):
    error = error_of(tiny, play(lambda it: it.come_to(stage, has_manifest=has_manifest)))
    assert isinstance(error, WorkerLost)


@pytest.mark.parametrize(
    ("stage", "rank"), [("facts", 1), ("agreed", 1), ("linked", 1), ("facts", 0), ("linked", -1), ("linked", 1 << 40)]
)
def test_a_worker_that_fails_is_named(tiny, play, stage, rank):
    def part(it: FakeWorker) -> None:
        it.come_to(stage)
        it.say(Failed("a disk \x07 broke", rank))
        time.sleep(0.2)

    error_of(tiny, play(part))


@pytest.mark.parametrize(
    "message", [Linked(), Loaded(), Facts("", "", 1, 1), Missing(b""), Hello("root", bytes(32), False, bytes(16))]
)
def test_messages_out_of_order_are_no_answer(tiny, play, message):
    def part(it: FakeWorker) -> None:
        it.come_to("facts")
        it.say(message)
        time.sleep(0.2)

    assert isinstance(error_of(tiny, play(part)), WorkerLost)


@pytest.mark.parametrize("tiles", [b"", b"\xff", bytes(1000), b"\xff" * 7])
def test_tiles_that_are_none_are_not_sent(tiny, play, tiles):
    def part(it: FakeWorker) -> None:
        it.come_to("linked")
        it.say(Missing(tiles))
        time.sleep(0.2)

    assert "it asks for tiles that are none" in str(error_of(tiny, play(part)))


def test_bytes_that_are_no_message(tiny, play):
    def part(it: FakeWorker) -> None:
        it.control.send_bytes(b"\xff\xff\xff\xff", 5)
        time.sleep(0.2)

    assert "it announced a message of 4294967295 bytes" in str(error_of(tiny, play(part)))


def test_counters_of_a_worker_are_few(tiny, play):
    def part(it: FakeWorker) -> None:
        it.say(Pulse(0, {str(number): number for number in range(1000)}))
        time.sleep(0.2)

    assert "it sent what is no message" in str(error_of(tiny, play(part)))


def test_one_bad_worker_among_good_ones_is_named(tiny, tmp_path, play):
    with workers(tmp_path, 1) as (good,):
        bad = play(lambda it: it.come_to("agreed"))
        with pytest.raises(WorkerLost) as caught:
            Engine.load(tiny.model, num_threads=1, workers=[good.address, bad.address])
        assert caught.value.name == bad.address
        good.wait_for("🛑 The session is over")
        good.assert_serves(tiny.model)


def test_frames_that_are_none_end_the_step(tiny, play):
    def part(it: FakeWorker) -> None:
        it.come_to("linked")
        it.say(Missing(bytes(-(-NUM_TILES // 8))))
        it.say(Loaded())
        assert it.link is not None
        it.link.send_bytes(b"\xff" * 4096, 5)
        for _ in range(40):
            it.say(Pulse())
            time.sleep(0.1)

    worker = play(part)
    begin = time.monotonic()
    with (
        pytest.raises(WorkerLost) as caught,
        Engine.load(tiny.model, num_threads=1, workers=[worker.address]) as engine,
    ):
        engine.logits(PROMPT)
    assert caught.value.name == worker.address
    assert time.monotonic() - begin < 4


def test_a_worker_that_is_named_by_another_is_taken_for_lost(tmp_path, tiny):
    """Two workers that cannot reach each other: the one that says so, and whom it means, are both in the error."""
    with workers(tmp_path, 2) as (one, two):
        assert isinstance(one, WorkerProcess)
        two.kill()
        with pytest.raises(ClusterError, match=rf"worker {two.address}: no worker listens there"):
            Engine.load(tiny.model, num_threads=1, workers=[one.address, two.address])
        one.assert_serves(tiny.model)
