"""The plots: their wordings from ``texts/``, and the facts that each of them chooses."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import texts

Facts = dict[str, str]
Choose = Callable[[random.Random, Facts], None]

COLORS, SWIMMERS = texts.words("words", "colors"), texts.words("words", "swimmers")
SEARCHED, LOST_THINGS, TREATS = (texts.lines("words", name) for name in ("searched", "lost", "treats"))
ELDERS, RESCUES, GOALS = (texts.table("words", name) for name in ("elders", "rescues", "goals"))
WISHES, FEARS, SKILLS, PLANTS = (texts.table("words", name) for name in ("wishes", "fears", "skills", "plants"))


@dataclass(frozen=True)
class Plot:
    """One plot shape. All texts are templates over the story's facts; an empty wording skips a beat."""

    theme: list[str]  # completes "a story about a fox ..."
    topics: list[str]  # completes "a story about ..."
    choose: Choose  # adds the facts of this plot
    beats: list[list[str]]
    summary: list[str]
    questions: list[texts.Section]
    moral: list[str]


def _row(rng: random.Random, facts: Facts, rows: list[list[str]], *keys: str) -> None:
    facts.update(zip(keys, rng.choice(rows), strict=True))


def _elder(rng: random.Random, facts: Facts) -> None:
    _row(rng, facts, ELDERS, "G", "ghe")
    facts["ghe2"] = "her" if facts["ghe"] == "she" else "him"


def _elder_and_treat(rng: random.Random, facts: Facts) -> None:
    _elder(rng, facts)
    facts["treat"] = rng.choice(TREATS)


def _wish(rng: random.Random, facts: Facts) -> None:
    _row(rng, facts, WISHES, "thing", "parts", "use", "effect")
    facts["color"] = rng.choice(COLORS)


def _skill(rng: random.Random, facts: Facts) -> None:
    fitting = [row for row in SKILLS if row[0] != "swim" or facts["kind"] not in SWIMMERS]
    _row(rng, facts, fitting, "skill", "fail", "advice", "success")


def _garden(rng: random.Random, facts: Facts) -> None:
    _row(rng, facts, PLANTS, "plant", "harvest", "made")
    _elder(rng, facts)


def _journey(rng: random.Random, facts: Facts) -> None:
    _row(rng, facts, GOALS, "goal", "sight")
    facts["treat"] = rng.choice(TREATS)
    _elder(rng, facts)


def _party(rng: random.Random, facts: Facts) -> None:
    facts["treat"], facts["thing"] = rng.choice(TREATS), rng.choice(WISHES)[0]
    _elder(rng, facts)


def _lost(rng: random.Random, facts: Facts) -> None:
    _elder(rng, facts)
    facts["thing"], facts["color"] = rng.choice(LOST_THINGS), rng.choice(COLORS)
    facts["s1"], facts["s2"], facts["s3"] = rng.sample(SEARCHED, 3)


def _fear(rng: random.Random, facts: Facts) -> None:
    fitting = [row for row in FEARS if row[0] != "deep water" or facts["kind"] not in SWIMMERS]
    _row(rng, facts, fitting, "fear", "event", "saying", "truth")


def _rescue(rng: random.Random, facts: Facts) -> None:
    fitting = [row for row in RESCUES if row[0] not in (facts["kind"], facts["fkind"])]
    _row(rng, facts, fitting, "victim", "stuck", "freed", "gift")


def _quarrel(rng: random.Random, facts: Facts) -> None:
    _elder_and_treat(rng, facts)
    (facts["thing"], facts["parts"], *_), facts["color"] = rng.choice(WISHES), rng.choice(COLORS)


def _honest(rng: random.Random, facts: Facts) -> None:
    _elder_and_treat(rng, facts)
    facts["thing"], facts["color"] = rng.choice(LOST_THINGS), rng.choice(COLORS)
    facts["s1"] = rng.choice(SEARCHED)


def _load(file: str, choose: Choose) -> Plot:
    parts = texts.sections(file)
    return Plot(
        theme=texts.lines(file, "theme"),
        topics=texts.lines(file, "topics"),
        choose=choose,
        beats=[part.lines for part in parts if part.name == "beat"],
        summary=texts.lines(file, "summary"),
        questions=[part for part in parts if part.name == "question"],
        moral=texts.lines(file, "moral"),
    )


_CHOOSERS: dict[str, Choose] = {
    "wish": _wish,
    "skill": _skill,
    "garden": _garden,
    "journey": _journey,
    "party": _party,
    "lost": _lost,
    "fear": _fear,
    "rescue": _rescue,
    "storm": _elder_and_treat,
    "newcomer": _elder_and_treat,
    "quarrel": _quarrel,
    "honest": _honest,
    "bedtime": _elder_and_treat,
}
PLOTS = tuple(_load(file, choose) for file, choose in _CHOOSERS.items())
