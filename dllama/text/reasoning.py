"""Telling a model's reasoning, which it writes between ``<think>`` and ``</think>``, from its answer."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Cuts a text that comes in pieces into reasoning and answer.

    Reasoning is only looked for at the beginning of the text, so that an answer may speak of the tags. The tags and the
    blank lines around them belong to neither part.

    Args:
        is_open: Whether the prompt has opened the reasoning already, as some templates do.
    """

    def __init__(self, is_open: bool = False) -> None:
        self._held = ""  # of which it is not certain yet what it is
        self._state = self._inside if is_open else self._before

    @staticmethod
    def is_opened_by(prompt: str) -> bool:
        """Whether a prompt ends inside a reasoning section."""
        return prompt.rstrip().endswith(OPEN)

    def add(self, text: str) -> list[tuple[str, bool]]:
        """Take the next piece of text; give what is now certain as (text, is it reasoning)."""
        self._held += text
        return [part for part in self._state(is_last=False) if part[0]]

    def finish(self) -> list[tuple[str, bool]]:
        """Give what was held back."""
        parts = [part for part in self._state(is_last=True) if part[0]]
        self._held = ""
        return parts

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _before(self, is_last: bool) -> list[tuple[str, bool]]:
        """Wait until the text has either begun with the tag or not."""
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._held, self._state = start.removeprefix(OPEN), self._at_start_of_reasoning
            return self._state(is_last)
        if OPEN.startswith(start) and not is_last:  # also while nothing but blanks has come
            return []
        self._state = self._after
        return self._after(is_last)

    def _at_start_of_reasoning(self, is_last: bool) -> list[tuple[str, bool]]:
        self._held = self._held.lstrip("\r\n")
        if not self._held:
            return []
        self._state = self._inside
        return self._inside(is_last)

    def _inside(self, is_last: bool) -> list[tuple[str, bool]]:
        """Give reasoning up to the closing tag, or up to what may be the beginning of it."""
        end = self._held.find(CLOSE)
        if end >= 0:
            reasoning = self._take(end).rstrip("\r\n")
            self._held, self._state = self._held.removeprefix(CLOSE), self._at_start_of_answer
            return [(reasoning, True), *self._state(is_last)]
        return [(self._take(len(self._held) if is_last else self._certain()), True)]

    def _certain(self) -> int:
        """Count the characters that belong neither to a closing tag nor to blank lines that may stand before one."""
        end = len(self._held)
        for length in range(min(len(CLOSE) - 1, end), 0, -1):
            if CLOSE.startswith(self._held[end - length :]):
                end -= length
                break
        return len(self._held[:end].rstrip("\r\n"))

    def _at_start_of_answer(self, is_last: bool) -> list[tuple[str, bool]]:
        self._held = self._held.lstrip("\r\n")
        if not self._held:
            return []
        self._state = self._after
        return self._after(is_last)

    def _after(self, is_last: bool) -> list[tuple[str, bool]]:
        del is_last  # an answer is certain at once
        return [(self._take(len(self._held)), False)]
