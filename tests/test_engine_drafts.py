"""What an engine says is the same with drafts and without: tokens, text, log-probabilities, ends, what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import PROMPT, SAMPLINGS, run, tokens  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]
from oracle import Oracle  # type: ignore[import-not-found]
from ranks import ranks  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine import Engine, Output, SamplingParams, scheduler, sizing
from dllama.engine.step_times import StepTimes
from dllama.errors import UsageError

DEMO = Path(__file__).parent.parent / "dllama" / "demo"
# A model that likes to say again what it said, so that there is something to find.
REPEATING: dict[str, Any] = {"temperature": 0.5, "seed": 3, "presence_penalty": -2.0, "frequency_penalty": -0.6}


@pytest.fixture(autouse=True)
def free_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let larger steps take no longer, so that every guess is tried, on any machine."""
    monkeypatch.setattr(StepTimes, "of", lambda _times, count: 1.0 + count / 1000)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafts")
    sizes = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 160, "max_seq_len": 256}
    write_tiny_model(folder / "model.m", tiny_config(weight_type=DType.Q40, **sizes))
    write_tiny_tokenizer(folder / "tokenizer.t")
    return folder


def load(files: Path, **options: Any) -> Engine:
    return Engine.load(files / "model.m", files / "tokenizer.t", num_threads=1, **options)


@pytest.fixture
def plain(files: Path) -> Iterator[Engine]:
    with load(files, max_draft=0) as engine:
        yield engine


@pytest.fixture
def drafting(files: Path) -> Iterator[Engine]:
    with load(files) as engine:
        yield engine


def add_guided(engine: Engine, prompt: list[int], sampling: SamplingParams, said: list[int], **oracle: Any) -> int:
    """Add a request whose guesses come from what is known to be said."""
    request_id = engine.add(prompt, sampling)
    engine._requests[request_id].sequence.drafter = Oracle(prompt + said, **oracle)
    return request_id


def guided(engine: Engine, prompt: list[int], sampling: SamplingParams, said: list[int], **oracle: Any) -> list[Output]:
    request_id = add_guided(engine, prompt, sampling, said, **oracle)
    return without_ids(run(engine)[request_id])


def without_ids(outputs: list[Output]) -> list[Output]:
    for output in outputs:
        output.request_id = 0
    return outputs


def said_by(engine: Engine, prompt: list[int], sampling: SamplingParams) -> list[Output]:
    return without_ids(list(engine.generate(prompt, sampling)))


# --- one request


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_sampling(plain: Engine, drafting: Engine, name: str) -> None:
    for seed in (1, 2):
        sampling = SamplingParams(max_tokens=40, seed=seed, logprobs=3, ignore_eos=True, **SAMPLINGS[name])
        expected = said_by(plain, PROMPT, sampling)
        assert guided(drafting, PROMPT, sampling, tokens(expected)) == expected
    assert drafting.drafts()["accepted"] > 20
    assert drafting.drafts()["drafted"] > drafting.drafts()["accepted"] + 10


@pytest.mark.parametrize("share_right", [0.0, 1.0])
def test_guesses_that_are_all_wrong_or_all_right(plain: Engine, drafting: Engine, share_right: float) -> None:
    sampling = SamplingParams(max_tokens=60, seed=4, ignore_eos=True)
    expected, steps = said_by(plain, PROMPT, sampling), drafting.counters()["steps"]
    assert guided(drafting, PROMPT, sampling, tokens(expected), share_right=share_right) == expected
    assert drafting.counters()["steps"] - steps == (60 if share_right == 0 else 11)  # one token, then six in each
    assert (drafting.drafts()["accepted"] == 0) == (share_right == 0)


def test_models_that_repeat_themselves(plain: Engine, drafting: Engine) -> None:
    sampling = SamplingParams(max_tokens=80, ignore_eos=True, **REPEATING)
    assert said_by(drafting, PROMPT * 3, sampling) == said_by(plain, PROMPT * 3, sampling)
    assert drafting.drafts()["accepted"] > 20


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"seed": 5, "temperature": 0.7}])
def test_the_bundled_model(fields: dict[str, Any]) -> None:
    prompt = "Once upon a time, there was a shy badger called Rowan. He lived in a village near the sea. "
    sampling = SamplingParams(max_tokens=60, logprobs=2, repeat_penalty=0.5, repeat_last_n=-1, **fields)
    outputs, drafts = [], {}
    for max_draft in (0, 16):
        with Engine.load(DEMO / "model.m", DEMO / "tokenizer.t", num_threads=1, max_draft=max_draft) as engine:
            outputs.append(list(engine.generate(prompt * 3 + "Once upon a", sampling)))
            drafts = engine.drafts()
    assert outputs[0] == outputs[1]
    assert drafts["accepted"] > 5


# --- ends


@pytest.mark.parametrize("max_tokens", range(1, 14))
def test_the_last_token_allowed(plain: Engine, drafting: Engine, max_tokens: int) -> None:
    sampling = SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True)
    expected = said_by(plain, PROMPT, sampling)
    assert guided(drafting, PROMPT, sampling, tokens(expected), share_right=1.0) == expected


def test_the_end_of_the_context(files: Path) -> None:
    sampling = SamplingParams(seed=1, ignore_eos=True)
    with load(files, max_draft=0, max_seq_len=70) as plain, load(files, max_seq_len=70) as drafting:
        expected = said_by(plain, PROMPT, sampling)
        assert len(expected) == 66
        assert guided(drafting, PROMPT, sampling, tokens(expected), share_right=1.0) == expected


@pytest.mark.parametrize("at", range(3, 20))
def test_a_stop_inside_a_draft_and_what_goes_on_behind_it(plain: Engine, drafting: Engine, at: int) -> None:
    """The conversation goes on from what was kept, of which nothing may come from behind the stop."""
    free = SamplingParams(max_tokens=30, seed=1, ignore_eos=True)
    said, also_said = (tokens(said_by(engine, PROMPT, free)) for engine in (plain, drafting))
    assert said == also_said
    sampling = SamplingParams(max_tokens=30, seed=1, ignore_eos=True, stop_sequences=[said[at - 1 : at + 1]])
    expected = said_by(plain, PROMPT, sampling)
    assert expected[-1].finish_reason == "stop"
    assert guided(drafting, PROMPT, sampling, said, share_right=1.0) == expected
    turn = [*PROMPT, *tokens(expected), 50, 51]
    expected = said_by(plain, turn, free)
    assert expected[0].num_cached == len(turn) - 3
    assert guided(drafting, turn, free, tokens(expected)) == expected


def test_texts_and_tokens_that_stop(plain: Engine, drafting: Engine) -> None:
    bias = {ord(letter): 12.0 for letter in "abc"}
    free = SamplingParams(max_tokens=40, seed=1, ignore_eos=True, logit_bias=bias)
    outputs = said_by(plain, PROMPT, free)
    assert said_by(drafting, PROMPT, free) == outputs
    text = "".join(output.text for output in outputs)
    for fields in ({"stop": [text[9:12]]}, {"stop": [text[4:20], "zz"]}, {"stop_token_ids": [tokens(outputs)[5]]}):
        sampling = SamplingParams(max_tokens=40, seed=1, ignore_eos=True, logit_bias=bias, **fields)
        expected = said_by(plain, PROMPT, sampling)
        assert expected[-1].finish_reason == "stop"
        assert guided(drafting, PROMPT, sampling, tokens(outputs), share_right=1.0) == expected


def test_a_cancel_leaves_what_is_true(plain: Engine, drafting: Engine) -> None:
    sampling = SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
    said = tokens(said_by(plain, PROMPT, sampling))
    request_id = add_guided(drafting, PROMPT, sampling, said)
    seen: list[Output] = []
    while len(seen) < 20:
        seen += drafting.step()
    drafting.cancel(request_id)
    (last,) = drafting.step()
    assert (last.token_id, last.finish_reason) == (None, "cancelled")
    assert tokens(seen) == said[: len(seen)]
    turn = [*PROMPT, *said[: len(seen)], 60]
    expected = said_by(plain, turn, sampling)
    assert tokens(guided(drafting, turn, sampling, tokens(expected))) == tokens(expected)


def test_an_interrupted_step_is_run_again(plain: Engine, drafting: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingParams(max_tokens=40, ignore_eos=True, **REPEATING)
    expected = tokens(said_by(plain, PROMPT * 3, sampling))
    embed, calls = drafting._executor._embed, iter(range(1000))

    def interrupted(token_ids: Any) -> Any:
        if next(calls) % 3 == 1:
            raise KeyboardInterrupt
        return embed(token_ids)

    monkeypatch.setattr(drafting._executor, "_embed", interrupted)
    drafting.add(PROMPT * 3, sampling)
    said: list[int] = []
    while drafting.has_work:
        try:
            said += tokens(drafting.step())
        except KeyboardInterrupt:
            continue
    assert said == expected
    assert drafting.drafts()["accepted"] > 0


# --- several requests


def said_together(engine: Engine, known: dict[int, list[int]] | None = None) -> dict[int, list[Output]]:
    """Outputs of four requests by seed; ``known``: what each says, for its guesses."""
    seeds = {}
    for seed, length in ((1, 100), (2, 60), (3, 130), (4, 5)):
        prompt = np.random.default_rng(seed).integers(0, 320, length).tolist()
        sampling = SamplingParams(seed=seed, max_tokens=90, ignore_eos=True, logprobs=1)
        request_id = engine.add(prompt, sampling)
        seeds[request_id] = seed
        if known:
            oracle = Oracle(prompt + known[seed], share_right=0.5 + seed / 10)
            engine._requests[request_id].sequence.drafter = oracle
    outputs = {seeds[request_id]: without_ids(said) for request_id, said in run(engine).items()}
    for said in outputs.values():
        for output in said:
            output.num_cached = 0  # who comes second finds what the first one left, or not
    return outputs


@pytest.mark.parametrize(
    "options",
    [{"kv_tokens": 2048}, {"kv_tokens": 320}, {"kv_tokens": 256, "max_batch_tokens": 64}, {"max_batch_tokens": 8}],
)
def test_requests_side_by_side_and_preempted(files: Path, options: dict[str, Any]) -> None:
    with load(files, max_draft=0, **options) as engine:
        expected = said_together(engine)
    with load(files, **options) as engine:
        assert said_together(engine, {seed: tokens(said) for seed, said in expected.items()}) == expected
        assert engine.drafts()["accepted"] > 50


def test_logits_for_others_while_drafts_run(files: Path, plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "LOGITS_BYTES", 5 * 4 * 320)  # five rows in a step beside one of each sequence
    sampling = SamplingParams(max_tokens=60, seed=1, ignore_eos=True)
    text = list(range(100))
    expected, logits = tokens(said_by(plain, PROMPT, sampling)), plain.logits(text)
    with load(files, kv_tokens=1024) as engine:
        request_id = add_guided(engine, PROMPT, sampling, expected)
        outputs = engine.step()
        np.testing.assert_array_equal(engine.logits(text), logits)
        outputs += run(engine)[request_id]
        assert tokens(outputs) == expected
        assert engine.drafts()["accepted"] > 0


def test_drafts_leave_room_for_prompts(files: Path) -> None:
    sampling = SamplingParams(max_tokens=100, ignore_eos=True, **REPEATING)
    with load(files, max_batch_tokens=8, kv_tokens=1024) as engine:
        talker = engine.add(PROMPT * 3, sampling)
        while len(engine._requests[talker].sequence.token_ids) < 40:
            engine.step()
        engine.add(list(range(60)), SamplingParams(max_tokens=1))
        steps = 0
        while len(engine._requests) == 2:
            engine.step()
            steps += 1
        assert steps <= 60 // 4 + 2
        assert engine.drafts()["accepted"] > 0


# --- several ranks


@pytest.mark.parametrize("name", SAMPLINGS)
def test_three_ranks(files: Path, name: str) -> None:
    sampling = SamplingParams(max_tokens=40, seed=11, logprobs=2, **SAMPLINGS[name])
    with ranks(files / "model.m", 3, max_draft=0) as engine:
        expected = said_by(engine, PROMPT, sampling)
    with ranks(files / "model.m", 3) as engine:
        assert guided(engine, PROMPT, sampling, tokens(expected)) == expected
        assert engine.drafts()["accepted"] > 10


def test_nodes_have_room_for_what_drafts_ask() -> None:
    assert scheduler._MAX_RESULTS <= sizing._MAX_SLOTS  # what nodes have room for, see test_engine_ranks


# --- the option


def test_no_drafts(plain: Engine) -> None:
    list(plain.generate(PROMPT * 3, SamplingParams(max_tokens=40, ignore_eos=True, **REPEATING)))
    assert plain.drafts() == {"drafted": 0, "accepted": 0}


@pytest.mark.parametrize("max_draft", [-1, 32, 1.5, True, None])
def test_numbers_of_drafts_that_cannot_be(files: Path, max_draft: Any) -> None:
    with pytest.raises(UsageError, match="max_draft: expected a whole number from 0 to 31"):
        load(files, max_draft=max_draft)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), max_draft=st.integers(1, 31), temperature=st.floats(0, 1))
def test_any_model_said_again(files: Path, seed: int, max_draft: int, temperature: float) -> None:
    sampling = SamplingParams(max_tokens=50, **{**REPEATING, "seed": seed, "temperature": temperature})
    prompt = np.random.default_rng(seed).integers(0, 4, 30).tolist()
    with load(files, max_draft=0) as plain, load(files, max_draft=max_draft) as drafting:
        assert said_by(drafting, prompt, sampling) == said_by(plain, prompt, sampling)
