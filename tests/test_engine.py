"""The engine's promises to its callers, on random models of a few kilobytes."""

import subprocess
import sys

import numpy as np
import pytest
from engines import GREEDY, PROMPT, load_engine, run, tokens, write_models  # type: ignore[import-not-found]
from model_files import (  # type: ignore[import-not-found]
    write_tiny_tokenizer,
)
from reference import Reference  # type: ignore[import-not-found]

from dllama.engine import Engine, SamplingParams
from dllama.errors import ContextFull, UsageError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(files):
    with load_engine(files) as engine:
        yield engine


def greedy_by_logits(engine: Engine, prompt: list[int], count: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(int(np.argmax(engine.logits(token_ids)[-1])))
    return token_ids[len(prompt) :]


# --- computing


@pytest.mark.parametrize("name", ["model.m", "f16.m", "q40.m", "qwen3.m"])
def test_logits_are_those_of_the_reference(files, name):
    token_ids = np.random.default_rng(0).integers(0, 320, 100).tolist()
    with Engine.load(files / name) as engine:
        expected = Reference(files / name, kv_type=engine.kv_type).logits(token_ids)
        errors = engine.logits(token_ids) - expected
    if name == "model.m":
        assert np.abs(errors).max() < 1e-4
    # Elsewhere one activation on the edge between two steps of 1/127 may round either way: that is a hundredth or so.
    assert np.sqrt(np.mean(errors**2)) < 0.02


def test_scores_are_log_probabilities_of_the_logits(engine):
    token_ids = list(range(30, 90))
    logits = engine.logits(token_ids)[:-1].astype(np.float64)
    expected = logits[np.arange(59), token_ids[1:]] - np.logaddexp.reduce(logits, axis=1)
    np.testing.assert_allclose(engine.score(token_ids), expected, atol=1e-5)
    assert engine.score([3]).shape == (0,)


def test_greedy_generation_follows_the_logits(engine):
    outputs = list(engine.generate(PROMPT, GREEDY))
    assert tokens(outputs) == greedy_by_logits(engine, PROMPT, 8)
    assert [output.finish_reason for output in outputs] == [None] * 7 + ["length"]


def test_the_same_seed_gives_the_same_tokens(engine):
    seeded = SamplingParams(max_tokens=12, seed=11, temperature=1.5, top_p=1.0, ignore_eos=True)
    first = tokens(engine.generate(PROMPT, seeded))
    assert first == tokens(engine.generate(PROMPT, seeded))
    others = {tuple(tokens(engine.generate(PROMPT, SamplingParams(max_tokens=12)))) for _ in range(4)}
    assert len(others) > 1


def test_logprobs_are_the_models_own(engine):
    params = SamplingParams(max_tokens=1, temperature=0.5, logit_bias={9: 100.0}, logprobs=3)
    (output,) = engine.generate(PROMPT, params)
    logits = engine.logits(PROMPT)[-1]
    logprobs = logits - np.logaddexp.reduce(logits)
    assert output.token_id == 9
    assert output.logprob == pytest.approx(logprobs[9], abs=1e-5)
    assert [token for token, _ in output.top_logprobs] == np.argsort(-logits)[:3].tolist()
    assert next(engine.generate(PROMPT, GREEDY)).top_logprobs is None


# --- ending


def test_a_stop_token_ends_without_text(engine):
    first = tokens(engine.generate(PROMPT, GREEDY))
    params = SamplingParams(temperature=0.0, stop_token_ids=(first[2],))
    outputs = list(engine.generate(PROMPT, params))
    assert tokens(outputs) == first[: first.index(first[2]) + 1]
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].text == ""


def test_every_eos_token_ends_unless_ignored(engine):
    for eos in engine.tokenizer.eos_ids:
        bias = {eos: 1000.0}
        (output,) = engine.generate(PROMPT, SamplingParams(logit_bias=bias))
        assert (output.token_id, output.finish_reason, output.text) == (eos, "stop", "")
        ignoring = SamplingParams(logit_bias=bias, ignore_eos=True, max_tokens=3)
        assert tokens(engine.generate(PROMPT, ignoring)) == [eos] * 3


def test_the_end_of_the_context_ends(files):
    with Engine.load(files / "model.m", max_seq_len=10) as engine:
        outputs = list(engine.generate(PROMPT, SamplingParams(temperature=0.0)))
        assert len(outputs) == 6
        assert outputs[-1].finish_reason == "length"
        assert len(list(engine.generate([1] * 9, GREEDY))) == 1


def test_text_comes_in_whole_characters(engine, monkeypatch):
    euro = "€".encode()  # byte b is token b in this vocabulary
    for wanted, expected in ((euro, ["", "", "€"]), (euro[:2], ["", "\ufffd"]), (b"ab", ["a", "b"])):
        answer = iter(wanted)
        request_id = engine.add(PROMPT, SamplingParams(max_tokens=len(wanted), temperature=0.0))
        sampler = engine._requests[request_id]._sampler
        monkeypatch.setattr(sampler, "choose", lambda *_, answer=answer: next(answer))
        texts = [output.text for output in run(engine)[request_id]]
        assert texts == expected


def test_tokens_the_tokenizer_lacks_are_not_generated(files, tmp_path):
    write_tiny_tokenizer(tmp_path / "small.t", vocab_size=300)
    params = SamplingParams(max_tokens=4, temperature=0.0, logit_bias={310: 1000.0}, ignore_eos=True)
    with Engine.load(files / "model.m", tmp_path / "small.t") as engine:
        assert max(tokens(engine.generate(PROMPT, params))) < 300
    with Engine.load(files / "model.m") as engine:
        assert tokens(engine.generate(PROMPT, params)) == [310] * 4


def test_text_prompts_are_encoded(engine):
    token_ids = engine.tokenizer.encode("hello")
    assert tokens(engine.generate("hello", GREEDY)) == tokens(engine.generate(token_ids, GREEDY))


# --- requests side by side


def test_requests_share_steps(engine):
    alone = {seed: tokens(engine.generate([seed] * 5, SamplingParams(max_tokens=6, seed=seed))) for seed in (1, 2, 3)}
    steps = engine.counters()["steps"]
    ids = {engine.add([seed] * 5, SamplingParams(max_tokens=6, seed=seed)): seed for seed in (1, 2, 3)}
    outputs = run(engine)
    assert {ids[request_id]: tokens(part) for request_id, part in outputs.items()} == alone
    assert engine.counters()["steps"] - steps == 6


def test_step_with_nothing_to_do(engine):
    assert not engine.has_work
    assert engine.step() == []


def test_iterators_and_step_take_turns(engine):
    expected = tokens(engine.generate(PROMPT, GREEDY))
    first, second = engine.generate(PROMPT, GREEDY), engine.generate(PROMPT, GREEDY)
    added = engine.add(PROMPT, GREEDY)
    assert [next(first).token_id, next(second).token_id] == expected[:1] * 2
    engine.logits([1, 2, 3])
    assert [tokens(second), tokens(first)] == [expected[1:], expected[1:]]
    assert tokens(run(engine)[added]) == expected


def test_cancel_reports_once(engine):
    request_id = engine.add(PROMPT, GREEDY)
    engine.step()
    engine.cancel(request_id)
    (output,) = engine.step()
    assert (output.request_id, output.token_id, output.finish_reason) == (request_id, None, "cancelled")
    engine.cancel(request_id)
    engine.cancel(12345)
    assert not engine.has_work


def test_cancel_ends_an_iterator(engine):
    outputs = engine.generate(PROMPT, GREEDY)
    first = next(outputs)
    engine.cancel(first.request_id)
    assert [output.finish_reason for output in outputs] == ["cancelled"]


def test_closing_an_iterator_cancels(engine):
    outputs = engine.generate(PROMPT, GREEDY)
    next(outputs)
    assert engine.has_work
    outputs.close()
    assert not engine.has_work
    assert engine.step() == []


# --- refusing


def test_a_prompt_beyond_the_context_names_both_numbers(engine):
    with pytest.raises(ContextFull, match=r"128 tokens.* at most 127;.*--max-seq-len"):
        engine.add([1] * 128)
    with pytest.raises(ContextFull, match=r"129 tokens.* at most 128"):
        engine.score([1] * 129)
    assert len(engine.score([1] * 128)) == 127


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "at least one token"),
        ([1.5], "whole numbers, found"),
        (7, "whole numbers, found 7"),
        ([1, 320], "from 0 to 319, found 320"),
        ([-1], "found -1"),
    ],
)
def test_bad_prompts(engine, prompt, message):
    for function in (engine.add, engine.logits, engine.score):
        with pytest.raises(UsageError, match=message):
            function(prompt)


@pytest.mark.parametrize("params", [{"stop_token_ids": (320,)}, {"logit_bias": {320: 1.0}}])
def test_params_with_ids_outside_the_vocabulary(engine, params):
    with pytest.raises(UsageError, match="from 0 to 319, found 320"):
        engine.add(PROMPT, SamplingParams(**params))


def test_text_needs_a_tokenizer(files):
    with Engine.load(files / "model.m") as engine:
        with pytest.raises(UsageError, match="needs a tokenizer"):
            engine.add("hello")
        assert {output.text for output in engine.generate(PROMPT, GREEDY)} == {""}


def test_importing_the_engine_loads_no_tokenizer_library():
    code = "import sys, dllama.engine; print({'tiktoken', 'sentencepiece', 'dllama.text.tokenizer'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
