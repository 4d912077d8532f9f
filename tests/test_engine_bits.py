"""The same sequence gives the same bits, whatever else the engine is asked to do meanwhile and in whichever pieces."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.config import DType, LayerSpec
from dllama.engine import Engine, SamplingParams
from dllama.engine.scheduler import Scheduler

LENGTH = 200  # more than three KV pages
CHUNKS = [1, 7, 32, 512]
KINDS = {
    "llama-q40": ("llama", DType.Q40, DType.F16),
    "llama-f32": ("llama", DType.F32, DType.F32),
    "qwen3-q40": ("qwen3", DType.Q40, DType.F16),
    "llama-q40-kv-q80": ("llama", DType.Q40, DType.Q80),
    "experts-q40": ("qwen3_moe", DType.Q40, DType.F16),
    "experts-f32": ("qwen3_moe", DType.F32, DType.F32),
}


class Model(NamedTuple):
    path: Path
    kv_type: DType


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    model_type, weight_type, kv_type = KINDS[request.param]
    path = tmp_path_factory.mktemp("bits") / "model.m"
    write_tiny_model(path, tiny_config(model_type, weight_type, max_seq_len=256))
    return Model(path, kv_type)


def load(model, **options) -> Engine:
    return Engine.load(model.path, kv_type=model.kv_type, **({"num_threads": 1, "kv_tokens": 2048} | options))


def token_ids(seed: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, length).tolist()


@pytest.fixture(scope="module")
def logits(model):
    with load(model) as engine:
        return engine.logits(token_ids(0))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("max_batch_tokens", CHUNKS)
def test_logits_in_chunks_of_any_size_with_any_threads(model, logits, max_batch_tokens, num_threads):
    with load(model, max_batch_tokens=max_batch_tokens, num_threads=num_threads) as engine:
        np.testing.assert_array_equal(engine.logits(token_ids(0)), logits)


@pytest.mark.parametrize("max_batch_tokens", CHUNKS)
def test_scores_in_chunks_of_any_size(model, max_batch_tokens):
    with load(model) as engine:
        expected = engine.score(token_ids(0))
    with load(model, max_batch_tokens=max_batch_tokens) as engine:
        np.testing.assert_array_equal(engine.score(token_ids(0)), expected)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("max_batch_tokens", CHUNKS)
def test_logits_beside_other_sequences(model, logits, max_batch_tokens, num_threads):
    with load(model, max_batch_tokens=max_batch_tokens, num_threads=num_threads) as engine:
        for seed in range(1, 4):
            engine.add(token_ids(seed, 40 * seed), SamplingParams(max_tokens=100, seed=seed))
        for _ in range(3):
            engine.step()
        np.testing.assert_array_equal(engine.logits(token_ids(0)), logits)


def generated(engine: Engine, prompts: dict[int, int]) -> list[list[int]]:
    """Tokens of requests that run together; ``prompts``: length by seed."""
    params = {seed: SamplingParams(seed=seed, max_tokens=120) for seed in prompts}
    ids = [engine.add(token_ids(seed, length), params[seed]) for seed, length in prompts.items()]
    tokens: dict[int, list[int]] = {request_id: [] for request_id in ids}
    while engine.has_work:
        for output in engine.step():
            assert output.token_id is not None
            tokens[output.request_id].append(output.token_id)
    return list(tokens.values())


def test_decoding_gives_the_logits_of_prefill(model):
    with load(model) as engine:
        prompt, params = token_ids(0, 100), SamplingParams(temperature=0.0, max_tokens=80)
        tokens = [output.token_id for output in engine.generate(prompt, params) if output.token_id is not None]
        rows = engine.logits(prompt + tokens)[99:-1]
        assert tokens == rows.argmax(axis=1).tolist()


@pytest.mark.parametrize("kv_tokens", [256, 320])
def test_preempted_sequences_continue_as_if_nothing_had_been(model, kv_tokens):
    prompts = {1: 100, 2: 60, 3: 130, 4: 5}
    with load(model) as engine:
        expected = generated(engine, prompts)
        roomy = engine.counters()["tokens"]
    with load(model, kv_tokens=kv_tokens, max_batch_tokens=64) as engine:
        assert generated(engine, prompts) == expected
        assert engine.counters()["tokens"] > roomy  # something was computed twice


def test_preempted_scores(model, monkeypatch):
    preempt, preempted = Scheduler._preempt, []

    def recording_preempt(scheduler, sequence):
        preempted.append(sequence)
        preempt(scheduler, sequence)

    with load(model) as engine:
        expected = engine.score(token_ids(0))
    with load(model, kv_tokens=384, max_batch_tokens=2) as engine:
        engine.add(token_ids(1, 60), SamplingParams(temperature=0.0, max_tokens=180))
        engine.step()
        monkeypatch.setattr(Scheduler, "_preempt", recording_preempt)
        np.testing.assert_array_equal(engine.score(token_ids(0)), expected)
        assert preempted


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("kv_type", [DType.F16, DType.Q80])
def test_long_contexts_on_any_number_of_threads(tmp_path, num_kv_heads, kv_type):
    """With fewer heads than threads, segments of 1024 positions are shared out, and put together in order."""
    config = tiny_config(num_kv_heads=num_kv_heads, max_seq_len=4096, num_layers=1, layers=(LayerSpec(),))
    write_tiny_model(tmp_path / "model.m", config)
    long, found = Model(tmp_path / "model.m", kv_type), []
    for num_threads, max_batch_tokens in ((1, 512), (2, 512), (5, 2)):
        with load(long, num_threads=num_threads, kv_tokens=4096, max_batch_tokens=max_batch_tokens) as engine:
            params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=5, ignore_eos=True)
            outputs = list(engine.generate(token_ids(3, 2100), params))
            found.append([(output.token_id, output.logprob, output.top_logprobs) for output in outputs])
    assert found[0] == found[1] == found[2]


def test_long_contexts_beside_others(tmp_path):
    """Sequences of one, two and three segments in one step, on more threads than they have heads, as each alone."""
    config = tiny_config(num_kv_heads=1, max_seq_len=4096, num_layers=1, layers=(LayerSpec(),))
    write_tiny_model(tmp_path / "model.m", config)
    model, params = Model(tmp_path / "model.m", DType.F16), SamplingParams(temperature=0.0, max_tokens=4, logprobs=5)
    prompts = [token_ids(seed, length) for seed, length in ((1, 300), (2, 1100), (3, 2100))]
    with load(model, num_threads=5, kv_tokens=8192) as engine:
        alone = [[output.top_logprobs for output in engine.generate(prompt, params)] for prompt in prompts]
    with load(model, num_threads=5, kv_tokens=8192) as engine:
        together: dict[int, list[object]] = {engine.add(prompt, params): [] for prompt in prompts}
        while engine.has_work:
            for output in engine.step():
                together[output.request_id].append(output.top_logprobs)
    assert list(together.values()) == alone
