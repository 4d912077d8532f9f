"""Conversations: requests for stories, questions about them, small talk; as lists of messages."""

from __future__ import annotations

import random

import small_talk
from grammar import expand
from plot import Facts
from stories import Story, tell

Message = tuple[str, str]  # role, text

SYSTEM = (
    "You are a helpful assistant.", "You are a friendly storyteller.", "You tell short stories for children.", "You are a kind and helpful assistant.",
    "You are the demo model of dllama.", "Answer politely.", "You are a helpful AI assistant.", "You are a storyteller who loves animals.", "Be brief.", "Be helpful and friendly.",
)
ASK = (
    "tell me a{ short| little| nice|} story <about>", "{can|could} you {please |}tell {me|us} a{ short|} story <about>?", "write a{ short| little|} story <about>", "I {want|would like} {to hear |}a story <about>",
    "please tell {me|us} a{ short| bedtime|} story <about>", "a story <about>, please", "story <about>", "{make up|invent} a{ short|} story <about>", "give me a{ short|} story <about>", "do you know a story <about>?",
    "write me a{ short|} story <about>", "tell a story <about>", "let me hear a{ tale| story} <about>", "tell me a{ short|} tale <about>",
)
ASK_ANY = (
    "tell me a{ short| nice|} story", "{can|could} you tell me a story?", "{I want|I would like} a story", "please tell {me|us} a{ bedtime| short|} story", "a story, please", "write a{ short|} story", "once upon a time", "tell me something", "story please", "yes, tell me a story", "I am bored",
)
ABOUT = ("about a <hero>", "about a <hero>", "about a <hero> <theme>", "about a <hero> <theme>", "about a <hero> <theme>", "about <topic>", "about a <hero> named <N>", "about a <hero> and a <fkind>", "about a <hero> called <N> <theme>", "about <N> and <F>", "with a <hero>", "about <N> the <kind>")
LEAD = ("", "", "", "{Of course|Sure|With pleasure|Gladly}! {Here is|This is} {a story|your story}.\n\n", "{Yes|Sure}, {listen|here it comes}.\n\n")
ANOTHER = ("tell {me |}another {one|story}", "another{ one|}{ please|}", "one more{ story|}{ please|}", "{can|could} you tell another one?", "again, but a different one", "more{ please|}", "next story", "tell me one more")
SHORTER = ("make it shorter", "{can|could} you make it shorter?", "too long, shorter please", "sum it up", "summarize {it|the story}", "what was the story about?", "in one sentence, please", "give me a summary", "what is it about?")
MORAL = ("what is the moral{ of the story|}?", "what can {we|I} learn from {it|the story}?", "what does the story teach?")
FOLLOW_UP = (
    (("who was the story about?", "who is the hero?", "who was it about?", "what was the name of the <kind>?", "who is <N>?", "what was the hero called?", "who is the main character?"), ("The story was about <N>, <akind>.", "<N>, <akind>.", "It was about a <kind> {named|called} <N>.")),
    (("where did <N> live?", "where did the <kind> live?", "where does <he> live?", "where was <his> home?"), ("<N> lived <home>.", "<He> lived <home>.")),
    (("what kind of animal was <F>?", "who was <F>?", "what was the name of the <fkind>?", "who was the friend?", "who is <F>?"), ("<F> was a <fkind>.", "<F>, a <fkind>, was the friend of <N>.")),
)


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
    plain = rng.random() < (0.8 if again else 0.2)
    story = tell(rng, short=rng.random() < 0.3)
    facts: Facts = dict(story.facts)
    hero = f"{facts['adj']} {facts['kind']}" if rng.random() < 0.35 else facts["kind"]
    facts |= {"hero": hero, "theme": rng.choice(story.plot.theme), "topic": rng.choice(story.plot.topics)}
    if facts["topic"].startswith("<") and rng.random() < 0.5:
        facts["topic"] = f"a {facts['kind']}"
    facts["about"] = rng.choice(ABOUT)
    question = rng.choice(ANOTHER if again and plain else ASK_ANY if plain else ASK)
    text = _polish_request(expand(question, facts, rng))
    answer = expand(rng.choice(LEAD), facts, rng)
    answer = answer + ("\n\n" if answer else "") + story.text
    return [("user", _as_user(text, rng)), ("assistant", answer)], story


def _polish_request(text: str) -> str:
    return text[0].lower() + text[1:] if not text.startswith(("I ", "I'")) else text


def _about_story(story: Story, rng: random.Random, asked: set[str]) -> list[Message]:
    """A question about the story just told, answered from its facts; none is asked twice."""
    pool = list(FOLLOW_UP) + list(story.plot.questions) * 2 + [(SHORTER, story.plot.summary)] * 2 + [(MORAL, ("<moral>",))]
    questions, answers = rng.choice([entry for entry in pool if entry[0][0] not in asked])
    asked.add(questions[0])
    question, answer = (expand(rng.choice(options), story.facts, rng) for options in (questions, answers))
    return [("user", _as_user(question[0].lower() + question[1:], rng)), ("assistant", answer)]


def _small_turn(rng: random.Random) -> list[Message]:
    if rng.random() < 0.35:
        question, answer = small_talk.fact(rng)
    else:
        questions, answers = rng.choice(small_talk.TOPICS)
        question, answer = rng.choice(questions), rng.choice(answers)
    question = expand(question, {}, rng)
    return [("user", _as_user(question if rng.random() < 0.3 else question[0].lower() + question[1:], rng)), ("assistant", expand(answer, {}, rng))]


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
    for _ in range(40):
        for role, text in chat(generator):
            print(f"[{role}] {text}")
        print("---")
