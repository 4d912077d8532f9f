"""The control connection between the root and one worker: messages in order, and signs of life both ways.

A thread of its own reads, another sends a pulse every second; computing and waiting in C++, which let go of Python's
lock, do not keep them from it. Whoever hears nothing for ``LOST_S`` takes the other for lost.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from dllama.cluster.channel import Channel, ChannelClosed
from dllama.cluster.protocol import Ask, Bye, Failed, Message, Pulse, Refused

PULSE_S = 1.0
LOST_S = 6.0  # five pulses missed, and a margin for a busy machine
FINISH_S = 1.0
ENDED = "it has ended the session"
_MOST_WAITING = 64  # messages that nobody has asked for yet
_Wanted = TypeVar("_Wanted", bound=Message)


class Lost(Exception):
    """The other side of a control connection is gone; the text says what was seen of it last."""


class Control:
    """Messages to and from the other side of an authenticated channel.

    Args:
        channel: The connection; it is closed by ``close``.
        pulse: Gives what goes into this side's pulses.
        on_lost: Called once with the reason when the other side is gone, from another thread.

    Attributes:
        last_pulse: Counters in the other side's last pulse.
        failure: Why the other side said that it cannot go on; None if it did not.
        reason: Why it is lost; empty as long as it is there.
    """

    def __init__(self, channel: Channel, pulse: Callable[[], dict[str, int]], on_lost: Callable[[str], None]) -> None:
        self.channel, self._pulse, self._on_lost = channel, pulse, on_lost
        self.last_pulse: dict[str, int] = {}
        self.failure: Failed | None = None
        self.reason = ""
        self._inbox: queue.Queue[Message | None] = queue.Queue(_MOST_WAITING)
        self._num_asked = self._answered = 0
        self._ending, self._pulsed, self._lock = threading.Event(), threading.Condition(), threading.Lock()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read, self._beat)]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        """Send a message; raises Lost if the other side is gone."""
        try:
            self.channel.send(message, LOST_S)
        except ChannelClosed as error:
            self._lose(str(error))
            raise Lost(self.reason) from None

    def receive(self, *wanted: type[_Wanted]) -> _Wanted:
        """Wait for a message of these types, as long as there are signs of life.

        Raises:
            Lost: The other side is gone, failed, said no, or something else.
        """
        message = self._inbox.get()
        if message is None:
            self._inbox.put(None)  # for whoever asks next
            raise Lost(self.reason)
        if isinstance(message, wanted):
            return message
        if isinstance(message, Refused | Failed):
            raise Said(message)
        raise Lost(f"it said {type(message).__name__}, expected {wanted[0].__name__}")

    def ask_pulse(self, seconds: float) -> dict[str, int]:
        """Ask for a pulse and give its counters; the last ones if none comes in time."""
        self._num_asked += 1
        try:
            self.send(Ask(self._num_asked))
        except Lost:
            return self.last_pulse
        with self._pulsed:  # a pulse that was on its way already is no answer
            self._pulsed.wait_for(lambda: self.reason or self._answered >= self._num_asked, seconds)
        return self.last_pulse

    def finish(self) -> None:
        """Say nothing more, and give the other side time to read what was said last."""
        self._ending.set()
        with suppress(OSError):
            self.channel.socket.shutdown(socket.SHUT_WR)
        self._threads[0].join(FINISH_S)

    def close(self) -> None:
        """Close the connection and end the threads; a second call does nothing."""
        self._ending.set()
        self.channel.shut()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(LOST_S)
        self.channel.close()

    def _read(self) -> None:
        """Take messages until the connection ends."""
        try:
            while True:
                message, _ = self.channel.receive(time.monotonic() + LOST_S)
                self._take(message)
        except ChannelClosed as error:
            self._lose(str(error))
        except queue.Full:
            self._lose("it sends messages that nobody asked for")
        except Exception as error:  # noqa: BLE001  # nobody must wait for what this thread no longer reads
            self._lose(f"internal error: {type(error).__name__}: {error}")

    def _take(self, message: Message) -> None:
        if isinstance(message, Pulse):
            with self._pulsed:
                self.last_pulse, self._answered = message.counters, max(self._answered, message.answers)
                self._pulsed.notify_all()
        elif isinstance(message, Ask):
            self.channel.send(Pulse(message.number, self._pulse()), LOST_S)
        elif isinstance(message, Bye):
            self._lose(ENDED)
        else:
            if isinstance(message, Failed):
                self.failure = message
            self._inbox.put_nowait(message)

    def _beat(self) -> None:
        """Send pulses."""
        while not self._ending.wait(PULSE_S):
            try:
                self.channel.send(Pulse(counters=self._pulse()), LOST_S)
            except ChannelClosed as error:
                self._lose(str(error))
                return
            except Exception as error:  # noqa: BLE001  # the other side must hear why, not that nothing comes
                self._lose(f"internal error: {type(error).__name__}: {error}")
                return

    def _lose(self, reason: str) -> None:
        """Note that the other side is gone, once."""
        with self._lock:
            if self.reason:
                return
            self.reason = reason
        self.channel.shut()
        with self._pulsed:
            self._pulsed.notify_all()
        while True:
            try:
                self._inbox.put_nowait(None)
                break
            except queue.Full:
                self._inbox.get_nowait()
        if not self._ending.is_set():
            self._on_lost(reason)


class Said(Lost):
    """The other side is there, but cannot or will not go on.

    Attributes:
        message: Its words.
    """

    def __init__(self, message: Refused | Failed) -> None:
        super().__init__(message.reason)
        self.message = message
