"""Keys and values of earlier requests are used again, and nothing but the time tells."""

from __future__ import annotations

import numpy as np
import pytest
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]
from test_engine_ranks import ranks  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine import Engine, Output, SamplingParams

PAGE = 64


@pytest.fixture(scope="module", params=[DType.Q40, DType.F32])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reuse")
    write_tiny_model(folder / "model.m", tiny_config(weight_type=request.param, max_seq_len=512, num_heads=8))
    write_tiny_tokenizer(folder / "tokenizer.t")
    return folder / "model.m"


def load(model, **options) -> Engine:
    return Engine.load(model, model.with_name("tokenizer.t"), **({"num_threads": 1, "kv_tokens": 2048} | options))


def words(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, length).tolist()


def params(seed: int = 1, max_tokens: int = 20) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=max_tokens, ignore_eos=True, logprobs=2)


def facts(outputs: list[Output]) -> list[tuple[object, ...]]:
    return [(output.token_id, output.text, output.logprob, output.top_logprobs) for output in outputs]


def answer(engine: Engine, prompt: list[int], sampling: SamplingParams) -> list[Output]:
    return list(engine.generate(prompt, sampling))


def tokens(outputs: list[Output]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def fresh(model, prompt: list[int], sampling: SamplingParams) -> list[tuple[object, ...]]:
    """What an engine that has seen nothing gives."""
    with load(model) as engine:
        outputs = answer(engine, prompt, sampling)
        assert {output.num_cached for output in outputs} == {0}
        return facts(outputs)


@pytest.mark.parametrize("max_batch_tokens", [1, 7, 512])
def test_turns_of_a_conversation(model, max_batch_tokens):
    with load(model, max_batch_tokens=max_batch_tokens) as engine:
        history: list[int] = []
        for turn in range(4):
            prompt = history + words(turn, 30)
            outputs = answer(engine, prompt, params(turn))
            assert outputs[0].num_cached == max(0, len(history) - 1)  # the last token given has no KV yet
            assert facts(outputs) == fresh(model, prompt, params(turn))
            history = prompt + tokens(outputs)


def test_only_what_is_new_is_computed(model):
    with load(model) as engine:
        prompt = words(0, 100)
        history = prompt + tokens(answer(engine, prompt, params()))
        before = engine.counters()["tokens"]
        answer(engine, [*history, 5, 6], params(max_tokens=1))
        assert engine.counters()["tokens"] - before == 3
        before = engine.counters()["tokens"]
        again = answer(engine, [*history, 5, 6], params(max_tokens=1))
        assert engine.counters()["tokens"] - before == 1
        assert again[0].num_cached == len(history) + 1


@pytest.mark.parametrize("common", [PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 30])
def test_conversations_that_part_anywhere(model, common):
    with load(model) as engine:
        first = words(0, 3 * PAGE)
        answer(engine, first, params())
        prompt = first[:common] + words(1, 50)
        outputs = answer(engine, prompt, params())
        assert outputs[0].num_cached == common
        assert facts(outputs) == fresh(model, prompt, params())


@pytest.mark.parametrize("kv_tokens", [512, 2048])
def test_conversations_in_turn(model, kv_tokens):
    """With room for all of them, and for little more than one."""
    with load(model, kv_tokens=kv_tokens, max_batch_tokens=64) as engine:
        histories = {talk: words(talk, 90) for talk in range(3)}
        cached = []
        for turn in range(3):
            for talk, history in histories.items():
                outputs = answer(engine, history, params(turn))
                assert facts(outputs) == fresh(model, history, params(turn))
                cached.append(outputs[0].num_cached)
                histories[talk] = history + tokens(outputs) + words(turn, 9)
        assert cached[:3] == [0] * 3
        assert all(cached[3:]) or kv_tokens == 512


def test_an_answer_cancelled_in_the_middle_goes_on(model):
    with load(model) as engine:
        prompt, whole = words(0, 70), fresh(model, words(0, 70), SamplingParams(temperature=0.0, max_tokens=30))
        stream = engine.generate(prompt, SamplingParams(temperature=0.0, max_tokens=30))
        begun = [next(stream) for _ in range(11)]
        stream.close()
        rest = answer(engine, prompt + tokens(begun), SamplingParams(temperature=0.0, max_tokens=19))
        assert rest[0].num_cached == 80
        assert [token for token, *_ in whole] == tokens(begun) + tokens(rest)


def test_a_prompt_cancelled_in_the_middle_goes_on(model):
    with load(model, max_batch_tokens=48) as engine:
        prompt = words(0, 200)
        request_id = engine.add(prompt, params())
        engine.step()
        engine.step()
        engine.cancel(request_id)
        (output,) = engine.step()
        assert output.num_cached == 0
        outputs = answer(engine, prompt, params())
        assert outputs[0].num_cached == 96
        assert facts(outputs) == fresh(model, prompt, params())


def test_preempted_requests_over_idle_ones(model):
    prompts = [words(seed, 100 + 10 * seed) for seed in range(4)]
    expected = [fresh(model, prompt, params(max_tokens=150)) for prompt in prompts]
    with load(model, kv_tokens=576, max_batch_tokens=100) as engine:
        for prompt in prompts:
            answer(engine, prompt, params(max_tokens=2))
        ids = {engine.add(prompt, params(max_tokens=150)): number for number, prompt in enumerate(prompts)}
        outputs: dict[int, list[Output]] = {number: [] for number in ids.values()}
        while engine.has_work:
            for output in engine.step():
                outputs[ids[output.request_id]].append(output)
        assert [facts(outputs[number]) for number in range(4)] == expected
        for part in outputs.values():
            assert len({output.num_cached for output in part}) == 1  # whatever was computed again


def test_logits_and_scores_of_what_is_known(model):
    text = words(0, 200)
    with load(model) as engine:
        expected, scores = engine.logits(text), engine.score(text)
    with load(model) as engine:
        answer(engine, text, params())
        np.testing.assert_array_equal(engine.logits(text), expected)
        np.testing.assert_array_equal(engine.score(text), scores)
        outputs = answer(engine, text[:150], params())
        assert outputs[0].num_cached == 149
        assert facts(outputs) == fresh(model, text[:150], params())


def test_one_memory_for_one_request(model):
    prompt = words(0, 100)
    with load(model) as engine:
        answer(engine, prompt, params())
        for _ in range(2):
            engine.add(prompt, params())
        outputs: dict[int, list[Output]] = {}
        while engine.has_work:
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
        assert [part[0].num_cached for part in outputs.values()] == [99, 0]
        assert {str(facts(part)) for part in outputs.values()} == {str(fresh(model, prompt, params()))}


def test_a_pool_full_of_memories_takes_the_longest_prompt(model):
    with load(model, kv_tokens=512) as engine:
        for seed in range(4):
            answer(engine, words(seed, 100), params())
        prompt = words(9, 500)
        assert facts(answer(engine, prompt, params(max_tokens=12))) == fresh(model, prompt, params(max_tokens=12))


def test_on_two_ranks(model):
    sampling = SamplingParams(temperature=0.0, max_tokens=20)
    first, more = words(0, 100), words(1, 20)
    with ranks(model, 2) as engine:
        history = first[:90] + more
        expected = tokens(answer(engine, history, sampling))
    with ranks(model, 2) as engine:
        answer(engine, first, sampling)
        outputs = answer(engine, history, sampling)
        assert outputs[0].num_cached == 90
        assert tokens(outputs) == expected
