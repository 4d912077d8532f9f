"""Changing sound files at random, and reading what comes of it under limits of time and memory.

``fuzz_readers.py`` says what is read, and runs this in a process of its own; ``test_fuzz_readers.py`` starts those.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import signal
import struct
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from dllama.errors import BadFile, DllamaError

CASE_S = 2.0  # of CPU, as a busy machine must not fail a test
ROOM = 64 << 20  # bytes that reading may add to the process
LONGEST_LINE = 1500
JSON_SIGNS = b'0139"{}[],:-.e\\ '
# Numbers at which arithmetic of 8 to 64 bits turns over.
EXTREMES = [0, *(change + (1 << bits) for bits in (0, 7, 8, 15, 16, 20, 31, 32, 62, 63, 64) for change in (-1, 0, 1))]
# What a field of another kind, size or sign may hold.
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 64, 2**31, 2**32, 2**63, 2**64, 10**400, 0.0, -0.5, 0.5, 1e-300, 1e308),
    *(float("inf"), float("nan"), "", "a", "silu", "yarn", "\0", "\n", "\ud800", "x" * 1000, "é▁🙂"),
    *([], [0], [1, 2], [1.0] * 5000, [None], [[]], ["a", "b"], ["full_attention"] * 2, ["sliding_attention"] * 2),
    *({}, {"": {}}, {"type": "Sequence"}, {"rope_type": "longrope"}, {"full_attention": 3}),
]


@dataclass(frozen=True)
class Target:
    """What is read.

    Attributes:
        sound: Files that are read without an error.
        change: Gives one that may be broken.
        read: Reads one, and checks what it gives.
        refusals: The errors in which that may end. Those of ours are one line.
    """

    sound: Sequence[bytes]
    change: Callable[[bytes, Random], bytes]
    read: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...] = (BadFile,)


def changed_bytes(raw: bytes, rng: Random, head: int | None = None) -> bytes:
    """Change up to three places; those before ``head`` nineteen times of twenty."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 3))):
        end = len(data) if head is None or rng.random() < 0.05 else min(head, len(data))
        if end:
            _change(data, rng, rng.randrange(end), end, _number_places(raw[:head]))
    return bytes(data)


def _change(data: bytearray, rng: Random, at: int, end: int, numbers: Sequence[int]) -> None:
    other, length = rng.randrange(end), rng.choice((1, 4, 8, 1 + rng.randrange(40)))
    match rng.randrange(16):
        case 0 | 1:
            data[at] = rng.randrange(256)
        case 2:
            data[at] ^= 1 << rng.randrange(8)
        case 3 | 4:
            data[at] = rng.choice(JSON_SIGNS)
        case 5 | 6 | 7 | 8:
            _put_number(data, rng, rng.choice(numbers) if numbers else at)
        case 9 | 10:
            del data[at : at + length]
        case 11 | 12:
            data[at:at] = data[other : other + length]
        case 13 | 14:
            data[at : at + length] = data[other : other + length]
        case _:
            del data[at:]


def _put_number(data: bytearray, rng: Random, at: int) -> None:
    """Write an extreme, a neighbour or a multiple of what is there, or the file's size, in little endian."""
    size = rng.choice((2, 4, 4, 8))
    old = int.from_bytes(data[at : at + size], "little")
    value = rng.choice((rng.choice(EXTREMES), -rng.choice(EXTREMES), old + 1, old - 1, old * 2, len(data) - at))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


@cache
def _number_places(raw: bytes) -> list[int]:
    """Find where small numbers in little endian seem to begin: a byte, another, and zeros."""
    return [match.start() for match in re.finditer(rb"(?=[^\0].?\0\0)", raw, re.DOTALL)]


def changed_json(raw: bytes, rng: Random) -> bytes:
    """Change a JSON object as bytes, or give some of its values other values, other names, or none."""
    if rng.random() < 0.3:
        return changed_bytes(raw, rng)
    top = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2))):
        _change_value(top, rng)
    text = json.dumps(top)
    if top and rng.random() < 0.05:
        text = f"{{{json.dumps(rng.choice(list(top)))}: {json.dumps(rng.choice(ODD))}, {text[1:]}"  # a name twice
    return text.encode()


def _change_value(top: dict[str, Any], rng: Random) -> None:
    owner: Any = top
    while True:
        keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(owner[key], dict | list) or not owner[key] or rng.random() < 0.3:
            break
        owner = owner[key]
    match rng.randrange(8):
        case 0:
            del owner[key]
        case 1:
            owner[key] = owner[rng.choice(keys)]
        case 2 if isinstance(owner, dict):
            owner[rng.choice(("", "a", "x" * 300, "é\n"))] = owner.pop(key)
        case 2 | 3 if isinstance(owner, list):
            owner.insert(key, rng.choice(owner))
        case 4 if isinstance(owner[key], int | float):
            owner[key] = rng.choice((owner[key] + 1, owner[key] - 1, -owner[key], owner[key] * 2, owner[key] // 2))
        case 4 if isinstance(owner[key], str):
            owner[key] = changed_bytes(owner[key].encode("utf-8", "replace"), rng).decode("utf-8", "replace")
        case 5:
            owner[key] = [owner[key]]
        case _:
            owner[key] = rng.choice([deepcopy(rng.choice(ODD)), rng.choice(EXTREMES), -rng.choice(EXTREMES)])


def run(target: Target, first: int, count: int, progress: int) -> dict[str, float]:
    """Read ``count`` changed files, and say what became of them.

    Args:
        target: What is read.
        first: Number of the first case; equal numbers are equal cases.
        count: How many.
        progress: An open file that always holds the number of the case at work, 8 bytes.

    Raises:
        AssertionError: A refusal is not what it should be. Whatever else a reader raises comes through; what takes too
            long ends the process by SIGPROF.
    """
    for raw in target.sound:
        target.read(raw)
    gc.collect()
    open_files, num_read, start = len(os.listdir("/proc/self/fd")), 0, time.process_time()  # noqa: PTH208
    _limit_memory()
    for case in range(first, first + count):
        os.pwrite(progress, struct.pack("<q", case), 0)
        rng = Random(case)
        raw = target.change(rng.choice(target.sound), rng)
        signal.setitimer(signal.ITIMER_PROF, CASE_S)
        try:
            target.read(raw)
            num_read += 1
        except target.refusals as error:
            check_refusal(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    assert len(os.listdir("/proc/self/fd")) == open_files  # noqa: PTH208
    return {"cases": count, "read": num_read, "seconds": time.process_time() - start}


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def check_refusal(error: Exception) -> None:
    """See that an error of ours is one line, and does not hide a want of memory."""
    assert not isinstance(error.__context__, MemoryError)
    if isinstance(error, DllamaError):
        assert str(error).isprintable(), str(error)
        assert len(str(error)) <= LONGEST_LINE, str(error)
