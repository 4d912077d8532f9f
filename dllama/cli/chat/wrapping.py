"""Breaking lines between words while a text comes in pieces, for terminals that break anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable

from wcwidth import wcwidth

_FENCE = "```"


# Control characters, separators of lines, what changes the direction of a whole line, and halves of characters.
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Put ``�`` for every character that could steer a terminal, but those to keep."""
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else "\N{REPLACEMENT CHARACTER}", text)


class WordWrapper:
    """Writes words as soon as they are whole, on a new line where they do not fit the old one.

    Lines between ``` fences are code: they are left as they are.

    Args:
        write: Takes the text.
        width: Tells the terminal's columns, which may change.
    """

    def __init__(self, write: Callable[[str], None], width: Callable[[], int]) -> None:
        self._write, self._width = write, width
        self._word = ""
        self.restart()

    def restart(self) -> None:
        """Begin anew at the start of a line."""
        self._column, self._line_start, self._is_code = 0, "", False

    @property
    def is_in_line(self) -> bool:
        """Whether a line has begun."""
        return bool(self._column or self._word)

    def add(self, text: str) -> None:
        """Take the next piece of text."""
        for char in text:
            if len(self._line_start) < len(_FENCE):
                self._line_start += char
            if char == "\n":
                self._end_line()
            elif char in " \t":
                self._end_word()
                self._put_blank(char)
            else:
                self._word += char
                # Scripts without blanks break anywhere, and so must what is longer than a line.
                if self._is_code or wcwidth(char) > 1 or len(self._word) >= self._width() - 1:
                    self._end_word()

    def flush(self) -> None:
        """Write the word that may not be whole."""
        self._end_word()

    def _end_line(self) -> None:
        self._end_word()
        self._is_code ^= self._line_start == _FENCE
        self._write("\n")
        self._column, self._line_start = 0, ""

    def _end_word(self) -> None:
        if not self._word:
            return
        width = sum(max(0, wcwidth(char)) for char in self._word)
        if self._column and self._column + width >= self._width() and not self._is_code:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += width
        self._word = ""

    def _put_blank(self, char: str) -> None:
        """Write a blank, unless the line breaks here anyway."""
        if self._column + 1 >= self._width() and not self._is_code:
            self._write("\n")
            self._column = 0
        else:
            self._write(char)
            self._column += 1 if char == " " else 8 - self._column % 8
