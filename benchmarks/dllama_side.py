"""dllama as benchmarks ask it: through ``Engine`` alone, like any other program."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.workload import BATCH, LONGEST, Workload
from dllama.cli.bench import BANDWIDTH_S, Bench, Case
from dllama.engine import Engine, SamplingParams
from dllama.version import facts, read_bandwidth

_KV_BYTES = 2  # of a value: F16
_SPARE = 8  # tokens that a sequence may be ahead of the last one to begin


class Dllama:
    """A model, loaded anew when the number of threads changes.

    Args:
        model: The ``.m`` file.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._engine: Engine | None = None

    def engine(self, threads: int) -> Engine:
        """Give the engine, with so many threads and room for the longest workload."""
        if self._engine is None or self._engine.num_threads != threads:
            if self._engine is not None:
                self._engine.close()
            self._engine = Engine.load(self._model, num_threads=threads, max_seq_len=LONGEST, max_batch_tokens=BATCH)
            self._bench = Bench(self._engine, BATCH)
        return self._engine

    def facts(self) -> dict[str, Any]:
        """Say what was built."""
        known = facts()
        return {name: known[name] for name in ("version", "commit", "compiler", "isa")}

    def bytes_per_step(self, workload: Workload, threads: int) -> float:
        """Give the bytes of weights, keys and values that one step of a generation reads, on average."""
        engine = self.engine(threads)
        config = engine.config
        per_position = 2 * config.kv_size * config.num_layers * _KV_BYTES
        return engine.memory.weights + per_position * workload.sequences * (workload.depth + workload.gen / 2)

    def logits(self, tokens: list[int], threads: int) -> npt.NDArray[np.float32]:
        """Give the logits ``[vocab_size]`` after ``tokens``."""
        return self.engine(threads).logits(tokens)[-1].copy()

    def prepare(self, workload: Workload, threads: int) -> None:
        """Make ready for a workload: fill its context, and run it once."""
        self.engine(threads)
        self.seconds(workload)

    def read_bandwidth(self, threads: int) -> float:
        """Give the bytes per second that this machine reads now."""
        return read_bandwidth(threads, BANDWIDTH_S)

    def seconds(self, workload: Workload) -> float:
        """Run the workload that was prepared."""
        if workload.depth:
            return self._behind(workload)
        return self._bench.sample(Case(workload.prompt, workload.gen, 0)) / 1e9

    def _behind(self, workload: Workload) -> float:
        """Time steps that give every sequence a token, behind prompts whose keys and values are kept from before."""
        engine = self._engine
        assert engine is not None
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
