"""Steps that read prompts are cut so that they end in time, and their results stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import GREEDY, tokens  # type: ignore[import-not-found]
from hypothesis import given
from hypothesis import strategies as st
from model_files import write_tiny_model  # type: ignore[import-not-found]

from dllama.engine import Engine
from dllama.engine.pace import Pace
from dllama.errors import UsageError


def test_no_time_given_means_the_largest_steps() -> None:
    pace = Pace(512)
    pace.note(512, 100)
    assert pace.limit == 512


def test_steps_grow_to_what_fits_and_no_further() -> None:
    pace, limits = Pace(512, 0.5), []
    for _ in range(8):
        limits.append(pace.limit)
        pace.note(pace.limit, pace.limit / 300)  # 300 tokens per second
    assert limits[:4] == [32, 64, 128, 150]
    assert limits[-1] == 150


def test_slow_machine_gets_small_steps() -> None:
    pace = Pace(512, 0.5)
    pace.note(32, 16.0)
    assert pace.limit == 16


def test_short_prompts_say_nothing_of_long_ones() -> None:
    pace = Pace(512, 0.5)
    for _ in range(6):
        pace.note(pace.limit, 0.01)
    assert pace.limit == 512
    pace.note(1, 0.02)
    pace.note(100, 0.4)
    assert pace.limit == 512


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(0, 1e6))), st.integers(1, 4096), st.floats(1e-6, 3600))
def test_limits_stay_in_range(steps: list[tuple[int, float]], most: int, seconds: float) -> None:
    pace = Pace(most, seconds)
    for num_tokens, took in steps:
        pace.note(num_tokens, took)
        assert 1 <= pace.limit <= most


def test_engine_in_a_hurry_gives_the_same_tokens_in_more_steps(tmp_path: Path) -> None:
    model, prompt = tmp_path / "tiny.m", list(range(100))
    write_tiny_model(model)
    results, num_steps = [], []
    for seconds in (None, 1e-6):
        with Engine.load(model, num_threads=1, step_seconds=seconds) as engine:
            results.append(tokens(engine.generate(prompt, GREEDY)))
            num_steps.append(engine.counters()["steps"])
    assert results[0] == results[1]
    assert num_steps[0] == GREEDY.max_tokens
    assert num_steps[1] >= num_steps[0] + (100 - 32) // 16


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1"])
def test_time_that_is_none(tmp_path: Path, seconds: float) -> None:
    write_tiny_model(tmp_path / "tiny.m")
    with pytest.raises(UsageError, match="step_seconds"):
        Engine.load(tmp_path / "tiny.m", step_seconds=seconds)
