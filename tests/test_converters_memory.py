"""How much memory converting takes: the same for a model of any size. Slow, as it takes a model of a gigabyte."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.convert import REQUIRED_MIB, convert, make_folder


@pytest.mark.slow
def test_a_large_model_takes_little_memory(tmp_path: Path) -> None:
    num_bytes = make_folder(tmp_path, 1_300_000_000)
    assert num_bytes > 1_000_000_000
    _, peak_mib = convert(tmp_path, "q40")
    assert peak_mib < REQUIRED_MIB
