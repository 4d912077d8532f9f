"""How many tokens a step may have so that nobody waits long for its end: for a cancel, or for the next decode token."""

from __future__ import annotations

_FIRST_TOKENS = 32  # before anything is measured
_LEAST_TOKENS = 16  # fewer would read all weights for too little


class Pace:
    """Learns from each step how large the next may be.

    Args:
        max_tokens: Tokens in any step.
        seconds: How long a step may last; None: as long as it takes.

    Attributes:
        limit: Tokens in the next step, if some of them are a prompt's.
    """

    def __init__(self, max_tokens: int, seconds: float | None = None) -> None:
        self._max_tokens, self._seconds = max_tokens, seconds
        self.limit = max_tokens if seconds is None else min(_FIRST_TOKENS, max_tokens)

    def note(self, num_tokens: int, seconds: float) -> None:
        """Take what a step had and how long it took; one much smaller than allowed says little about larger ones."""
        if self._seconds is None or num_tokens < max(_LEAST_TOKENS, self.limit // 2) or seconds <= 0:
            return
        fitting = int(min(num_tokens * self._seconds / seconds, 2 * self.limit))
        self.limit = min(self._max_tokens, max(_LEAST_TOKENS, fitting))
