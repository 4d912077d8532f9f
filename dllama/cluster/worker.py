"""The worker: listens, meets whoever connects, and serves one root at a time for as long as it runs.

Each connection is met in a thread of its own: strangers have ``HANDSHAKE_S`` to prove themselves and a KiB a message to
do it in. Nothing that a peer does ends the worker.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from dllama.cluster import handshake
from dllama.cluster.addresses import tune
from dllama.cluster.auth import link_key
from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.handshake import HANDSHAKE_S, Stranger
from dllama.cluster.protocol import Hello, Refused, shown
from dllama.cluster.session import Session, WorkerOptions

MOST_PENDING = 64  # connections that have not proved anything yet
_ENDING_S = 4.0  # for a session to end whose root is gone, before the next root is sent away
_LINES_PER_MINUTE = 20  # about strangers
_WAKE_S = 0.1


@dataclass(slots=True, eq=False)
class _Pending:
    channel: Channel
    thread: threading.Thread


class Worker:
    """Serves roots, one after the other.

    Args:
        listener: A listening socket; it is closed by ``close``.
        options: The key, threads and cache.
        say: Takes lines for the worker's user; called from any thread, by one at a time.
    """

    def __init__(self, listener: socket.socket, options: WorkerOptions, say: Callable[[str], None]) -> None:
        self._listener, self._options, self._tell = listener, options, say
        self._pending: list[_Pending] = []  # oldest first
        self._lock = threading.Lock()  # of pending and session
        self._free = threading.Condition(self._lock)
        self._saying = threading.Lock()  # a line and its end are two writes
        self._session: Session | None = None
        self._minute, self._num_lines = 0, 0

    def serve(self) -> None:
        """Accept connections until an exception, such as a KeyboardInterrupt, ends it."""
        self._listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                selector.select()
                self._accept()

    def close(self) -> None:
        """Stop listening, and end the session and all connections."""
        self._listener.close()
        with self._lock:
            pending, session = [*self._pending], self._session
        for each in pending:
            each.channel.shut()
        if session:
            session.abort("this worker was stopped")
            with self._free:
                self._free.wait_for(lambda: self._session is None, _ENDING_S)

    def _say(self, text: str) -> None:
        """Say a line, in which may be what a peer sent; nobody need read it."""
        with suppress(OSError, ValueError), self._saying:
            self._tell(shown(text))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away again, or descriptors are used up: those of strangers come back within seconds
            time.sleep(_WAKE_S)
            return
        tune(connection)
        channel = Channel(connection)
        pending = _Pending(channel, threading.Thread(target=self._meet, args=(channel,), daemon=True))
        with self._lock:
            if len(self._pending) == MOST_PENDING:  # the one that has had the longest time makes room
                self._pending.pop(0).channel.shut()
            self._pending.append(pending)
        try:
            pending.thread.start()
        except RuntimeError:  # no more threads
            self._forget(channel)
            channel.close()

    def _forget(self, channel: Channel) -> None:
        with self._lock:
            self._pending = [each for each in self._pending if each.channel is not channel]

    def _meet(self, channel: Channel) -> None:
        """Do the handshake, and what is due for who connects."""
        peer, deadline = channel.peer, time.monotonic() + HANDSHAKE_S
        try:
            hello, transcript = handshake.answer(channel, deadline)
            session = self._session_of(hello)
            key = self._options.key if session is None else link_key(self._options.key, hello.session)
            handshake.prove(channel, hello, transcript, key, deadline)
        except Exception as error:  # noqa: BLE001  # whatever a stranger causes, it is their end and no more
            self._complain(peer, str(error) if isinstance(error, Stranger) else f"internal error: {error!r}")
            channel.close()
            return
        finally:
            self._forget(channel)
        if session is not None:
            session.add_link(hello.rank, channel)
        else:
            self._serve_root(channel, hello)

    def _session_of(self, hello: Hello) -> Session | None:
        """Find the session that a link is for; None for a root."""
        if hello.role == "root":
            return None
        session = self._session
        if session is None or not session.expects(hello.session, hello.rank):
            raise Stranger("it offers a link that no root has announced")
        return session

    def _serve_root(self, channel: Channel, hello: Hello) -> None:
        session = Session(channel, hello.session, self._options, self._say)
        if refusal := self._claim(session):
            self._say(f"⭕ Sent a root at {channel.peer} away: {refusal}")
            with suppress(ChannelClosed):
                channel.send(Refused(refusal))
            channel.close()
            return
        try:
            session.run()
        finally:
            with self._free:
                self._session = None
                self._free.notify_all()

    def _claim(self, session: Session) -> str:
        """Make ``session`` the one that is served; else say why not."""
        with self._free:
            now = self._session
            if now is not None and now.is_ending:
                self._free.wait_for(lambda: self._session is not now, _ENDING_S)  # others may wait, too
                now = self._session
            if now is None:
                self._session = session
                return ""
        if secrets.compare_digest(now.session_id, session.session_id):
            return "it serves this very root already; is it named twice?"
        return f"it serves another root, at {now.root}; wait until that has ended, or use another worker"

    def _complain(self, peer: str, why: str) -> None:
        """Tell of a stranger, but not of one who said nothing, and not without end."""
        if not why:
            return
        with self._lock:
            minute = int(time.monotonic() / 60)
            self._num_lines = self._num_lines + 1 if minute == self._minute else 1
            self._minute, count = minute, self._num_lines
        if count < _LINES_PER_MINUTE:
            self._say(f"⭕ Sent {peer} away: {why}")
        elif count == _LINES_PER_MINUTE:
            self._say("⭕ More strangers connect; no line for each of them in this minute")
