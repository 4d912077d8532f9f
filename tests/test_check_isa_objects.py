"""What ``tools/check_isa_objects.py`` knows of the files that are compiled for instruction-set levels."""

from __future__ import annotations

from pathlib import Path

from tools.check_isa_objects import INSTRUCTIONS, instruction_faults

KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "kernels"


def test_every_file_of_a_level_has_a_rule() -> None:
    files = [file.name for file in KERNELS.glob("*.cpp") if file.name.startswith(("avx", "neon"))]
    assert len(files) > 8
    assert [name for name in files if not any(name.startswith(start) for start in INSTRUCTIONS)] == []


def test_a_file_without_a_rule_is_a_fault() -> None:
    assert instruction_faults("sve_matmul.cpp.o") == ["no rule in INSTRUCTIONS for a file of this name"]
