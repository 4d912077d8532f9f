"""Whole stories: characters, an opening, the beats of one plot, an ending; checked for repetition."""

from __future__ import annotations

import random
from dataclasses import dataclass

import plots_hearts
import plots_troubles
import plots_wishes
import words
from grammar import beat, expand, most_repeated, words_and_marks_of, words_of
from plot import Facts, Plot

PLOTS: tuple[Plot, ...] = plots_wishes.PLOTS + plots_troubles.PLOTS + plots_hearts.PLOTS
MAX_REPEATS = 2  # of any run of four words; the promise to the user is 3
PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "him", "his")}

CLASSIC = (
    "once upon a time{,|} there was <akind> {named|called} <N>. <He> lived <home>.",
    "once upon a time, there {was|lived} a <adj> <kind> {named|called} <N> <home>.",
    "once upon a time, <home>, there lived a <adj> <kind>. <His> name was <N>.",
    "once upon a time, a <adj> <kind> {named|called} <N> lived <home>.",
    "once upon a time there was a <adj> <kind> who lived <home>. Everyone called <him> <N>.",
)
OTHER = (
    "<N> was a <adj> <kind>{ who lived|. <He> lived} <home>.",
    "there once was a <adj> <kind> {named|called} <N>, who lived <home>.",
    "<home> lived a <adj> <kind> {named|called} <N>.",
    "long ago, a <adj> <kind> lived <home>. <His> name was <N>.",
    "this is the {story|tale} of <N>, a <adj> <kind> {from far away|who lived <home>}.",
)
DETAIL = (
    "<He> {had <look> and|} {loved|liked} <hobby>.", "<He> was known for {<look2>|<hobby>}.", "<N> had <look>, and <he> {loved|liked} <hobby>.",
    "What <N> liked {best|most} was <hobby>.", "", "",
)
ENDING = (
    "", "", "<moral>", "{And so|That day} <N> {learned|found out}: <moral>", "\"<quoted_moral>,\" {said <F>|<N> said} {with a smile|happily}.", "{As they say|Remember}: <moral>",
    "And {so|if you listen}, they lived happily {ever after|for many years}.", "{It was a good day|What a day that was}.", "The end.", "{And that was that|That is the end of the story}.",
)


@dataclass(frozen=True)
class Story:
    plot: Plot
    facts: Facts
    text: str


def _character(rng: random.Random) -> tuple[str, str, str]:
    """Name, kind, pronoun key; one in five is a child."""
    sex = rng.choice("fm")
    name = rng.choice(words.FEMALE_NAMES if sex == "f" else words.MALE_NAMES)
    return name, words.CHILDREN[sex] if rng.random() < 0.2 else rng.choice(words.ANIMALS), sex


def cast(rng: random.Random) -> Facts:
    """The facts every plot shares: hero, friend, home, day and small details."""
    name, kind, sex = _character(rng)
    friend, friend_kind, friend_sex = _character(rng)
    while friend == name or friend_kind == kind:
        friend, friend_kind, friend_sex = _character(rng)
    adjective, friend_adjective = rng.sample(words.ADJECTIVES, 2)
    look, look2 = rng.sample(words.LOOKS, 2)
    facts = {
        "N": name, "kind": kind, "adj": adjective, "akind": f"a {adjective} {kind}", "F": friend, "fkind": friend_kind,
        "fadj": friend_adjective, "afkind": f"a {friend_adjective} {friend_kind}", "home": rng.choice(words.HOMES),
        "look": look, "look2": look2, "hobby": rng.choice(words.HOBBIES), "day": rng.choice(words.DAYS),
    }
    facts["Day"] = facts["day"]
    for prefix, key in (("", sex), ("f", friend_sex)):
        for slot, word in zip(("he", "him", "his"), PRONOUNS[key]):
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
    if rng.random() < 0.35:  # paragraphs
        cut = rng.randint(2, len(parts) - 3)
        return " ".join(parts[:cut]) + "\n\n" + " ".join(parts[cut:])
    return " ".join(parts)


def tell(rng: random.Random, plot: Plot | None = None, facts: Facts | None = None, short: bool = False) -> Story:
    """A story without a run of four words more than MAX_REPEATS times."""
    plot = plot or rng.choice(PLOTS)
    while True:
        story_facts = cast(rng) if facts is None else dict(facts)
        plot.choose(rng, story_facts)
        if "ghe" in story_facts:
            story_facts["ghe2"] = "her" if story_facts["ghe"] == "she" else "him"
        text = _compose(plot, story_facts, rng, short)
        if max(most_repeated(words_of(text)), most_repeated(words_and_marks_of(text))) <= MAX_REPEATS:
            return Story(plot, story_facts, text)


def summary(story: Story, rng: random.Random) -> str:
    return expand(rng.choice(story.plot.summary), story.facts, rng)


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(20):
        print(tell(generator).text, end="\n\n---\n\n")
