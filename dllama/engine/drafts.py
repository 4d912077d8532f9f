"""Guessing how a sequence goes on: as it did where its last tokens stood before, in prompt or output.

A step computes the next token and a guess behind it together. Each token is then chosen as ever; what of the guess is
equal to it came for the price of one step, and the rest is forgotten. Knows no pages and no logits; the scheduler asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_KEY = 2  # tokens that must have stood there before
_LONGEST = 32  # matches are told apart up to this length
_MOST_PLACES = 16  # that are compared
_NUM_KINDS = _LONGEST.bit_length() + 1
_MEMORY = 15 / 16  # what an old trial counts after each new one
_LEAST_GAIN = 1.03  # less is noise of the clock


class TokenIndex:
    """Finds the last tokens of a sequence further up in it; the sequence may only grow.

    It takes 90 to 140 bytes for each token, the more, the less is said twice: at most 18 MiB for 131072 tokens.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}  # place behind the last occurrence of a key
        self._earlier = [0] * _KEY  # by place, the one before it behind the same key; 0: none

    def find(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Give the place behind the longest match, the last of equals, and its length; (0, 0) if there is none.

        No match is shorter than 2 tokens, 32 are as good as more, and of many places only the last few are compared.
        """
        self._extend(token_ids)
        place, best = self._last.get(tuple(token_ids[-_KEY:]), 0), (0, 0)
        for _ in range(_MOST_PLACES):
            if not place:
                break
            length = _match_length(token_ids, place)
            if length > best[1]:
                best = place, length
            place = self._earlier[place]
        return best

    def _extend(self, token_ids: Sequence[int]) -> None:
        """Note all places but the end, behind which nothing is known."""
        for place in range(len(self._earlier), len(token_ids)):
            key = tuple(token_ids[place - _KEY : place])
            self._earlier.append(self._last.get(key, 0))
            self._last[key] = place


def _match_length(token_ids: Sequence[int], place: int) -> int:
    """Count the tokens before ``place`` that are equal to the last ones; the key is."""
    end, longest, length = len(token_ids), min(place, _LONGEST), _KEY
    while length < longest and token_ids[place - 1 - length] == token_ids[end - 1 - length]:
        length += 1
    return length


@dataclass(frozen=True, slots=True)
class Guess:
    """Tokens that may follow, and the chance of each that it and all before it are right, falling."""

    token_ids: list[int]
    chances: list[float]

    def first(self, count: int) -> Guess:
        """Give the same of at most ``count`` tokens."""
        return self if len(self.token_ids) <= count else Guess(self.token_ids[:count], self.chances[:count])


NO_GUESS = Guess([], [])


class Drafter:
    """Guesses the next tokens of one sequence, and learns from what came how often it is right.

    Right or wrong shows in every token, whether the guess was computed or not. Chances are learnt by length of match.

    Args:
        most: Tokens in a guess.
    """

    def __init__(self, most: int) -> None:
        self._most, self._index = most, TokenIndex()
        self._hits, self._trials = [1.0] * _NUM_KINDS, [2.0] * _NUM_KINDS
        self._guess, self._length, self._at = NO_GUESS, 0, 0  # the last one, of how long a match, where

    def guess(self, token_ids: Sequence[int]) -> Guess:
        """Guess what follows ``token_ids``: those of the last call and what followed them."""
        self._learn(token_ids)
        place, self._length = self._index.find(token_ids)
        self._at = end = len(token_ids)
        if not place:
            self._guess = NO_GUESS
        else:  # where the match reaches the end, it repeats itself
            following = [token_ids[place + offset % (end - place)] for offset in range(self._most)]
            self._guess = Guess(following, self._chances())
        return self._guess

    def _chances(self) -> list[float]:
        chances, chance = [], 1.0
        for offset in range(self._most):
            kind = self._kind(offset)
            chance *= self._hits[kind] / self._trials[kind]
            chances.append(chance)
        return chances

    def _learn(self, token_ids: Sequence[int]) -> None:
        """Compare the last guess with what came, up to the first difference."""
        for offset, guessed in enumerate(self._guess.token_ids[: len(token_ids) - self._at]):
            is_hit, kind = guessed == token_ids[self._at + offset], self._kind(offset)
            self._hits[kind] = self._hits[kind] * _MEMORY + is_hit
            self._trials[kind] = self._trials[kind] * _MEMORY + 1
            if not is_hit:
                break

    def _kind(self, offset: int) -> int:
        """Class the match that a token of the guess has behind it, if all before it are right: by powers of two."""
        return min(self._length + offset, _LONGEST).bit_length()


def draft_lengths(chances: Sequence[Sequence[float]], time_of: Callable[[int], float], room: int) -> list[int]:
    """Say how many tokens of each sequence's guess to compute, so that the step gives most tokens per time.

    Args:
        chances: For each sequence of the step those of its guess.
        time_of: Gives the time, in any unit, of a step with so many tokens.
        room: Most tokens of all guesses together.
    """
    likeliest = sorted(((chance, index) for index, each in enumerate(chances) for chance in each), reverse=True)[:room]
    lengths, num_certain, num_taken = [0] * len(chances), len(chances), 0
    if not likeliest:
        return lengths
    expected, best = float(num_certain), _LEAST_GAIN * num_certain / time_of(num_certain)
    for count, (chance, _) in enumerate(likeliest, start=1):
        expected += chance
        rate = expected / time_of(num_certain + count)
        if rate > best:
            best, num_taken = rate, count
    for _, index in likeliest[:num_taken]:
        lengths[index] += 1
    return lengths
