"""The scheduler and its pages: who runs when, and what each sequence gets."""

from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle  # type: ignore[import-not-found]
from scheduler_world import PAGE_SIZE, World  # type: ignore[import-not-found]

from dllama.engine.batch import want_rows
from dllama.engine.pages import PagePool
from dllama.engine.sequence import Sequence


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
    assert world.num_free == 8
    assert not world.scheduler.running
    assert not world.scheduler.waiting


@given(
    lengths=st.lists(st.tuples(st.integers(1, 10), st.integers(1, 24)), min_size=1, max_size=6),
    sizes=st.tuples(st.integers(11, 16), st.integers(1, 4), st.integers(4, 40), st.integers(1, 6)),
    max_draft=st.integers(1, 6),
    num_cancelled_after=st.integers(0, 30),
)
def test_drafts_change_no_token_and_lose_no_page(lengths, sizes, max_draft, num_cancelled_after):
    """The node checks what each result was made of; what one leaves is taken over by the next, which begins alike."""
    world, alone = World(*sizes, max_draft=max_draft, vocab_size=3), World(100, vocab_size=3)
    for num_prompt, num_new in lengths:
        world.add_prompt([1, 2] * num_prompt, num_new)
        alone.add_prompt([1, 2] * num_prompt, num_new)
    for _ in range(num_cancelled_after):
        world.step()
    if len(world.sequences[0].token_ids) < world.sequences[0].max_len:
        world.scheduler.remove(world.sequences[0])
    for each in (world, alone):
        each.run()
    for ours, expected in zip(world.sequences[1:], alone.sequences[1:], strict=True):
        assert ours.token_ids == expected.token_ids
    assert world.num_free == sizes[0]


def test_drafts_take_no_page_from_those_who_wait():
    for max_draft in (0, 6):
        world = World(num_pages=5, max_batch_tokens=40, max_draft=max_draft, vocab_size=1)
        talker = world.add_prompt([0] * 5, num_new=9)
        world.step()
        other = world.add_prompt([5] * 8)
        world.step()
        assert len(other.token_ids) == other.max_len
        world.run()
        assert talker.token_ids == [0] * 14
    assert world.scheduler.num_accepted > 0


def test_a_draft_that_was_wrong_gives_its_pages_back():
    world = World(max_batch_tokens=40)
    sequence = world.add(6, num_new=12)
    sequence.drafter = Oracle([0] * 30, share_right=0.0)
    for _ in range(5):
        world.step()
        assert len(world.scheduler.running[sequence].pages) == world.pool.num_pages_for(len(sequence.token_ids))
    assert world.scheduler.num_drafted > 4
    assert world.scheduler.num_accepted == 0


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
    assert world.num_free == 4


def test_pages_of_a_closed_table_are_no_news():
    pool = PagePool(num_pages=4, num_slots=1, page_size=PAGE_SIZE)
    table = pool.open()
    assert pool.grow(table, 9)
    assert len(pool.changes()) == 3
    assert not pool.has_free_slot
    assert not pool.grow(table, 17)
    assert len(table.pages) == 3
    pool.shrink(table, 4)
    assert len(pool.changes()) == len(table.pages) == 1
    pool.close(table)
    assert pool.changes().shape == (0, 3)
    assert pool.num_free == 4
