"""Guesses that are right as often as a test wants: made from what was said before without any."""

from __future__ import annotations

import random

from dllama.engine.drafts import Guess


class Oracle:
    """Guesses what is known to come, with mistakes here and there, in place of a ``Drafter``.

    Args:
        whole: All tokens of the sequence.
        share_right: How many of the tokens guessed are right, from 0 to 1.
        most: Tokens in a guess.
    """

    def __init__(self, whole: list[int], share_right: float = 0.8, most: int = 5) -> None:
        self._whole, self._share_right, self._most = whole, share_right, most
        self._random = random.Random(0)

    def guess(self, token_ids: list[int]) -> Guess:
        end = len(token_ids)
        following = (self._whole[end:] + [7] * self._most)[: self._most]  # behind the end something follows, too
        token_ids = [token if self._random.random() < self._share_right else token ^ 1 for token in following]
        return Guess(token_ids, [0.9**depth for depth in range(1, self._most + 1)])
