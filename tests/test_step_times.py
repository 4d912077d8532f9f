"""How much longer larger steps take: learnt from steps as they come, on machines whose speed changes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dllama.engine.step_times import StepTimes

TRUE_RATIOS = {1: 1.0, 2: 1.05, 4: 1.2, 8: 2.3}


def test_before_anything_is_known_larger_steps_are_not_worth_it() -> None:
    assert [StepTimes().of(count) for count in (1, 2, 5)] == [1, 2, 5]


def test_what_is_not_known_is_thought_cheap_at_first() -> None:
    times = StepTimes()
    times.note(1, 0.01)
    assert 1 < times.of(2) < 1.2
    assert times.of(16) == 8
    times.note(8, 0.025)
    assert times.of(1) < times.of(4) < 1.5
    assert times.of(9) < times.of(16)


def test_ratios_are_learnt_while_the_machine_changes_its_speed() -> None:
    times, chance = StepTimes(), random.Random(1)
    for step in range(400):
        count = chance.choice(list(TRUE_RATIOS))
        speed = 1.0 if step < 200 else 3.0  # another context, or another program on the machine
        times.note(count, 0.01 * speed * TRUE_RATIOS[count] * chance.uniform(0.97, 1.03))
    for count, ratio in TRUE_RATIOS.items():
        assert abs(times.of(count) / times.of(1) - ratio) < 0.15 * ratio


def test_one_long_step_spoils_nothing() -> None:
    times = StepTimes()
    for count in [1, 4] * 20:
        times.note(count, 0.01 * TRUE_RATIOS[count])
    times.note(4, 5.0)
    assert times.of(4) / times.of(1) < 1.35


def test_a_first_measurement_that_was_disturbed_is_forgotten_at_last() -> None:
    times = StepTimes()
    times.note(1, 0.01)
    times.note(4, 0.5)
    spoilt = times.of(4)
    for _ in range(300):
        times.note(1, 0.01)
    assert times.of(4) < spoilt
    assert times.of(2) < 1.2 * times.of(1)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(-1, 1e9)), max_size=300), st.integers(1, 64))
def test_times_are_numbers_above_zero(steps: list[tuple[int, float]], num_tokens: int) -> None:
    times = StepTimes()
    for count, seconds in steps:
        times.note(count, seconds)
    assert 0 < times.of(num_tokens) < float("inf")
