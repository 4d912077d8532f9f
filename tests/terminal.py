"""A program on a real terminal of 80 columns, as a test sees it: keys go in, a screen comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import pexpect
import pyte

PATIENCE_S = 30


class Terminal:
    """A process on a pseudo-terminal, whose output is drawn on a screen with history."""

    def __init__(
        self, command: Sequence[str], env: dict[str, str], cwd: str, columns: int = 80, rows: int = 24
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""
        self.process = pexpect.spawn(
            command[0], list(command[1:]), env=env, cwd=cwd, encoding="utf-8", dimensions=(rows, columns), timeout=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close(force=True)

    @property
    def text(self) -> str:
        """All lines so far, those that have scrolled away included."""
        top = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*top, *self.screen.display]).rstrip()

    @property
    def last_line(self) -> str:
        """The line the cursor is in."""
        return self.screen.display[self.screen.cursor.y].rstrip()

    def send(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys)

    def wait(self, is_there: Callable[[], bool], what: str) -> None:
        """Read output until something is true."""
        end = time.monotonic() + PATIENCE_S
        while not is_there():
            self._read()
            assert time.monotonic() < end, f"no {what} on the screen:\n{self.text}"

    def wait_for(self, text: str) -> None:
        """Read output until a text is on the screen."""
        self.wait(lambda: text in self.text, repr(text))

    def wait_for_prompt(self, num_prompts: int) -> None:
        """Read output until the chat has asked so many times, and waits for an answer."""
        self.wait(
            lambda: (
                self.text.count("\n> ") + self.text.count("\n>\n") + self.text.endswith("\n>") >= num_prompts
                and self.last_line.startswith(">")
            ),
            f"prompt number {num_prompts}",
        )

    def wait_for_end(self) -> int:
        """Read output until the process ends; give its exit code."""
        self.wait(lambda: not self.process.isalive(), "end of the process")
        self._read()
        assert self.process.exitstatus is not None
        return int(self.process.exitstatus)

    def hang_up(self) -> None:
        """Close the terminal, as a connection that breaks does."""
        pty = self.process.ptyproc  # type: ignore[attr-defined]
        pty.fileobj.close()
        self.process.closed = pty.closed = True

    def _read(self) -> None:
        try:
            piece = self.process.read_nonblocking(4096, timeout=0.05)
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            self.process.isalive()
            return
        self.raw += piece
        self._stream.feed(piece)
