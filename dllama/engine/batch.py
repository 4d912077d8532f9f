"""One step's batch: spans of tokens of several sequences, and what is wanted of them.

Each sequence has the next tokens of a prompt in it, or its one new token and perhaps a draft behind that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from dllama import _native
from dllama.engine.pages import PageTable
from dllama.engine.sequence import Sequence

I32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Want:
    """One result of a step: that of ``row`` among its tokens, which is ``position`` of ``sequence``.

    ``draft``: the tokens up to there that the sequence does not have yet.
    """

    sequence: Sequence
    position: int
    row: int
    draft: tuple[int, ...] = ()

    @property
    def is_true(self) -> bool:
        """Whether the sequence has come to have the tokens up to there, now that earlier results were delivered."""
        token_ids = self.sequence.token_ids
        return not self.draft or (len(token_ids) == self.position + 1 and token_ids[-1] == self.draft[-1])


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a step: positions ``first`` to ``first + count - 1``.

    The last of them may be a ``draft``: tokens that the sequence does not have yet, and may turn out not to have.
    """

    sequence: Sequence
    table: PageTable
    first: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def num_own(self) -> int:
        """Tokens before the draft."""
        return self.count - len(self.draft)

    @property
    def token_ids(self) -> list[int]:
        """All its tokens."""
        return [*self.sequence.token_ids[self.first : self.first + self.num_own], *self.draft]

    @property
    def is_decode(self) -> bool:
        """Whether it has but one token, and guesses behind it."""
        return self.num_own == 1

    def wants(self, first_row: int) -> list[Want]:
        """All results wanted of it, whose first token is ``first_row`` of the step."""
        rows = range(max(0, self.sequence.first_wanted - self.first), self.count)
        drafts = [self.draft[: max(0, row + 1 - self.num_own)] for row in rows]
        return [
            Want(self.sequence, self.first + row, first_row + row, draft)
            for row, draft in zip(rows, drafts, strict=True)
        ]


def _rows(rows: Iterable[tuple[int, int, int]]) -> I32Array:
    return np.array(list(rows), np.int32).reshape(-1, 3)


@dataclass(slots=True)
class Batch:
    """The spans of one step, and the same as the arrays that ``Node.step`` takes."""

    spans: list[Span] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, sequence: Sequence, table: PageTable, limit: int, draft: Iterable[int] = ()) -> None:
        """Append the next pending tokens of ``sequence``, at most ``limit``, and a draft if these are all of them."""
        draft = tuple(draft)
        count = min(sequence.num_pending, limit) + len(draft)
        self.spans.append(Span(sequence, table, sequence.num_computed, count, draft))
        self.num_tokens += count

    @property
    def is_decode(self) -> bool:
        """Whether no prompt is read."""
        return all(span.is_decode for span in self.spans)

    @property
    def num_drafted(self) -> int:
        """Tokens of drafts."""
        return sum(len(span.draft) for span in self.spans)

    @property
    def token_ids(self) -> list[int]:
        """Ids of all tokens, span after span."""
        return [token for span in self.spans for token in span.token_ids]

    @property
    def span_rows(self) -> I32Array:
        """``[S, 3]`` of (slot, first position, number of tokens)."""
        return _rows((span.table.slot, span.first, span.count) for span in self.spans)

    @property
    def wants(self) -> list[Want]:
        """All results wanted, by row."""
        wants: list[Want] = []
        first_row = 0
        for span in self.spans:
            wants += span.wants(first_row)
            first_row += span.count
        return wants


def want_rows(wants: list[Want], queried: Collection[Want] = ()) -> I32Array:
    """``[W, 3]`` of (row, kind, value): a token to score, the number of a query, or 0 for logits.

    ``queried``: those of the wants that ask for candidates, whose queries are numbered in this order.
    """
    queries = count()
    return _rows(
        (want.row, _native.WANT_SCORE, want.sequence.targets[want.position])
        if want.sequence.targets is not None
        else (want.row, _native.WANT_CANDIDATES, next(queries))
        if want in queried
        else (want.row, _native.WANT_LOGITS, 0)
        for want in wants
    )
