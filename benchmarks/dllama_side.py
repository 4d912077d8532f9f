"""dllama as benchmarks ask it: through ``Engine``, like any other program; only the products have no other door."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.workload import BATCH, LONGEST, Workload
from dllama.cli.bench import BANDWIDTH_S, Bench, Case
from dllama.config import DType
from dllama.engine import Engine, SamplingParams
from dllama.version import facts, read_bandwidth

_KV_TYPE, _KV_BYTES = DType.F16, 2  # of a value: as llama.cpp has it, whatever dllama's default is
_SPARE = 8  # tokens that a sequence may be ahead of the last one to begin


class Dllama:
    """A model, loaded anew when the number of threads changes.

    Args:
        model: The ``.m`` file.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._loaded: Engine | None = None

    def close(self) -> None:
        """Free everything."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def facts(self) -> dict[str, Any]:
        """Say what was built."""
        known = facts()
        return {name: known[name] for name in ("version", "commit", "compiler", "isa")}

    def bytes_per_step(self, workload: Workload, threads: int) -> float:
        """Give the bytes of weights, keys and values that one step of a generation reads, on average."""
        engine = self._engine(threads)
        per_position = 2 * engine.config.kv_size * engine.config.num_layers * _KV_BYTES
        return engine.token_weights + per_position * workload.sequences * (workload.depth + workload.gen / 2)

    def logits(self, tokens: list[int], threads: int) -> npt.NDArray[np.float32]:
        """Give the logits ``[vocab_size]`` after ``tokens``."""
        logits: npt.NDArray[np.float32] = self._engine(threads).logits(tokens)[-1]
        return logits

    def prepare(self, workload: Workload, threads: int) -> None:
        """Make ready for a workload: fill its context, and run it once."""
        self._engine(threads)
        self.seconds(workload)

    def read_bandwidth(self, threads: int) -> float:
        """Give the bytes per second that this machine reads now."""
        return read_bandwidth(threads, BANDWIDTH_S)

    def product_seconds(self, tokens: int) -> float:
        """Run the products of all layers by themselves."""
        assert self._loaded is not None
        return self._loaded._executor.node.time_products(tokens)

    def seconds(self, workload: Workload) -> float:
        """Run the workload that was prepared."""
        assert self._loaded is not None
        if workload.depth:
            return self._behind(self._loaded, workload)
        return self._bench.sample(Case(workload.prompt, workload.gen, 0)) / 1e9

    def _engine(self, threads: int) -> Engine:
        """Give the engine, with so many threads and room for the longest workload."""
        if self._loaded is None or self._loaded.num_threads != threads:
            self.close()
            sizes: dict[str, Any] = {"max_seq_len": LONGEST, "max_batch_tokens": BATCH, "max_draft": 0}
            self._loaded = Engine.load(self._model, num_threads=threads, kv_type=_KV_TYPE, **sizes)
            self._bench = Bench(self._loaded, BATCH)
            # llama.cpp clears its keys and values when it starts. Here the system does, where a prompt first writes.
            for _ in range(LONGEST // BATCH + 2):
                self._bench.sample(Case(BATCH, 0, 0))
        return self._loaded

    @staticmethod
    def _behind(engine: Engine, workload: Workload) -> float:
        """Time steps that give every sequence a token, behind prompts whose keys and values are kept from before."""
        vocab_size = engine.config.vocab_size
        sampling = SamplingParams(max_tokens=workload.gen + _SPARE, temperature=0, ignore_eos=True)
        contexts = [workload.context(sequence, vocab_size) for sequence in range(workload.sequences)]
        waiting = requests = {engine.add(context, sampling) for context in contexts}
        while waiting:
            waiting = waiting - {output.request_id for output in engine.step()}
        before, start = engine.counters()["tokens"], time.perf_counter()
        for _ in range(workload.gen):
            engine.step()
        spent, computed = time.perf_counter() - start, engine.counters()["tokens"] - before
        for request in requests:
            engine.cancel(request)
        while engine.has_work:
            engine.step()
        if computed != workload.tokens:
            raise RuntimeError(f"the engine computed {computed} tokens where {workload.tokens} were to be timed")
        return spent
