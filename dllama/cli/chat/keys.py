"""Ctrl-C and Space while an answer is made: both ask for its end, neither ends the program or shows on the screen."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

_SPACE, _BACKSPACE = " ", "\x7f\b"
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]?|O.|.)?", re.DOTALL)  # of keys such as arrows
_ENDS = (signal.SIGHUP, signal.SIGTERM)


class StopKeys:
    """While entered, notes Ctrl-C and, on a terminal, Space; other keys are kept for the next message.

    Entered while a message is dealt with. Signals are noted instead of raised: a step of the engine must not be left
    half done, and what was said is kept.

    Attributes:
        typed: What was typed besides.
        hangup: To be raised when the message is dealt with, if the program is to end.
    """

    def __init__(self, watch_terminal: bool) -> None:
        self._watches, self._is_stopped = watch_terminal, False
        self.typed = ""
        self.hangup: Hangup | None = None
        self._modes: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, *_ENDS)}
        if self._watches:
            self._modes = self._take_keys()
            # A shell that stopped and continued the program has given the terminal its own modes.
            self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._continue)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give terminal and signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._modes is not None:
            import termios

            self._read_keys()
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)
            self._modes = None

    def is_stopped(self) -> bool:
        """Whether the end was asked for since this was entered."""
        if self._modes is not None:
            self._read_keys()
        return self._is_stopped

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._is_stopped = True
        if number in _ENDS:
            self.hangup = Hangup(number)

    def _continue(self, _number: int, _frame: FrameType | None) -> None:
        self._take_keys()

    def _take_keys(self) -> list[Any] | None:
        """Let keys come one by one and unseen; signals of keys stay. Give the modes before; None without a terminal."""
        import termios

        try:
            before, modes = termios.tcgetattr(sys.stdin), termios.tcgetattr(sys.stdin)
            modes[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)
        except termios.error:
            return None
        return before

    def _read_keys(self) -> None:
        while select.select([sys.stdin], [], [], 0)[0]:
            try:
                raw = os.read(sys.stdin.fileno(), 1024)
            except OSError:
                raw = b""
            if not raw:  # the terminal was closed
                self._is_stopped = True
                return
            self._take(raw.decode("utf-8", "replace"))

    def _take(self, keys: str) -> None:
        """Heed a Space that is pressed alone; keep everything else that can be part of a message."""
        # Ctrl-C is a key like others until the line editor's modes have gone from the terminal.
        if "\x03" in keys or (keys.strip(_SPACE) == "" and not self.typed):
            self._is_stopped = True
            return
        for char in _SEQUENCE.sub("", keys).replace("\r", "\n").replace("\t", _SPACE):
            if char in _BACKSPACE:
                self.typed = self.typed[:-1]
            elif char.isprintable() or char == "\n":
                self.typed += char


class Hangup(BaseException):
    """The terminal was closed, or the system wants the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def raise_it(hangup: Hangup) -> None:
    """Raise a hangup where the program is."""
    raise hangup


@contextmanager
def hangups(heed: Callable[[Hangup], None] = raise_it) -> Iterator[None]:
    """Make SIGHUP and SIGTERM hangups, so that the conversation can be saved and the terminal given back.

    Args:
        heed: What is done with one, in the main thread, wherever it is.
    """
    before = {number: signal.signal(number, lambda number, _frame: heed(Hangup(number))) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
