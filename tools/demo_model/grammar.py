"""Template expansion: `{a|b|}` picks one branch (they nest), `<key>` is a fact of the story."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<(\w+)>")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?|\." )([a-z])')


def expand(template: str, facts: Mapping[str, str], rng: random.Random) -> str:
    """Choose branches, fill slots, then mend articles, spaces and capitals."""
    while "{" in template:
        template = _INNERMOST.sub(lambda match: rng.choice(match[1].split("|")), template)
    while "<" in template:
        template = _SLOT.sub(lambda match: facts[match[1]], template)
    return polish(template)


def polish(text: str) -> str:
    """Single spaces, "an" before a vowel, a capital at each sentence start."""
    text = re.sub(r" +([.,!?])", r"\1", re.sub(r" {2,}", " ", text)).strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def beat(options: Sequence[str], facts: Mapping[str, str], rng: random.Random) -> str:
    """One of several wordings of the same step of a plot."""
    return expand(rng.choice(options), facts, rng)


def most_repeated(items: Sequence[object], size: int = 4) -> int:
    """How often the commonest run of `size` consecutive items occurs."""
    runs = Counter(tuple(items[i : i + size]) for i in range(len(items) - size + 1))
    return max(runs.values(), default=0)


def words_of(text: str) -> list[str]:
    """Give the words in lower case."""
    return re.findall(r"[a-z']+", text.lower())


def words_and_marks_of(text: str) -> list[str]:
    """Give words and punctuation marks."""
    return re.findall(r"[A-Za-z']+|[^A-Za-z'\s]+", text)
