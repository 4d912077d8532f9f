"""Rows of logits that lie on several nodes: what is asked of them, and what came back.

No node sends its slice of a row unless it must: the root gets the best candidates, sums, and the few logits that it
changes before it chooses. Knows no sampling parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dllama import _native

F32Array = npt.NDArray[np.float32]
I32Array = npt.NDArray[np.int32]

NO_IDS: I32Array = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class RowQuery:
    """What is asked of a row; see ``_native.CandidateQuery``."""

    count: int
    limit: int
    temperature: float
    ids: I32Array

    @property
    def num_candidates(self) -> int:
        """Tokens below ``limit`` that are not among ``ids``."""
        return self.limit - int(np.searchsorted(self.ids, self.limit))

    def to_native(self) -> _native.CandidateQuery:
        """The same for the core."""
        return _native.CandidateQuery(self.count, self.limit, self.temperature, self.ids)


class Nodes(Protocol):
    """What answers further questions about rows of the last step: a node of rank 0, or who has one."""

    def full_logits(self, index: int) -> F32Array:
        """The whole row."""

    def draw(self, index: int, coin: float) -> tuple[int, float]:
        """A draw from all candidates, and its logit."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The largest of some logits, best first, equals by id.

    Attributes:
        ids: Token ids, int32 ``[m]``.
        logits: Float32 ``[m]``.
    """

    ids: I32Array
    logits: F32Array


class SlicedRow:
    """One row of logits, valid until the next step.

    Args:
        query: What was asked.
        candidates: What the nodes said.
        nodes: Who answers more.
        index: The query's, in its step.
    """

    def __init__(self, query: RowQuery, candidates: _native.Candidates, nodes: Nodes, index: int) -> None:
        self.query, self.candidates = query, candidates
        self._nodes, self._index = nodes, index
        self._logits: F32Array | None = None
        self._drawn: dict[int, float] = {}  # logits by token

    def logits(self) -> F32Array:
        """Fetch the whole row, float32 ``[vocab_size]``."""
        if self._logits is None:
            self._logits = self._nodes.full_logits(self._index)
        return self._logits

    def draw(self, coin: float) -> int:
        """Draw from all candidates, in token order, ``0 <= coin < 1``."""
        token, logit = self._nodes.draw(self._index, coin)
        self._drawn[token] = logit
        return token

    def logit(self, token: int) -> float:
        """The model's logit of one token."""
        if token in self._drawn:
            return self._drawn[token]
        for ids, logits in ((self.candidates.ids, self.candidates.logits), (self.query.ids, self.candidates.values)):
            if (found := np.flatnonzero(ids == token)).size:
                return float(logits[found[0]])
        return float(self.logits()[token])

    def ranking(self, values: F32Array, below: int) -> Ranking:
        """Rank candidates and the query's ids below ``below``, whose logits are taken to be ``values``."""
        own, query = self.candidates, self.query
        num_ids = int(np.searchsorted(query.ids, below))
        ids = np.concatenate((own.ids, query.ids[:num_ids]))
        logits = np.concatenate((own.logits, values[:num_ids]))
        order = np.lexsort((ids, -logits))
        if len(own.ids) < query.num_candidates:  # what was not listed may stand anywhere behind the last that was
            last = int(np.flatnonzero(order == len(own.ids) - 1)[0])
            order = order[: last + 1]
        return Ranking(ids[order], logits[order])
