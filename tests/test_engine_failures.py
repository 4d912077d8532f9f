"""What ends an engine, and what does not: failed steps, files that change, interrupts."""

import os

import pytest
from engines import GREEDY, PROMPT, load_engine, run, tokens, write_models  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama import _native
from dllama.config import DType
from dllama.engine import Engine, EngineStopped, SamplingParams
from dllama.engine.pages import PagePool
from dllama.engine.scheduler import Scheduler
from dllama.engine.tasks import Generation
from dllama.errors import BadFile
from dllama.formats.m_file import open_m_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(files):
    with load_engine(files) as engine:
        yield engine


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


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=1), SamplingParams(logprobs=2)])
def test_logits_that_are_no_numbers_end_the_engine(tmp_path, sampling, cap):
    write_tiny_model(tmp_path / "model.m", tiny_config(weight_type=DType.F32, logits_softcap=cap))
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
    expected = tokens(engine.generate([9, *PROMPT], GREEDY))
    engine._executor._scheduler.idle.give_slot()
    node = engine._executor._node

    class InterruptedNode:
        def step(self, *arrays):
            engine._executor._node = node
            node.step(*arrays)
            raise KeyboardInterrupt

    request_id = engine.add([9, *PROMPT], GREEDY)
    engine._executor._node = InterruptedNode()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    outputs = run(engine)[request_id]
    assert tokens(outputs) == expected
    assert outputs[0].num_cached == 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Generation, "receive"),
        (PagePool, "grow"),
        (PagePool, "shrink"),
        (Scheduler, "add"),
        (Scheduler, "commit"),
        (Scheduler, "remove"),
        (Engine, "_deliver"),
    ],
)
def test_an_interrupt_between_steps_ends_the_engine(engine, monkeypatch, owner, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    list(engine.generate([*PROMPT, 4], GREEDY))
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(PROMPT, GREEDY))
    monkeypatch.undo()
    for call in (engine.step, lambda: engine.add(PROMPT)):
        with pytest.raises(EngineStopped, match="the engine has stopped: it was interrupted between two steps; load"):
            call()
    assert not engine.has_work
