"""llama.cpp through the functions of its library, for a comparison: as llama-bench calls them.

Weights are repacked at load, as by default, and keys and values are F16. A context takes one of a few settings; for
each workload all are tried once and the fastest is measured.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from benchmarks.workload import BATCH, Workload

_QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)  # llama.cpp may call it as long as it lives
_SPARE = 64  # positions in a sequence beyond those of a workload


@dataclass(frozen=True, slots=True)
class Setting:
    """What may be chosen of a context.

    Flash attention, whether sequences share one stream of keys and values, and whether these are F32, not F16.
    """

    flash: bool
    unified: bool = False
    exact: bool = False

    def __str__(self) -> str:
        """Name it, e.g. ``flash attention``."""
        return ("flash attention" if self.flash else "no flash attention") + (", unified KV" if self.unified else "")


class Context:
    """A llama.cpp context with room for one workload.

    Raises:
        RuntimeError: llama.cpp refuses.
    """

    def __init__(self, model: Any, workload: Workload, setting: Setting, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        per_sequence = workload.depth + workload.prompt + workload.gen + _SPARE
        params.n_ctx = per_sequence * workload.sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = workload.sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(setting.flash)
        params.kv_unified = setting.unified
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32 if setting.exact else llama_cpp.GGML_TYPE_F16
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp made no context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        """Free it."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def cut(self, sequence: int, length: int) -> None:
        """Forget a sequence's positions from ``length`` on."""
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise RuntimeError("llama.cpp forgot no position")

    def read(self, sequence: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute a prompt from position 0 on, and the logits of its last token; valid until the next call."""
        for begin in range(0, len(tokens), BATCH):
            chunk = tokens[begin : begin + BATCH]
            is_last = begin + len(chunk) == len(tokens)
            rows = [(token, begin + i, sequence, is_last and i + 1 == len(chunk)) for i, token in enumerate(chunk)]
            self._decode(rows)
        return self._logits(len(chunk) - 1)

    def step(self, tokens: Sequence[int], position: int) -> None:
        """Compute one token of each sequence, all at ``position``, and their logits."""
        self._decode([(token, position, sequence, True) for sequence, token in enumerate(tokens)])
        for index in range(len(tokens)):
            llama_cpp.llama_get_logits_ith(self._context, index)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wants_logits
        if failure := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {failure}")

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        model = llama_cpp.llama_get_model(self._context)
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (size,))


class LlamaCpp:
    """A loaded model and a context for each workload and number of threads.

    Args:
        gguf: The model.
    """

    def __init__(self, gguf: Path) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {gguf}")
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._context: Context | None = None

    def facts(self) -> dict[str, str]:
        """Say what was built."""
        features = llama_cpp.llama_print_system_info().decode()
        return {"version": f"llama-cpp-python {llama_cpp.__version__}", "features": features.strip(" |")}

    def logits(self, tokens: list[int], threads: int, exact: bool = False) -> npt.NDArray[np.float32]:
        """Give the logits ``[vocab_size]`` after ``tokens``, with keys and values in F32 if ``exact``."""
        context = Context(self._model, Workload(prompt=len(tokens)), Setting(not exact, exact=exact), threads)
        logits = context.read(0, tokens).copy()
        context.close()
        return logits

    def prepare(self, workload: Workload, threads: int) -> str:
        """Make ready for a workload: fill its context, try all settings, keep the fastest and name it."""
        if self._context is not None:
            self._context.close()
        several = workload.sequences > 1
        settings = [Setting(flash, unified) for flash in (True, False) for unified in (False, True)[: 1 + several]]
        contexts = {setting: self._filled(setting, workload, threads) for setting in settings}
        times = {setting: self._run(context, workload) for setting, context in contexts.items()}
        best = min(settings, key=lambda setting: times[setting])
        self._context = contexts.pop(best)
        for context in contexts.values():
            context.close()
        return str(best)

    def seconds(self, workload: Workload) -> float:
        """Run the workload that was prepared."""
        assert self._context is not None
        return self._run(self._context, workload)

    def _filled(self, setting: Setting, workload: Workload, threads: int) -> Context:
        context = Context(self._model, workload, setting, threads)
        if workload.depth:
            for sequence in range(workload.sequences):
                context.read(sequence, workload.context(sequence, self._vocab_size))
        return context

    def _run(self, context: Context, workload: Workload) -> float:
        for sequence in range(workload.sequences):
            context.cut(sequence, workload.depth)
        if workload.prompt:
            tokens = Workload(depth=workload.prompt).context(0, self._vocab_size)
            start = time.perf_counter()
            context.read(0, tokens)
            return time.perf_counter() - start
        start = time.perf_counter()
        for step in range(workload.gen):
            tokens = [(step * 7919 + sequence) % self._vocab_size for sequence in range(workload.sequences)]
            context.step(tokens, workload.depth + step)
        return time.perf_counter() - start
