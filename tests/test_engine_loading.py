"""Loading: what is refused, how large the parts are made, and what is reported meanwhile."""

import os
import re
import subprocess
import sys
import threading
import time

import pytest
from engines import PROMPT, write_models  # type: ignore[import-not-found]
from model_files import (  # type: ignore[import-not-found]
    byte_tokenizer_data,
    tiny_config,
    write_tiny_model,
)

from dllama import _native, machine
from dllama.config import DType
from dllama.engine import Engine, SamplingParams, sizing
from dllama.errors import BadFile, NotEnoughMemory, UnsupportedIsa, UsageError
from dllama.formats.checked_file import CheckedFile
from dllama.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("model"))


# --- refusing


def test_a_tokenizer_larger_than_the_model(files):
    tokenizer = Tokenizer(byte_tokenizer_data(352))
    with pytest.raises(UsageError, match=r"at most the model's 320 tokens, found 352"):
        Engine.load(files / "model.m", tokenizer)


@pytest.mark.parametrize(
    "option",
    [
        {"num_threads": 0},
        {"num_threads": 1.5},
        {"num_threads": True},
        {"max_seq_len": 0},
        {"max_seq_len": "many"},
        {"max_batch_tokens": 0},
        {"max_batch_tokens": None},
        {"kv_tokens": -1},
        {"kv_tokens": [1]},
        {"kv_type": DType.Q40},
        {"kv_type": "F16"},
        {"kv_type": 0},
        {"progress": 1},
        {"tokenizer": 7},
    ],
)
def test_options_out_of_range_or_of_the_wrong_type(files, option):
    with pytest.raises(UsageError, match=f"{next(iter(option))}: expected"):
        Engine.load(files / "model.m", **option)


@pytest.mark.parametrize("model", [None, 7, b"model.m"])
def test_models_that_are_no_path(model):
    with pytest.raises(UsageError, match="model: expected the path of a file, found"):
        Engine.load(model)


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


def test_refused_threads_advise_fewer_threads(files):
    code = f"""if True:
        import resource
        from dllama.engine import Engine
        from dllama.errors import NotEnoughMemory
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), -1))  # a thread's stack takes 2 MiB of it or more
        try:
            Engine.load({str(files / "model.m")!r}, num_threads=1024)
        except NotEnoughMemory as error:
            print(error)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = r"the system refused more than \d+ of 1024 threads; use fewer threads \(num_threads, --nthreads\)"
    assert re.fullmatch(expected, result.stdout.strip())


def test_a_refused_reader_advises_fewer_threads(files, monkeypatch):
    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(NotEnoughMemory, match=r"refused a thread .*; use fewer threads \(num_threads, --nthreads\)"):
        Engine.load(files / "model.m", num_threads=1)


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


@pytest.mark.parametrize("more", [{"shares": [3, 1]}, {"key_file": "cluster.key"}])
def test_what_is_for_workers_needs_some(files, more):
    with pytest.raises(UsageError, match="goes with addresses of workers"):
        Engine.load(files / "model.m", **more)
