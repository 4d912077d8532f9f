"""Rounds of a measurement on a machine that others may use: a round that they disturbed is measured again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import psutil

Result = TypeVar("Result")

_MOST_SHARE = 0.05  # of the cores' time that other programs may use in a round
_MOST_TRIES = 3  # of a round; the last counts whatever others do


def rounds(count: int, run: Callable[[int], Result], pids: Sequence[int] = ()) -> tuple[list[Result], int]:
    """Give what ``run(number)`` gives for each round, 0 first, and how many rounds were disturbed to the last try.

    Args:
        count: How many.
        run: One round.
        pids: Processes whose work is the round's, beside this one.
    """
    found = [_undisturbed(partial(run, number), (os.getpid(), *pids)) for number in range(count)]
    return [result for result, _ in found], sum(is_disturbed for _, is_disturbed in found)


def _undisturbed(run: Callable[[], Result], pids: Sequence[int]) -> tuple[Result, bool]:
    for _ in range(_MOST_TRIES):
        before, start = _others(pids), time.perf_counter()
        result = run()
        spent = (time.perf_counter() - start) * (os.cpu_count() or 1)
        if _others(pids) - before <= _MOST_SHARE * spent:
            return result, False
    return result, True


def _others(pids: Sequence[int]) -> float:
    """Give the seconds of all cores that other programs have used so far."""
    times = psutil.cpu_times()
    own = (psutil.Process(pid).cpu_times() for pid in pids)
    return float(times.user + times.nice + times.system - sum(one.user + one.system for one in own))
