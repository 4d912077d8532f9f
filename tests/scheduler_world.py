"""A scheduler and its pages, against a node that remembers which token it saw in which page."""

from __future__ import annotations

import numpy as np
import pytest

from dllama.engine.batch import want_rows
from dllama.engine.drafts import Drafter
from dllama.engine.pages import PagePool
from dllama.engine.scheduler import Scheduler
from dllama.engine.sequence import Sequence

PAGE_SIZE = 4


class FakeNode:
    """Keeps tokens where a node keeps keys and values, and 'computes' by reading back all earlier positions."""

    def __init__(self, num_pages: int, num_slots: int) -> None:
        self.cache = np.full((num_pages, PAGE_SIZE), -1)
        self.tables = np.full((num_slots, num_pages), -1)

    def step(self, token_ids: list[int], spans: np.ndarray, pages: np.ndarray, wants: np.ndarray) -> list[list[int]]:
        for slot, index, page in pages:
            self.tables[slot, index] = page
        rows: list[tuple[int, int]] = []
        for slot, first, count in spans:
            for position in range(first, first + count):
                page, offset = self.tables[slot, position // PAGE_SIZE], position % PAGE_SIZE
                assert page >= 0
                self.cache[page, offset] = token_ids[len(rows)]
                rows.append((slot, position))
        assert len(rows) == len(token_ids)
        return [self.prefix(*rows[row]) for row, _, _ in wants]

    def prefix(self, slot: int, position: int) -> list[int]:
        """All tokens of a slot up to a position."""
        pages = self.tables[slot, : position // PAGE_SIZE + 1]
        return self.cache[pages].reshape(-1)[: position + 1].tolist()


class World:
    """A scheduler, a node, and sequences that each generate as many tokens as they were told.

    ``max_draft``: tokens guessed; steps take no longer for them. ``vocab_size``: few tokens repeat themselves.
    """

    def __init__(
        self, num_pages=8, num_slots=4, max_batch_tokens=6, max_logits=100, max_draft=0, vocab_size=1009
    ) -> None:
        self.pool = PagePool(num_pages, num_slots, PAGE_SIZE)
        self.scheduler = Scheduler(self.pool, max_batch_tokens, max_logits)
        self.node = FakeNode(num_pages, num_slots)
        self.max_batch_tokens, self.max_draft, self.vocab_size = max_batch_tokens, max_draft, vocab_size
        self.sequences: list[Sequence] = []

    def add(self, num_prompt: int, num_new: int = 1, first_token: int = 0) -> Sequence:
        return self.add_prompt(list(range(first_token, first_token + num_prompt)), num_new)

    def add_prompt(self, prompt: list[int], num_new: int = 1) -> Sequence:
        sequence = Sequence(len(self.sequences), prompt, len(prompt) + num_new, first_wanted=len(prompt) - 1)
        sequence.drafter = Drafter(self.max_draft) if self.max_draft else None
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[Sequence, int, int]]:
        """Run a step; give its spans as (sequence, first, count)."""
        batch = self.scheduler.next_batch()
        wants = batch.wants
        assert len(batch.token_ids) == batch.num_tokens <= self.max_batch_tokens
        results = self.node.step(batch.token_ids, batch.span_rows, self.scheduler.page_changes, want_rows(wants))
        if batch.spans:
            self.scheduler.note(batch, 1.0)
        for want, prefix in zip(wants, results, strict=True):
            if not want.is_true:
                continue
            assert prefix == want.sequence.token_ids[: want.position + 1]
            want.sequence.token_ids.append(sum(prefix) % self.vocab_size)
            want.sequence.first_wanted = want.position + 1
        self.scheduler.commit(batch)
        for sequence in dict.fromkeys(want.sequence for want in wants):
            if len(sequence.token_ids) == sequence.max_len:
                self.scheduler.remove(sequence)
        return [(span.sequence, span.first, span.count) for span in batch.spans]

    @property
    def num_free(self) -> int:
        """Pages that no running sequence has."""
        return self.pool.num_free + self.scheduler.idle.num_pages

    def run(self) -> None:
        for _ in range(10000):
            if not self.step():
                return
        pytest.fail("sequences starve")
