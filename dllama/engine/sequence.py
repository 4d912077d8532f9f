"""A sequence: token ids, how far they are computed, and what is wanted of them.

Its KV can always be rebuilt from the ids, so a sequence that lost its pages simply starts again with what is left of
them; results that were delivered before are not asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dllama.engine.drafts import NO_GUESS, Drafter, Guess


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids on their way through the model.

    Attributes:
        token_ids: Prompt, then what was generated.
        max_len: The most tokens it can come to have.
        first_wanted: The first position whose result (logits, or a score) is wanted and not delivered yet; results of
            all positions from here on are wanted.
        targets: The token to score at each position; None: the results are logits.
        num_computed: Positions whose KV is in pages; 0 while it waits.
        num_cached: Positions whose KV was there when it first ran; None before.
        drafter: Guesses its next tokens; None: nobody does.
    """

    request_id: int
    token_ids: list[int]
    max_len: int
    first_wanted: int = 0
    targets: list[int] | None = None
    num_computed: int = 0
    num_cached: int | None = None
    drafter: Drafter | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.token_ids) - self.num_computed

    def guess(self) -> Guess:
        """Guess the next tokens, but for the last that it can have: that one is chosen at the end of a step."""
        if self.drafter is None:
            return NO_GUESS
        return self.drafter.guess(self.token_ids).first(self.max_len - len(self.token_ids) - 1)
