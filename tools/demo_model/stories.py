"""Whole stories: characters, an opening, the beats of one plot, an ending; checked for repetition."""

from __future__ import annotations

import random
from dataclasses import dataclass

import texts
from grammar import beat, expand, most_repeated, words_and_marks_of, words_of
from plots import PLOTS, Facts, Plot

MAX_REPEATS = 2  # of any run of four words; the promise to the user is 3
PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "him", "his")}
CHILDREN = {"f": "girl", "m": "boy"}

NAMES = {"f": texts.words("words", "female names"), "m": texts.words("words", "male names")}
ANIMALS, ADJECTIVES = texts.words("words", "animals"), texts.words("words", "adjectives")
LOOKS, HOBBIES, HOMES, DAYS = (texts.lines("words", name) for name in ("looks", "hobbies", "homes", "days"))
CLASSIC, OTHER, DETAIL, ENDING = (texts.lines("frame", name) for name in ("classic", "other", "detail", "ending"))


@dataclass(frozen=True)
class Story:
    """A text with the plot and the facts that it was made from."""

    plot: Plot
    facts: Facts
    text: str


def _character(rng: random.Random) -> tuple[str, str, str]:
    """Name, kind, pronoun key; one in five is a child."""
    sex = rng.choice("fm")
    name = rng.choice(NAMES[sex])
    return name, CHILDREN[sex] if rng.random() < 0.2 else rng.choice(ANIMALS), sex


def cast(rng: random.Random) -> Facts:
    """Choose the facts every plot shares: hero, friend, home, day and small details."""
    name, kind, sex = _character(rng)
    friend, friend_kind, friend_sex = _character(rng)
    while friend == name or friend_kind == kind:
        friend, friend_kind, friend_sex = _character(rng)
    adjective, friend_adjective = rng.sample(ADJECTIVES, 2)
    look, look2 = rng.sample(LOOKS, 2)
    facts = {
        "N": name,
        "kind": kind,
        "adj": adjective,
        "akind": f"a {adjective} {kind}",
        "F": friend,
        "fkind": friend_kind,
        "fadj": friend_adjective,
        "afkind": f"a {friend_adjective} {friend_kind}",
        "look": look,
        "look2": look2,
        "home": rng.choice(HOMES),
        "hobby": rng.choice(HOBBIES),
        "day": rng.choice(DAYS),
    }
    facts["Day"] = facts["day"]
    for prefix, key in (("", sex), ("f", friend_sex)):
        for slot, word in zip(("he", "him", "his"), PRONOUNS[key], strict=True):
            facts[prefix + slot] = word
            facts[(prefix + slot).capitalize()] = word.capitalize()
    return facts


def _compose(plot: Plot, facts: Facts, rng: random.Random, short: bool) -> str:
    facts["moral"] = beat(plot.moral, facts, rng)
    facts["quoted_moral"] = facts["moral"].rstrip(".")
    parts = [beat(CLASSIC if rng.random() < 0.6 else OTHER, facts, rng)]
    if not short:
        parts.append(beat(DETAIL, facts, rng))
    parts += [beat(options, facts, rng) for options in plot.beats]
    parts.append(beat(ENDING, facts, rng))
    parts = [part for part in parts if part]
    if rng.random() < 0.35:  # two paragraphs
        cut = rng.randint(2, len(parts) - 3)
        return " ".join(parts[:cut]) + "\n\n" + " ".join(parts[cut:])
    return " ".join(parts)


def _is_repetitive(text: str) -> bool:
    return max(most_repeated(words_of(text)), most_repeated(words_and_marks_of(text))) > MAX_REPEATS


def tell(rng: random.Random, short: bool = False) -> Story:
    """Make a story without a run of four words more than MAX_REPEATS times; ``short`` leaves out a detail."""
    plot = rng.choice(PLOTS)
    while True:
        facts = cast(rng)
        plot.choose(rng, facts)
        text = _compose(plot, facts, rng, short)
        if not _is_repetitive(text):
            return Story(plot, facts, text)


def summary(story: Story, rng: random.Random) -> str:
    """Say in a sentence or two what happens."""
    return expand(rng.choice(story.plot.summary), story.facts, rng)


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(10):
        print(tell(generator).text, end="\n\n---\n\n")
