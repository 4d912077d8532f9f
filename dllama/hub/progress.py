"""How far a long piece of work with bytes is: a bar on a terminal, now and then a line elsewhere.

Standard library only.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque

_DRAW_S, _LINE_S = 0.2, 10.0  # between two drawings of the bar, and between two lines
_SPEED_S = 10.0  # over which the speed is measured
_BAR_CELLS = 20
_UNITS = ("B", "kB", "MB", "GB", "TB")


def size_text(num_bytes: float) -> str:
    """Write a number of bytes in three digits or so: ``1.75 GB``."""
    value = float(max(0, num_bytes))
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def time_text(seconds: float) -> str:
    """Write a duration: ``45 s``, ``12 min``, ``3 h 5 min``, ``4 days``."""
    whole = int(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 90 * 60:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole // 60 % 60} min" if whole < 48 * 3600 else f"{whole // 86400} days"


class Progress:
    """Shows bytes done of bytes in all, with speed and time left. Use it as a context, so that its line is ended.

    Args:
        title: What is being done.
        total: Bytes in all; may be corrected while it runs.
        mark: What the line begins with; two cells wide.
    """

    def __init__(self, title: str, total: int, mark: str = "⏬") -> None:
        self.title, self.total, self.done, self._mark = title, total, 0, mark
        self._is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._last: tuple[float, int] | None = None  # when, and how much was done then
        self._history: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Progress:
        """Return the bar itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Show the last state, and end the line."""
        if self._last is not None or kind is None:
            self._show()
            if self._is_live:
                print(flush=True)

    def jump(self, done: int) -> None:
        """Say how much is done without having been worked for: the speed is measured anew."""
        self.done = done
        self._history.clear()
        self.update(done)

    def update(self, done: int) -> None:
        """Say how much is done by now, and show it if it is time to."""
        self.done = done
        now = time.monotonic()
        if self._last is None or now - self._last[0] >= (_DRAW_S if self._is_live else _LINE_S):
            self._history.append((now, done))
            while now - self._history[0][0] > _SPEED_S and len(self._history) > 2:
                self._history.popleft()
            self._show()
            self._last = (now, done)

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        print(f"\r\x1b[2K{text}" if self._is_live else text, flush=True)

    def speed(self) -> float:
        """Bytes per second lately; 0 while unknown."""
        if len(self._history) < 2:
            return 0.0
        (start, before), (end, after) = self._history[0], self._history[-1]
        return max(0.0, (after - before) / max(end - start, 1e-6))

    def _show(self) -> None:
        share = min(1.0, self.done / self.total) if self.total else 1.0
        amount = f"{size_text(self.done)} of {size_text(self.total)}, {int(100 * share)}%"
        speed = self.speed()
        if speed > 0 and self.done < self.total:
            amount += f", {size_text(speed)}/s, {time_text((self.total - self.done) / speed)} left"
        if not self._is_live:
            print(f"{self._mark} {self.title}: {amount}", flush=True)
            return
        width = min(shutil.get_terminal_size().columns, 120) - 1
        filled = int(_BAR_CELLS * share)
        bar = "█" * filled + "░" * (_BAR_CELLS - filled)
        room = width - len(amount) - _BAR_CELLS - 5  # the mark is two cells wide
        title = self.title if len(self.title) <= room else self.title[: max(0, room - 1)] + "…"
        line = f"{self._mark} {title} {bar} {amount}" if room > 2 else f"{self._mark} {amount}"[: max(0, width - 1)]
        print(f"\r\x1b[2K{line}", end="", flush=True)
