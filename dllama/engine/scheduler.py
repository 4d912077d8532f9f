"""Which tokens of which sequences run in the next step.

Tokens of running sequences first, so that no prompt delays them, then prompts in the order of arrival, up to the step's
size. A sequence that ended leaves its KV in its pages for a prompt that begins alike (``idle``), until the pool runs
dry. When that is not enough, the youngest sequence gives its pages up and waits; it is computed again later, with the
same results. So at any time the running sequences are older than the waiting ones, and the oldest, which alone always
fits the pool, makes progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from dllama import _native
from dllama.engine.idle import IdleSequences
from dllama.engine.pace import Pace
from dllama.engine.pages import PagePool, PageTable
from dllama.engine.sequence import Sequence

I32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a step: positions ``first`` to ``first + count - 1``."""

    sequence: Sequence
    table: PageTable
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Want:
    """One result of a step: that of ``row`` among its tokens, which is ``position`` of ``sequence``."""

    sequence: Sequence
    position: int
    row: int


def _rows(rows: Iterable[tuple[int, int, int]]) -> I32Array:
    return np.array(list(rows), np.int32).reshape(-1, 3)


@dataclass(slots=True)
class Batch:
    """The spans of one step, and the same as the arrays that ``Node.step`` takes."""

    spans: list[Span] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, sequence: Sequence, table: PageTable, limit: int) -> None:
        """Append the next pending tokens of ``sequence``, at most ``limit``."""
        count = min(sequence.num_pending, limit)
        self.spans.append(Span(sequence, table, sequence.num_computed, count))
        self.num_tokens += count

    @property
    def token_ids(self) -> list[int]:
        """Ids of all tokens, span after span."""
        return [token for span in self.spans for token in span.sequence.token_ids[span.first : span.first + span.count]]

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
            positions = range(max(span.first, span.sequence.first_wanted), span.first + span.count)
            wants += [Want(span.sequence, position, first_row + position - span.first) for position in positions]
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


class Scheduler:
    """Deals steps and pages out to sequences.

    Args:
        pool: KV pages; no sequence may grow longer than all of it.
        max_batch_tokens: Tokens in one step.
        max_logits: Rows of logits that one sequence may ask of a step; only those that want all of them ask for many.
        step_seconds: About how long a step with tokens of a prompt may last; None: as long as it takes.
    """

    def __init__(
        self, pool: PagePool, max_batch_tokens: int, max_logits: int, step_seconds: float | None = None
    ) -> None:
        self._pool, self._max_batch_tokens, self._max_logits = pool, max_batch_tokens, max_logits
        self.pace = Pace(max_batch_tokens, step_seconds)
        self.running: dict[Sequence, PageTable] = {}  # oldest first
        self.waiting: deque[Sequence] = deque()  # oldest first
        self.idle = IdleSequences(pool)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind all others."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not; what is computed of it stays as long as nobody needs the pages."""
        if sequence in self.running:
            self._retire(sequence)
        else:
            self.waiting.remove(sequence)

    @property
    def page_changes(self) -> I32Array:
        """What the nodes must learn before the next step: ``[P, 3]`` of (slot, page index, page id)."""
        return self._pool.changes()

    def next_batch(self) -> Batch:
        """Choose the tokens of the next step; none only if there is no sequence left."""
        batch = Batch()
        self._add_decodes(batch)
        self._add_prompts(batch, most=min(self._max_batch_tokens, batch.num_tokens + self.pace.limit))
        return batch

    def commit(self, batch: Batch) -> None:
        """Note that a step computed ``batch`` on all nodes. Without this call the same tokens would run again."""
        self._pool.changes_done()
        for span in batch.spans:
            span.sequence.num_computed += span.count

    def _add_decodes(self, batch: Batch) -> None:
        for sequence, table in list(self.running.items()):
            is_next = (
                sequence in self.running and sequence.num_pending == 1 and batch.num_tokens < self._max_batch_tokens
            )
            if is_next and self._grow(sequence, table):
                batch.add(sequence, table, 1)

    def _add_prompts(self, batch: Batch, most: int) -> None:
        """Add tokens of prompts until the step has ``most``."""
        for sequence, table in self.running.items():
            if sequence.num_pending > 1 and batch.num_tokens < most:
                batch.add(sequence, table, self._chunk(sequence, most - batch.num_tokens))
        while self.waiting and batch.num_tokens < most and self._has_pages_for(self.waiting[0]):
            sequence = self.waiting.popleft()
            table = self.running[sequence] = self._open(sequence)
            self._fill(table, len(sequence.token_ids))
            batch.add(sequence, table, self._chunk(sequence, most - batch.num_tokens))

    def _chunk(self, sequence: Sequence, room: int) -> int:
        if sequence.targets is not None:
            return room
        num_unwanted = max(0, sequence.first_wanted - sequence.num_computed)
        return min(room, num_unwanted + self._max_logits)

    def _grow(self, sequence: Sequence, table: PageTable) -> bool:
        """Give a running sequence pages for all its tokens, those of the youngest if need be; False if it is that."""
        while not self._fill(table, len(sequence.token_ids)):
            youngest = next(reversed(self.running))
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _fill(self, table: PageTable, num_positions: int) -> bool:
        """Give a table pages for ``num_positions``, those of idle sequences if need be; False if all are too few."""
        while not self._pool.grow(table, num_positions):
            if not self.idle.give_page():
                return False
        return True

    def _open(self, sequence: Sequence) -> PageTable:
        """Give a waiting sequence a table: that of an idle one that begins alike, computed so far, or an empty one."""
        if found := self.idle.take(sequence.token_ids[: sequence.first_wanted]):
            table, sequence.num_computed = found
        else:
            if not self._pool.has_free_slot:
                self.idle.give_slot()
            table = self._pool.open()
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
        return table

    def _retire(self, sequence: Sequence) -> None:
        self.idle.put(sequence.token_ids[: sequence.num_computed], self.running.pop(sequence))

    def _preempt(self, sequence: Sequence) -> None:
        self._retire(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _has_pages_for(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence fits, with one more page for each that still grows, lest it soon be sent back."""
        growing = [self._pool.num_pages_for(older.max_len) > len(table.pages) for older, table in self.running.items()]
        needed = self._pool.num_pages_for(len(sequence.token_ids)) + sum(growing)
        has_slot = self._pool.has_free_slot or bool(self.idle)
        return has_slot and needed <= self._pool.num_free + self.idle.num_pages
