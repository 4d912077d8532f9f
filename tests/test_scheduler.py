"""The scheduler and its pages, against a node that remembers which token it saw in which page."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama.engine.pages import PagePool
from dllama.engine.scheduler import Scheduler, want_rows
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
    """A scheduler, a node, and sequences that each generate as many tokens as they were told."""

    def __init__(self, num_pages=8, num_slots=4, max_batch_tokens=6, max_logits=100) -> None:
        self.pool = PagePool(num_pages, num_slots, PAGE_SIZE)
        self.scheduler = Scheduler(self.pool, max_batch_tokens, max_logits)
        self.node = FakeNode(num_pages, num_slots)
        self.max_batch_tokens = max_batch_tokens
        self.sequences: list[Sequence] = []

    def add(self, num_prompt: int, num_new: int = 1, first_token: int = 0) -> Sequence:
        prompt = list(range(first_token, first_token + num_prompt))
        sequence = Sequence(len(self.sequences), prompt, num_prompt + num_new, first_wanted=num_prompt - 1)
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[Sequence, int, int]]:
        """Run a step; give its spans as (sequence, first, count)."""
        batch = self.scheduler.next_batch()
        wants = batch.wants
        assert len(batch.token_ids) == batch.num_tokens <= self.max_batch_tokens
        results = self.node.step(batch.token_ids, batch.span_rows, self.scheduler.page_changes, want_rows(wants))
        for want, prefix in zip(wants, results, strict=True):
            assert prefix == want.sequence.token_ids[: want.position + 1]
            want.sequence.token_ids.append(sum(prefix) % 1009)
            want.sequence.first_wanted = want.position + 1
        self.scheduler.commit(batch)
        for sequence in [want.sequence for want in wants if len(want.sequence.token_ids) == want.sequence.max_len]:
            self.scheduler.remove(sequence)
        return [(span.sequence, span.first, span.count) for span in batch.spans]

    def run(self) -> None:
        for _ in range(10000):
            if not self.step():
                return
        pytest.fail("sequences starve")


def generated_alone(num_prompt: int, num_new: int, first_token: int) -> list[int]:
    world = World(num_pages=100)
    sequence = world.add(num_prompt, num_new, first_token)
    world.run()
    return sequence.token_ids


@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8),
    num_slots=st.integers(1, 4),
    max_batch_tokens=st.integers(4, 40),
    arrivals=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_every_sequence_gets_the_tokens_it_gets_alone(lengths, num_slots, max_batch_tokens, arrivals):
    world = World(num_slots=num_slots, max_batch_tokens=max_batch_tokens)
    sequences = []
    for index, (num_prompt, num_new) in enumerate(lengths):
        sequences.append(world.add(num_prompt, num_new, 100 * index))
        for _ in range(arrivals[index]):
            world.step()
    world.run()
    for index, (num_prompt, num_new) in enumerate(lengths):
        assert sequences[index].token_ids == generated_alone(num_prompt, num_new, 100 * index)
    assert world.pool.num_free == 8
    assert not world.scheduler.running
    assert not world.scheduler.waiting


def test_prompts_go_in_chunks_in_order_of_arrival():
    world = World()
    first, second = world.add(8), world.add(3)
    assert world.step() == [(first, 0, 6)]
    assert world.step() == [(first, 6, 2), (second, 0, 3)]


def test_running_sequences_come_before_prompts():
    world = World(num_pages=16)
    talker = world.add(1, num_new=10)
    world.step()
    long = world.add(20)
    assert world.step() == [(talker, 1, 1), (long, 0, 5)]
    assert world.step() == [(talker, 2, 1), (long, 5, 5)]


def test_logits_are_wanted_only_where_asked_for():
    world = World()
    sequence = world.add(8)
    batch = world.scheduler.next_batch()
    assert batch.wants == []
    world.scheduler.commit(batch)
    (want,) = world.scheduler.next_batch().wants
    assert (want.sequence, want.position, want.row) == (sequence, 7, 1)


def test_scores_name_their_targets():
    world = World()
    world.scheduler.add(Sequence(0, [5, 6, 7], 3, first_wanted=0, targets=[6, 7, 8]))
    assert want_rows(world.scheduler.next_batch().wants).tolist() == [[0, 2, 6], [1, 2, 7], [2, 2, 8]]


def test_whoever_wants_all_logits_gets_a_few_at_a_time():
    world = World(max_logits=2)
    world.scheduler.add(Sequence(0, [1, 2, 3, 4, 5], 5, first_wanted=0))
    assert world.scheduler.next_batch().num_tokens == 2
    world = World(max_logits=2)
    world.scheduler.add(Sequence(0, [1, 2, 3, 4, 5], 5, first_wanted=3))  # the first three were delivered
    assert world.scheduler.next_batch().num_tokens == 5


def test_the_youngest_gives_its_pages_when_the_pool_runs_dry():
    world = World(num_pages=4, max_batch_tokens=100)
    old, young = world.add(7, num_new=8), world.add(4, num_new=5)
    world.step()
    assert list(world.scheduler.running) == [old, young]  # 2 and 1 pages; both need one more after the next step
    while young in world.scheduler.running:
        world.step()
    assert old in world.scheduler.running
    assert young.num_computed == 0
    world.run()
    assert young.token_ids == generated_alone(4, 5, 0)


def test_results_delivered_before_a_preemption_are_not_wanted_again():
    world = World(num_pages=4)
    sequence = world.add(4, num_new=5)
    world.step()
    world.step()
    world.scheduler._preempt(sequence)
    assert sequence.num_computed == 0
    assert [want.position for want in world.scheduler.next_batch().wants] == [5]


def test_sequences_that_cannot_grow_need_no_spare_page():
    world = World(num_pages=4)
    for _ in range(4):
        world.add(1, num_new=3)
    assert len(world.step()) == 4


def test_a_waiting_sequence_is_not_overtaken_by_a_shorter_one():
    world = World(num_pages=4)
    running, long, short = world.add(8, num_new=5), world.add(12), world.add(1)
    world.step()
    world.step()
    assert list(world.scheduler.running) == [running]
    assert list(world.scheduler.waiting) == [long, short]
    world.run()


def test_a_step_that_failed_is_scheduled_again_with_its_pages():
    world = World()
    world.add(5)
    world.scheduler.next_batch()  # never committed, as when Ctrl-C comes in between
    assert len(world.scheduler.page_changes) == 2
    world.run()


def test_removing_running_and_waiting_sequences():
    world = World(num_pages=4)
    running, waiting = world.add(12, num_new=3), world.add(12)
    world.step()
    world.scheduler.remove(waiting)
    world.scheduler.remove(running)
    assert world.step() == []
    assert world.pool.num_free == 4


def test_pages_of_a_closed_table_are_no_news():
    pool = PagePool(num_pages=4, num_slots=1, page_size=PAGE_SIZE)
    table = pool.open()
    assert pool.grow(table, 9)
    assert len(pool.changes()) == 3
    assert not pool.has_free_slot
    assert not pool.grow(table, 17)
    assert len(table.pages) == 3
    pool.close(table)
    assert pool.changes().shape == (0, 3)
    assert pool.num_free == 4
