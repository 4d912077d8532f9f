"""The engine's promises to its callers, on random models of a few kilobytes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable

import numpy as np
import pytest
from model_files import (  # type: ignore[import-not-found]
    byte_tokenizer_data,
    tiny_config,
    write_tiny_model,
    write_tiny_tokenizer,
)
from reference import Reference  # type: ignore[import-not-found]

from dllama import _native, machine
from dllama.config import DType
from dllama.engine import Engine, EngineStopped, Output, SamplingParams, sizing
from dllama.errors import BadFile, ContextFull, NotEnoughMemory, UnsupportedIsa, UsageError
from dllama.formats.checked_file import CheckedFile
from dllama.formats.m_file import open_m_file
from dllama.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder / "model.m", tiny_config(weight_type=DType.F32))
    write_tiny_model(folder / "q40.m", tiny_config())
    write_tiny_model(folder / "f16.m", tiny_config(weight_type=DType.F16))
    write_tiny_model(folder / "qwen3.m", tiny_config("qwen3", DType.Q80))
    write_tiny_tokenizer(folder / "tokenizer.t")
    return folder


@pytest.fixture
def engine(files):
    with Engine.load(files / "model.m", files / "tokenizer.t", num_threads=1, kv_tokens=1024) as engine:
        yield engine


def tokens(outputs: Iterable[Output]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def run(engine: Engine) -> dict[int, list[Output]]:
    """Step until there is nothing left; outputs by request."""
    outputs: dict[int, list[Output]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


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


def test_a_tokenizer_larger_than_the_model(files):
    tokenizer = Tokenizer.from_data(byte_tokenizer_data(352))
    with pytest.raises(UsageError, match=r"at most the model's 320 tokens, found 352"):
        Engine.load(files / "model.m", tokenizer)


@pytest.mark.parametrize(
    "option",
    [{"num_threads": 0}, {"max_seq_len": 0}, {"max_batch_tokens": 0}, {"kv_tokens": -1}, {"kv_type": DType.Q80}],
)
def test_options_out_of_range(files, option):
    with pytest.raises(UsageError, match=f"{next(iter(option))}: expected"):
        Engine.load(files / "model.m", **option)


def test_files_that_are_not_there_or_not_models(files):
    with pytest.raises(UsageError, match="no such model file"):
        Engine.load(files / "none.m")
    with pytest.raises(BadFile):
        Engine.load(files / "tokenizer.t")
    with pytest.raises(BadFile):
        Engine.load(files / "model.m", files / "model.m")


def test_a_level_the_cpu_lacks(files, monkeypatch):
    def isa():
        raise _native.UnsupportedIsaError("DLLAMA_ISA=abacus: no such level")

    monkeypatch.setattr(_native, "isa", isa)
    with pytest.raises(UnsupportedIsa, match="abacus"):
        Engine.load(files / "model.m")


# --- sizes


def test_defaults(files):
    with Engine.load(files / "q40.m") as engine:
        assert engine.num_threads == machine.physical_cores()
        assert engine.max_seq_len == engine.config.max_seq_len == 128
        assert engine.kv_type is DType.F16
    with Engine.load(files / "model.m") as engine:
        assert engine.kv_type is DType.F32
        assert engine.memory.kv == 2 * 128 * 2 * 32 * 4  # layers, positions, K and V, kv_size, bytes


def test_max_seq_len_is_cut_to_the_models_and_to_the_pool(files):
    with Engine.load(files / "model.m", max_seq_len=100000) as engine:
        assert engine.max_seq_len == 128
    with Engine.load(files / "model.m", kv_tokens=50) as engine:
        assert engine.max_seq_len == 50


@pytest.fixture(scope="module")
def long_context(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.m"
    write_tiny_model(path, tiny_config(max_seq_len=100000))
    return path


def test_the_default_context_is_what_memory_allows(long_context, monkeypatch):
    with Engine.load(long_context, num_threads=1) as engine:
        assert engine.max_seq_len == 8192
        memory = engine.memory
    for missing, expected in ((memory.kv // 2, 4096), (0, 8192), (memory.kv * 3 // 4, 2048)):
        monkeypatch.setattr(machine, "available_memory", lambda free=memory.total - missing: free)
        with Engine.load(long_context, num_threads=1) as engine:
            assert expected <= engine.max_seq_len <= min(8192, expected * 1.2)
            assert engine.memory.total <= memory.total - missing


def test_too_little_memory_says_need_have_and_what_to_do(long_context, monkeypatch):
    with Engine.load(long_context, num_threads=1, max_seq_len=100000) as engine:
        memory = engine.memory
    monkeypatch.setattr(machine, "available_memory", lambda: memory.total - memory.kv // 2)
    expected = r"needs \d+ MiB .* \d+ MiB are free; it fits with a context of \d+ tokens \(max_seq_len\)$"
    with pytest.raises(NotEnoughMemory, match=expected):
        Engine.load(long_context, num_threads=1, max_seq_len=100000)
    with pytest.raises(NotEnoughMemory, match=r"it fits with room for \d+ tokens$"):
        Engine.load(long_context, num_threads=1, kv_tokens=100000)
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    with pytest.raises(NotEnoughMemory, match=r"1 MiB are free; free some, or use a smaller model$"):
        Engine.load(long_context)


def test_the_plan_has_room_for_the_logits_of_the_largest_step(files, monkeypatch):
    row = 4 * 384  # 320 values and more than one of padding, by 64

    def load(max_logits):
        monkeypatch.setattr(sizing, "LOGITS_BYTES", max_logits * 4 * 320)
        return Engine.load(files / "model.m", num_threads=1, kv_tokens=1024, max_batch_tokens=64)

    with load(1) as least, load(50) as most:
        assert most.memory.buffers - least.memory.buffers == (64 - 16) * row  # all tokens, one for each of 16 slots
    with load(10) as engine:
        logits_rows = record_logits_rows(engine)
        for _ in range(15):
            engine.add(PROMPT, SamplingParams(max_tokens=20, ignore_eos=True))
        engine.step()
        engine.logits([1] * 60)
        assert max(logits_rows) == 25
        assert engine.memory.buffers - least.memory.buffers == (25 - 16) * row


def record_logits_rows(engine):
    """Give a list that gets the number of rows of logits of each step from now on."""
    node = engine._executor.node
    rows: list[int] = []

    class RecordingNode:
        def step(self, *arrays):
            result = node.step(*arrays)
            rows.append(len(result.logits))
            return result

        def stop(self):
            node.stop()

    engine._executor._node = RecordingNode()
    return rows


def test_nothing_is_allocated_when_memory_is_short(long_context, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr(_native, "Node", None)
    with pytest.raises(NotEnoughMemory):
        Engine.load(long_context)


def test_refused_by_the_system(files, monkeypatch):
    def node(*_):
        raise MemoryError("cannot reserve 7 bytes")

    monkeypatch.setattr(_native, "Node", node)
    with pytest.raises(NotEnoughMemory, match="cannot reserve 7 bytes"):
        Engine.load(files / "model.m")


def test_progress_ends_at_the_total(files):
    calls: list[tuple[int, int]] = []
    Engine.load(files / "q40.m", progress=lambda done, total: calls.append((done, total))).close()
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1]


def test_no_thread_reads_the_file_when_loading_ends(files, monkeypatch):
    reading, closed_while_reading = threading.Event(), []
    preadv, close = os.preadv, CheckedFile.close

    def slow_preadv(*arguments):
        reading.set()
        time.sleep(0.1)
        count = preadv(*arguments)
        reading.clear()
        return count

    def recording_close(file):
        closed_while_reading.append(reading.is_set())
        close(file)

    def progress(done, total):
        monkeypatch.setattr(os, "preadv", slow_preadv)
        if done > total // 2:
            assert reading.wait(10)
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckedFile, "close", recording_close)
    with pytest.raises(KeyboardInterrupt):
        Engine.load(files / "q40.m", progress=progress)
    assert closed_while_reading == [False]


# --- stopping


def test_a_closed_engine_says_so(files):
    engine = Engine.load(files / "model.m")
    outputs = engine.generate(PROMPT, GREEDY)
    next(outputs)
    engine.close()
    engine.close()
    for call in (engine.step, engine.counters, lambda: next(outputs), lambda: engine.add(PROMPT)):
        with pytest.raises(EngineStopped, match="the engine has stopped: it was closed"):
            call()


class FailingNode:
    """A node whose group breaks in the second step."""

    def __init__(self, node) -> None:
        self.node, self.num_steps = node, 0

    def step(self, *arrays):
        self.num_steps += 1
        if self.num_steps == 2:
            raise _native.GroupFailedError("rank 1 is gone")
        return self.node.step(*arrays)

    def stop(self):
        raise _native.GroupFailedError("rank 1 is gone")


def test_a_failed_step_ends_the_engine_in_one_clear_error(engine):
    engine._executor._node = FailingNode(engine._executor._node)
    other = engine.add(PROMPT, GREEDY)
    outputs = engine.generate(PROMPT, GREEDY)
    assert next(outputs).token_id is not None
    with pytest.raises(EngineStopped, match="a step failed: rank 1 is gone; load the model again") as caught:
        next(outputs)
    assert isinstance(caught.value.__cause__, _native.GroupFailedError)
    assert [output.request_id for output in engine.step()] == [other]  # what came before the failure is not lost
    for call in (engine.step, lambda: engine.add(PROMPT), lambda: engine.score(PROMPT), engine.counters):
        with pytest.raises(EngineStopped, match="rank 1 is gone"):
            call()
    engine.cancel(other)


@pytest.mark.parametrize("call", ["step", "generate", "logits", "score"])
def test_a_file_cut_while_in_use_ends_the_engine(tmp_path, call):
    write_tiny_model(tmp_path / "model.m")
    calls = {
        "step": lambda engine: engine.step(),
        "generate": lambda engine: list(engine.generate(PROMPT, GREEDY)),
        "logits": lambda engine: engine.logits(PROMPT),
        "score": lambda engine: engine.score(PROMPT),
    }
    with Engine.load(tmp_path / "model.m", num_threads=1) as engine:
        engine.add(PROMPT, GREEDY)
        os.truncate(tmp_path / "model.m", 1000)
        with pytest.raises(BadFile, match=r"model\.m: tensor embed_tokens: .* was it changed while in use\?$"):
            calls[call](engine)
        assert not engine.has_work
        for later in (*calls.values(), lambda engine: engine.add(PROMPT)):
            with pytest.raises(EngineStopped, match=r"a step failed: .*embed_tokens.*; load the model again"):
                later(engine)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=1), SamplingParams(logprobs=2)])
def test_logits_that_are_no_numbers_end_the_engine(tmp_path, sampling):
    write_tiny_model(tmp_path / "model.m", tiny_config(weight_type=DType.F32))
    with open_m_file(tmp_path / "model.m") as file:
        norm = file.tensors["norm"]
    with (tmp_path / "model.m").open("r+b") as stream:
        stream.seek(norm.offset)
        stream.write(b"\xff" * norm.nbytes)  # a NaN in every four bytes
    with Engine.load(tmp_path / "model.m", num_threads=1) as engine:
        with pytest.raises(EngineStopped, match="not finite numbers; is the model file damaged"):
            list(engine.generate(PROMPT, sampling))
        assert not engine.has_work


def test_an_interrupted_step_is_repeated(engine, monkeypatch):
    expected = tokens(engine.generate(PROMPT, GREEDY))
    node = engine._executor._node

    class InterruptedNode:
        def step(self, *arrays):
            engine._executor._node = node
            node.step(*arrays)
            raise KeyboardInterrupt

    request_id = engine.add(PROMPT, GREEDY)
    engine._executor._node = InterruptedNode()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert tokens(run(engine)[request_id]) == expected


def test_importing_the_engine_loads_no_tokenizer_library():
    code = "import sys, dllama.engine; print({'tiktoken', 'sentencepiece', 'dllama.text.tokenizer'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
