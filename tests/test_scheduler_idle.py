"""Sequences that ended: who takes over what they left, and who has to make room for whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scheduler_world import World  # type: ignore[import-not-found]

from dllama.engine.sequence import Sequence


@given(
    turns=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 4)),
        min_size=1,
        max_size=12,
    ),
    num_pages=st.integers(8, 14),
    num_slots=st.integers(1, 4),
    max_batch_tokens=st.integers(4, 40),
)
def test_whatever_is_taken_over_the_tokens_are_the_same(turns, num_pages, num_slots, max_batch_tokens):
    """Conversations that go on, branch off anywhere, and break off; the node checks what each result was made of."""
    world = World(num_pages, num_slots, max_batch_tokens)
    histories = [[1000 * number] for number in range(3)]
    for number, (conversation, kept, num_typed, num_new, num_steps) in enumerate(turns):
        prompt = histories[conversation][: kept + 1] + [10 * number + 5] * num_typed
        sequence = world.add_prompt(list(prompt), num_new)
        for _ in range(num_steps):
            world.step()
        if number % 3 == 2 and len(sequence.token_ids) < sequence.max_len:
            world.scheduler.remove(sequence)  # cancelled
        histories[conversation] = sequence.token_ids
    cancelled = [sequence for sequence in world.sequences if len(sequence.token_ids) < sequence.max_len]
    world.run()
    assert world.num_free == num_pages
    assert len(world.scheduler.idle) <= num_slots
    for sequence in world.sequences:
        assert len(sequence.token_ids) == sequence.max_len or sequence in cancelled


def finish(world: World, prompt: list[int], num_new: int = 1) -> Sequence:
    sequence = world.add_prompt(prompt, num_new)
    world.run()
    return sequence


def test_a_prompt_that_begins_alike_takes_over_what_is_computed():
    world = World(max_batch_tokens=100)
    first = finish(world, [1, 2, 3], num_new=3)
    second = world.add_prompt([*first.token_ids, 7, 8])
    assert world.step() == [(second, 5, 3)]  # the last token of the first was never computed
    assert second.num_cached == 5
    third = world.add_prompt([1, 2, 3, 4])
    assert world.step() == [(third, 3, 1)]  # in the middle of a page
    assert len(world.scheduler.idle) == 1


def test_the_last_token_of_a_prompt_is_computed_in_any_case():
    world = World()
    finish(world, [1, 2, 3, 4, 5])
    again = world.add_prompt([1, 2, 3, 4, 5])
    assert world.step() == [(again, 4, 1)]


def test_results_that_are_wanted_are_computed():
    world = World()
    finish(world, [1, 2, 3, 4, 5])
    sequence = Sequence(9, [1, 2, 3, 4, 5], 5, first_wanted=2)
    world.scheduler.add(sequence)
    (span,) = world.scheduler.next_batch().spans
    assert (span.first, span.count) == (2, 3)


def test_the_longest_beginning_is_taken_once():
    world = World(max_batch_tokens=100)
    world.add_prompt([1, 2, 3, 4])
    finish(world, [1, 2, 9, 9, 9, 9])  # side by side, lest it take the first one over
    one, other = world.add_prompt([1, 2, 9, 9, 9, 7, 7]), world.add_prompt([1, 2, 9, 9, 9, 8])
    assert world.step() == [(one, 5, 2), (other, 2, 4)]  # the second gets what is left: the shorter one


def test_a_short_beginning_does_not_cost_a_long_memory():
    world = World(max_batch_tokens=100)
    long = finish(world, list(range(17)))
    other = world.add_prompt([0, 1, 2, 99, 99])
    assert world.step() == [(other, 0, 5)]
    assert other.num_cached == 0
    world.add_prompt([*long.token_ids[:-1], 5])
    assert world.step()[0][1:] == (17, 1)


def test_a_cancelled_sequence_leaves_what_is_computed():
    world = World()
    sequence = world.add(20)
    world.step()
    world.scheduler.remove(sequence)
    assert world.pool.num_free == 6
    again = world.add(20)
    assert world.step() == [(again, 6, 6)]


def test_pages_used_longest_ago_are_given_up_first():
    world = World(num_pages=6, max_batch_tokens=100)
    finish(world, [1] * 8)
    finish(world, [2] * 8)
    finish(world, [3] * 12)  # needs three pages, two are free: the first loses one, its last
    assert [idle.token_ids.tolist() for idle in world.scheduler.idle._sequences] == [[1] * 4, [2] * 8, [3] * 12]
    assert finish(world, [2] * 8 + [5]).num_cached == 8  # its third page: the first has nothing left
    assert finish(world, [1] * 6).num_cached == 0


def test_slots_of_idle_sequences_are_given_up():
    world = World(num_slots=2)
    for token in range(5):
        finish(world, [token] * 3)
    assert len(world.scheduler.idle) == 2
    for token in range(5, 7):
        world.add_prompt([token] * 3, num_new=3)
    assert len(world.step()) == 2  # both at once


def test_idle_sequences_neither_delay_nor_preempt():
    def steps(world: World) -> list[list[tuple[int, int, int]]]:
        for length, num_new in ((9, 4), (7, 6), (10, 3)):
            world.add(length, num_new, first_token=50 * length)
        log = []
        while spans := world.step():
            log.append([(sequence.token_ids[0], first, count) for sequence, first, count in spans])
        return log

    used = World(num_pages=8, num_slots=3)
    for token in range(10, 13):
        finish(used, [token] * 8)
    assert used.pool.num_free < 8
    assert steps(used) == steps(World(num_pages=8, num_slots=3))


def test_the_slot_used_longest_ago_is_given_up():
    world = World(num_slots=2)
    first, second = finish(world, [1] * 4), finish(world, [2] * 4)
    finish(world, [3] * 4)
    assert finish(world, [*second.token_ids, 5]).num_cached == 4
    assert finish(world, [*first.token_ids, 5]).num_cached == 0


def test_a_prompt_that_is_known_to_its_end_is_taken_from_the_longest_memory():
    world = World(max_batch_tokens=100)
    finish(world, [1, 2, *range(20, 38)])
    assert finish(world, [1, 2, 3]).num_cached == 2


def test_pages_behind_the_common_beginning_are_free_at_once():
    world = World(max_batch_tokens=100)
    finish(world, list(range(28)))
    world.add_prompt([*range(9), 99], num_new=2)
    world.step()
    assert world.pool.num_free == 5
