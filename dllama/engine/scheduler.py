"""Which tokens of which sequences run in the next step.

Tokens of running sequences first, so that no prompt delays them, then prompts in the order of arrival, up to the step's
size. A sequence that ended leaves its KV in its pages for a prompt that begins alike (``idle``), until the pool runs
dry. When that is not enough, the youngest sequence gives its pages up and waits; it is computed again later, with the
same results. So at any time the running sequences are older than the waiting ones, and the oldest, which alone always
fits the pool, makes progress.
"""

from __future__ import annotations

from collections import deque

from dllama.engine.batch import Batch, I32Array, Span
from dllama.engine.drafts import draft_lengths
from dllama.engine.idle import IdleSequences
from dllama.engine.pace import Pace
from dllama.engine.pages import PagePool, PageTable
from dllama.engine.sequence import Sequence
from dllama.engine.step_times import StepTimes

_MAX_RESULTS = 32  # of tokens to sample in a step with drafts: nodes have room for what so many samplers ask


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
        self.step_times = StepTimes()
        self.num_drafted, self.num_accepted = 0, 0  # tokens of drafts, and those of them that sequences gained
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

    def note(self, batch: Batch, seconds: float) -> None:
        """Take how long a step with ``batch`` took."""
        if batch.is_decode:
            self.step_times.note(batch.num_tokens, seconds)
        else:
            self.pace.note(batch.num_tokens, seconds)

    def commit(self, batch: Batch) -> None:
        """Note that a step computed ``batch`` on all nodes, and that its results were delivered.

        Without this call the same tokens would run again.
        """
        self._pool.changes_done()
        for span in batch.spans:
            if span.draft:
                self._commit_draft(span)
            else:
                span.sequence.num_computed += span.count

    def _commit_draft(self, span: Span) -> None:
        """Keep what is computed of the tokens that the sequence has now; its last one was chosen, not computed."""
        sequence = span.sequence
        num_new = len(sequence.token_ids) - sequence.num_computed - 1
        self.num_drafted += len(span.draft)
        self.num_accepted += num_new - 1
        sequence.num_computed += num_new
        self._pool.shrink(self.running[sequence], len(sequence.token_ids))

    def _add_decodes(self, batch: Batch) -> None:
        decoding: list[Sequence] = []
        for sequence, table in list(self.running.items()):
            is_next = sequence in self.running and sequence.num_pending == 1 and len(decoding) < self._max_batch_tokens
            if is_next and self._grow(sequence, table):
                decoding.append(sequence)
        for sequence, draft in zip(decoding, self._drafts(decoding), strict=True):
            table = self.running[sequence]
            batch.add(sequence, table, 1, draft[: self._draft_room(table, len(sequence.token_ids), len(draft))])

    def _drafts(self, decoding: list[Sequence]) -> list[list[int]]:
        """Guess how sequences go on, as far as that is worth a step's time; nothing for most, most of the time.

        Drafts leave half of the step to prompts, and at least one row of logits to whoever wants all of them.
        """
        guesses = [sequence.guess() for sequence in decoding]
        if not any(guess.token_ids for guess in guesses):
            return [[] for _ in decoding]
        room = min(
            (self._max_batch_tokens - len(decoding)) // 2,
            self._max_logits - 1,
            _MAX_RESULTS - len(self.running) - len(self.waiting),
        )
        lengths = draft_lengths([guess.chances for guess in guesses], self.step_times.of, max(0, room))
        return [guess.token_ids[:length] for guess, length in zip(guesses, lengths, strict=True)]

    def _draft_room(self, table: PageTable, num_positions: int, wanted: int) -> int:
        """Give a table pages for a draft if nobody else wants them; say how much of it they hold."""
        if not self.waiting:
            self._pool.grow(table, num_positions + wanted)
        return len(table.pages) * self._pool.page_size - num_positions

    def _add_prompts(self, batch: Batch, most: int) -> None:
        """Add tokens of prompts until the step has ``most``."""
        for sequence, table in self.running.items():
            if sequence.num_pending > 1 and batch.num_tokens < most:
                batch.add(sequence, table, self._chunk(sequence, batch, most))
        while self.waiting and batch.num_tokens < most and self._has_pages_for(self.waiting[0]):
            sequence = self.waiting.popleft()
            table = self.running[sequence] = self._open(sequence)
            self._fill(table, len(sequence.token_ids))
            batch.add(sequence, table, self._chunk(sequence, batch, most))

    def _chunk(self, sequence: Sequence, batch: Batch, most: int) -> int:
        """Say how many tokens of a prompt fit a batch of ``most``, and their logits the memory for those."""
        room = most - batch.num_tokens
        if sequence.targets is not None:
            return room
        num_unwanted = max(0, sequence.first_wanted - sequence.num_computed)
        return min(room, num_unwanted + self._max_logits - batch.num_drafted)

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
