"""What is asked of an engine in a comparison, and a process of its own in which it is asked."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

BATCH = 512  # tokens in a step, on both sides
_PR_SET_PDEATHSIG = 1
LONGEST = 4096 + 64  # tokens of a sequence


@dataclass(frozen=True, slots=True)
class Workload:
    """``prompt`` tokens read, or ``gen`` steps behind ``depth`` tokens, in each of some sequences at once."""

    prompt: int = 0
    gen: int = 0
    depth: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        """llama-bench's name, e.g. ``tg32 @ d4096``, with the number of sequences if there are several."""
        name = f"tg{self.gen}" if self.gen else f"pp{self.prompt}"
        name += f" @ d{self.depth}" if self.depth else ""
        return f"{name} × {self.sequences}" if self.sequences > 1 else name

    @property
    def tokens(self) -> int:
        """Tokens that are timed."""
        return (self.prompt or self.gen) * self.sequences

    def context(self, sequence: int, vocab_size: int) -> list[int]:
        """Give the token ids before what is timed; no two sequences begin alike."""
        draw = random.Random(sequence)
        return [sequence, *(draw.randrange(vocab_size) for _ in range(self.depth - 1))]


class Side:
    """An engine in a process of its own, which the system runs only while it is asked something.

    Threads that spin after their work, or wake by a clock, would slow the other side down.

    Args:
        make: Makes the engine there.
        arguments: Of ``make``.
    """

    def __init__(self, make: Callable[..., Any], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    @property
    def pid(self) -> int:
        """Give the process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method of the engine and give its result."""
        self._signal(signal.SIGCONT)
        with _is_there():
            self._pipe.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        """Return the side itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _receive(self) -> Any:
        with _is_there():
            result = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # until it has
        return result

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@contextmanager
def _is_there() -> Iterator[None]:
    """End with one line if the other process is gone, which a pipe says in more than one way."""
    try:
        yield
    except (EOFError, OSError):
        raise SystemExit("an engine's process has ended") from None


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":  # a stopped process cannot see that its parent is gone
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    engine = make(*arguments)
    pipe.send(None)
    while True:
        method, values = pipe.recv()
        pipe.send(getattr(engine, method)(*values))
