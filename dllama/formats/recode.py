"""From the numbers of checkpoints to the stored types, quick enough to be done whenever a model is loaded.

The work is the core's; ``quants`` says in numpy what it does. Nothing else in this folder calls the compiled module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import IntEnum
from functools import cache

from dllama import _native
from dllama.config import DType
from dllama.errors import NotEnoughMemory
from dllama.formats.quants import RawRows

_MOST_THREADS = 8


class FloatType(IntEnum):
    """Number types of checkpoints; the ids are the core's."""

    F32 = 0
    F16 = 1
    BF16 = 2

    @property
    def num_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self is FloatType.F32 else 2


def recode(numbers: RawRows, number_type: FloatType, dtype: DType, out: RawRows) -> float:
    """Write numbers as ``dtype``; any number of threads may do so at once.

    Args:
        numbers: Contiguous bytes of whole rows.
        number_type: What they are.
        dtype: What they become.
        out: Contiguous bytes of as many rows of ``dtype``.

    Returns:
        The largest magnitude of the numbers, NaN if one is none. Above ``quants.LARGEST[dtype]`` what was written is of
        no use.
    """
    return _native.recode(numbers, number_type, dtype, out)


def recode_blocks(blocks: RawRows, ggml_type: int, dtype: DType, out: RawRows) -> float:
    """Write llama.cpp's blocks as ``dtype``; see ``recode``.

    Args:
        blocks: Contiguous bytes of whole rows.
        ggml_type: What they are, by the id that GGUF files have: one of ``gguf_quants.BLOCKS``.
        dtype: What they become.
        out: Contiguous bytes of as many rows of ``dtype``.
    """
    return _native.recode_blocks(blocks, ggml_type, dtype, out)


def in_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Run a task here, or several in threads; wait for all, and raise what the first that failed raised.

    Raises:
        NotEnoughMemory: The system refused a thread.
    """
    if len(tasks) == 1:
        tasks[0]()
        return
    started: list[Future[None]] = []
    try:
        started.extend(_pool().submit(task) for task in tasks)
    except RuntimeError as error:  # what Python raises when it cannot start one
        raise NotEnoughMemory("the system refused a thread that converts weights; use fewer threads") from error
    finally:
        wait(started)
    for future in started:
        future.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))), thread_name_prefix="dllama-recode")
