"""What the assistant knows beside stories: who it is, small facts, small talk, and what it does not know."""

from __future__ import annotations

import random

import texts
from grammar import expand

Pair = tuple[str, str]  # question, answer

_TOPICS = {section.name: section for section in texts.sections("small_talk")}
_COMMON = ("greeting", "feeling", "who", "who", "ability", "thanks", "bye", "maker", "joke", "unknown", "unknown")
COLORS, SOUNDS, HOMES, LEGS = (texts.table("facts", name) for name in ("colors", "sounds", "homes", "legs"))
NUMBERS, WEEK = texts.words("facts", "numbers"), texts.words("facts", "week")
ANIMALS = texts.words("words", "animals")


def small_talk(rng: random.Random) -> Pair:
    """A greeting, a question about the assistant, thanks, or something it does not know (templates)."""
    topic = _TOPICS[rng.choice(_COMMON)]
    return rng.choice(topic.lines), rng.choice(topic.answers)


def _sum(rng: random.Random) -> Pair:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    minus = rng.random() < 0.3 and a >= b
    total = a - b if minus else a + b
    if rng.random() < 0.3:
        left, right, word = NUMBERS[a], NUMBERS[b], "minus" if minus else "plus"
        return f"what is {left} {word} {right}?", f"{left} {word} {right} is {NUMBERS[total]}."
    sign = "-" if minus else "+"
    form = rng.choice(["what is {}{}{}?", "{}{}{}", "how much is {}{}{}?", "{}{}{} ="])
    return form.format(a, rng.choice((f" {sign} ", f" {sign} ", sign)), b), f"{a} {sign} {b} = {total}."


def _day(rng: random.Random) -> Pair:
    index = rng.randrange(7)
    if rng.random() < 0.2:
        return "{name|what are|tell me} the days of the week", ", ".join(WEEK[:-1]) + f" and {WEEK[-1]}."
    if rng.random() < 0.5:
        question = f"{{what|which}} day comes {{after|next after}} {WEEK[index]}?"
        return question, f"After {WEEK[index]} comes {WEEK[(index + 1) % 7]}."
    return f"{{what|which}} day is before {WEEK[index]}?", f"Before {WEEK[index]} comes {WEEK[index - 1]}."


def _color(rng: random.Random) -> Pair:
    thing, color = rng.choice(COLORS)
    forms = (f"what color is {thing}?", f"which color does {thing} have?", f"what is the color of {thing}?")
    return rng.choice(forms), f"{thing} is {color}."


def _sound(rng: random.Random) -> Pair:
    animal, sound = rng.choice(SOUNDS)
    forms = (f"what does a {animal} say?", f"what sound does a {animal} make?")
    return rng.choice(forms), f'A {animal} says "{sound}".'


def _home(rng: random.Random) -> Pair:
    animal, home = rng.choice(HOMES)
    return f"where does a {animal} live?", f"A {animal} lives in {home}."


def _legs_or_names(rng: random.Random) -> Pair:
    animal, legs = rng.choice(LEGS)
    if rng.random() < 0.3:
        count = rng.randint(3, 6)
        names = rng.sample(ANIMALS, count)
        answer = ", ".join(f"a {name}" for name in names[:-1]) + f" and a {names[-1]}."
        return f"name {NUMBERS[count]} animals", answer
    return f"how many legs does a {animal} have?", f"A {animal} has {NUMBERS[int(legs)] if legs != '0' else 'no'} legs."


_FACTS = (_sum, _sum, _sum, _day, _color, _sound, _home, _legs_or_names)


def fact(rng: random.Random) -> Pair:
    """A question with its answer from one of the small tables (templates)."""
    return _FACTS[rng.randrange(len(_FACTS))](rng)


def fact_or_talk(rng: random.Random) -> Pair:
    """One exchange that has nothing to do with a story."""
    question, answer = fact(rng) if rng.random() < 0.35 else small_talk(rng)
    return expand(question, {}, rng), answer
