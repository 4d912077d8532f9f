"""The shape of a plot: its beats, what is asked about it, and how a request names it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Beats = tuple[tuple[str, ...], ...]
Facts = dict[str, str]


@dataclass(frozen=True)
class Plot:
    """One plot shape. All texts are templates over the story's facts; an empty wording skips a beat."""

    theme: tuple[str, ...]  # completes "a story about a fox ..."
    topics: tuple[str, ...]  # completes "a story about ..."
    choose: Callable[[random.Random, Facts], None]  # adds the facts of this plot
    beats: Beats
    summary: tuple[str, ...]
    questions: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    moral: tuple[str, ...]
