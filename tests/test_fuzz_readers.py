"""Whatever a file or a peer says, it is read, or ends in one line: quickly, in little memory, and never in a crash.

Files are changed at random, always alike. ``make fuzz TIMES=N`` tries N times as many as the tests do.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fuzz_readers import READERS  # type: ignore[import-not-found]
from fuzzing import Target  # type: ignore[import-not-found]

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
SCRIPT = Path(__file__).with_name("fuzz_readers.py")
MEMORY = Path("/dev/shm")
# Threads have memory of their own, which would count as the reader's.
ALONE = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give an empty folder, in memory where that is possible."""
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as path:
        yield Path(path)


def test_there_are_a_hundred_thousand_cases() -> None:
    assert sum(READERS.values()) >= 100_000


@pytest.mark.parametrize("reader", READERS, ids=lambda each: each.__name__)
def test_changed_files_are_read_or_refused(reader: Callable[[], Target], folder: Path) -> None:
    count, progress = READERS[reader] * TIMES, folder / "case"
    words = [sys.executable, "-W", "error", str(SCRIPT), reader.__name__]
    result = subprocess.run(
        [*words, "0", str(count), str(progress)],
        cwd=folder,
        env={**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join((str(SCRIPT.parent), str(SCRIPT.parents[1])))},
        capture_output=True,
        timeout=100 * TIMES,
    )
    if result.returncode:
        case = struct.unpack("<q", progress.read_bytes())[0] if progress.exists() else "none"
        tail = result.stderr[-4000:].decode("utf-8", "replace")
        pytest.fail(f"{reader.__name__}, case {case}: status {result.returncode} (-27: too long)\n{tail}")
    found = json.loads(result.stdout)
    assert found["cases"] == count
    assert 0 < found["read"] < count
