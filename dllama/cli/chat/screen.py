"""Where a chat shows things: a terminal, a pipe, or lines of JSON.

A model's words may hold anything, escape sequences that steer a terminal included; on a terminal those are shown as
``�``. A pipe gets every character as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

from dllama.cli.chat.wrapping import WordWrapper, printable
from dllama.cli.common import say

_DIM, _PLAIN, _CLEAR_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[2K"


class PlainScreen:
    """Answers and results on stdout, all else on stderr."""

    is_interactive = False
    shows_kinds = False  # whether reasoning can be told from the answer by its looks
    _has_answer = False

    def answer(self, text: str, *, is_reasoning: bool = False) -> None:
        """Show the next piece of an answer."""
        del is_reasoning
        self._has_answer |= bool(text)
        print(text, end="", flush=True)

    def end_answer(self) -> None:
        """End the answer's last line, if there is one."""
        if self._has_answer:
            say()
        self._has_answer = False

    def line(self, text: str) -> None:
        """Show a line that was asked for."""
        say(text)

    def note(self, text: str) -> None:
        """Say something on the side."""
        print(printable(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self.note(f"🚨 {text}")

    def progress(self, text: str) -> None:
        """Show how far something is, until the next thing is shown; an empty text shows nothing."""


class SilentScreen(PlainScreen):
    """For ``--json``: answers are printed as data by others, and all else goes to stderr."""

    def line(self, text: str) -> None:
        """Show a line that was asked for."""
        self.note(text)

    def answer(self, text: str, *, is_reasoning: bool = False) -> None:
        """Show nothing."""

    def end_answer(self) -> None:
        """Show nothing."""


class TerminalScreen(PlainScreen):
    """Words wrapped at the terminal's width, reasoning dimmed, all on stdout.

    Args:
        has_colors: Whether the terminal takes attributes.
        clears: Whether it can clear a line.
    """

    is_interactive = True

    def __init__(self, has_colors: bool, clears: bool) -> None:
        self.shows_kinds, self._clears = has_colors, clears
        self._wrapper = WordWrapper(self._write, _width)
        self._is_dim, self._progress = False, ""

    def answer(self, text: str, *, is_reasoning: bool = False) -> None:
        """Show the next piece of an answer; a blank line comes between reasoning and what follows it."""
        self.progress("")
        if is_reasoning != self._is_dim:
            self._wrapper.flush()
            if not is_reasoning:
                self._wrapper.add("\n\n")
            self._dim(is_reasoning)
        self._has_answer = True
        self._wrapper.add(printable(text, keep="\n\t"))

    def end_answer(self) -> None:
        """End the answer's last line."""
        self.progress("")
        self._wrapper.flush()
        self._dim(False)
        self._wrapper.restart()
        if self._has_answer:
            say("\n")
        self._has_answer = False

    def line(self, text: str) -> None:
        """Show a line that was asked for."""
        self._begin_line()
        say(printable(text, keep="\n"))

    def note(self, text: str) -> None:
        """Say something on the side, between two lines of an answer if need be."""
        self._begin_line()
        shown = _filled(printable(text))
        say(f"{_DIM}{shown}{_PLAIN}" if self.shows_kinds else shown)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self._begin_line()
        say(_filled(f"🚨 {printable(text)}"))

    def progress(self, text: str) -> None:
        """Show a line that the next thing shown replaces."""
        if text != self._progress and self._clears:
            clear = _CLEAR_LINE if self._progress else ""
            shown = text[: _width() - 1]
            self._write(f"{clear}{_DIM}{shown}{_PLAIN}" if shown and self.shows_kinds else f"{clear}{shown}")
            self._progress = text

    def _begin_line(self) -> None:
        self.progress("")
        if self._wrapper.is_in_line:
            self._wrapper.add("\n")

    def _dim(self, is_on: bool) -> None:
        if self.shows_kinds and is_on != self._is_dim:
            self._write(_DIM if is_on else _PLAIN)
        self._is_dim = is_on

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)


def choose_screen(as_json: bool) -> PlainScreen:
    """Give the screen for what stdin and stdout are: a terminal only if both are one."""
    if as_json:
        return SilentScreen()
    if not is_terminal():
        return PlainScreen()
    is_dumb = os.environ.get("TERM", "dumb") == "dumb"
    return TerminalScreen(has_colors=not is_dumb and not os.environ.get("NO_COLOR"), clears=not is_dumb)


def is_terminal() -> bool:
    """Whether a person types and reads."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _filled(text: str) -> str:
    """Break a line between words; what is longer than a line stays whole, to be copied."""
    return textwrap.fill(text, _width() - 1, break_long_words=False, break_on_hyphens=False)


def _width() -> int:
    return max(20, shutil.get_terminal_size().columns)
