"""Conversations: requests for stories, questions about them, small talk; as lists of messages."""

from __future__ import annotations

import random

import texts
from grammar import expand
from small_talk import fact_or_talk
from stories import Story, tell

Message = tuple[str, str]  # role, text

_NAMES = ("system", "ask", "ask_any", "about", "lead", "another", "shorter", "moral")
SYSTEM, ASK, ASK_ANY, ABOUT, LEAD, ANOTHER, SHORTER, MORAL = (texts.lines("chats", name) for name in _NAMES)
FOLLOW_UP = [section for section in texts.sections("chats") if section.name == "question"]


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _as_user(text: str, rng: random.Random) -> str:
    """People write with and without capitals and punctuation."""
    style = rng.random()
    if style < 0.45:
        text = text[0].upper() + text[1:]
        return text if text[-1] in "?.!" or rng.random() < 0.5 else text + "."
    if style < 0.8:
        return text
    return text.rstrip("?.!").replace(",", "").lower()


def _story_turn(rng: random.Random, again: bool = False) -> tuple[list[Message], Story]:
    """A request and a story that fits it: the request is made from the facts of the story."""
    plain = rng.random() < (0.8 if again else 0.2)
    story = tell(rng, short=rng.random() < 0.3)
    facts = dict(story.facts)
    hero = f"{facts['adj']} {facts['kind']}" if rng.random() < 0.35 else facts["kind"]
    facts |= {"hero": hero, "theme": rng.choice(story.plot.theme), "topic": rng.choice(story.plot.topics)}
    if facts["topic"].startswith("<") and rng.random() < 0.5:
        facts["topic"] = f"a {facts['kind']}"
    facts["about"] = rng.choice(ABOUT)
    text = expand(rng.choice(ANOTHER if again and plain else ASK_ANY if plain else ASK), facts, rng)
    text = text if text.startswith("I ") else _lower_first(text)
    lead = expand(rng.choice(LEAD), facts, rng)
    answer = f"{lead}\n\n{story.text}" if lead else story.text
    return [("user", _as_user(text, rng)), ("assistant", answer)], story


def _about_story(story: Story, rng: random.Random, asked: set[str]) -> list[Message]:
    """A question about the story just told, answered from its facts; none is asked twice."""
    pool = [(section.lines, section.answers) for section in FOLLOW_UP + story.plot.questions * 2]
    pool += [(SHORTER, story.plot.summary)] * 2 + [(MORAL, ["<moral>"])]
    questions, answers = rng.choice([entry for entry in pool if entry[0][0] not in asked])
    asked.add(questions[0])
    question, answer = (expand(rng.choice(options), story.facts, rng) for options in (questions, answers))
    return [("user", _as_user(_lower_first(question), rng)), ("assistant", answer)]


def _small_turn(rng: random.Random) -> list[Message]:
    question, answer = fact_or_talk(rng)
    question = question if rng.random() < 0.3 else _lower_first(question)
    return [("user", _as_user(question, rng)), ("assistant", expand(answer, {}, rng))]


def chat(rng: random.Random) -> list[Message]:
    """One conversation of one to about six exchanges."""
    messages: list[Message] = [("system", rng.choice(SYSTEM))] if rng.random() < 0.3 else []
    if rng.random() < 0.3:
        for _ in range(rng.choice((1, 1, 2, 3, 4))):
            messages += _small_turn(rng)
        if rng.random() < 0.7:
            return messages
    turns, story = _story_turn(rng)
    messages += turns
    asked: set[str] = set()
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 4))):
        kind = rng.random()
        if kind < 0.75:
            messages += _about_story(story, rng, asked)
        elif kind < 0.88:
            messages += _small_turn(rng)
        else:
            turns, story = _story_turn(rng, again=True)
            messages, asked = messages + turns, set()
    return messages


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(10):
        for role, text in chat(generator):
            print(f"[{role}] {text}")
        print("---")
