"""The comparison of instruction counts with recorded ones: what is a fault, what is said, what is written."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

import pytest

from tools import bench_check

DUMP = """# callgrind format
desc: Trigger: Client Request: silu_mul

positions: line
events: Ir

ob=(3) /lib/libc.so.6
fn=(1) start
cob=(8) /build/count_instructions
cfn=(2) main
calls=1 0
58 1000
0 7

ob=(8)
fn=(2) main
0 10
+3 5
* 2
cob=(4) /lib/libm.so.6
cfn=(3) expf
calls=2 0
-1 400

ob=(4)
fn=(3)
0 400
"""


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: int, *flags: str, compiler: str = "gcc 1.2.3") -> int:
    """Run the check with one kernel that takes ``found`` instructions and is recorded with 1000 for gcc 1.2.3."""
    key = f"{platform.machine()}, gcc 1.2.3"
    records = tmp_path / "instructions.json"
    if not records.exists():
        records.write_text(json.dumps({key: {"avx2": {"add": 1000}, "avx512vnni": {"add": 10}}}))
    monkeypatch.setattr(bench_check, "RECORDS", records)
    monkeypatch.setattr(bench_check, "run", lambda *_: f"{compiler}\n")
    monkeypatch.setattr(bench_check, "count", lambda _: {"avx2": {"add": found}})
    monkeypatch.setattr(shutil, "which", lambda _: "valgrind")
    program = records.with_name("count_instructions")
    program.touch()
    monkeypatch.setattr(sys, "argv", ["bench_check.py", str(program), *flags])
    return bench_check.main()


def test_a_dump_counts_what_the_program_itself_takes() -> None:
    assert bench_check.dump_count(DUMP, "/build/count_instructions") == ("silu_mul", 17)


@pytest.mark.parametrize(("found", "code"), [(1000, 0), (1029, 0), (971, 0), (1031, 1), (969, 1)])
def test_three_percent_either_way(
    found: int, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, found) == code
    said = capsys.readouterr().out
    assert f"{found}       1000 {found / 1000:6.3f}" in said
    assert "avx512vnni: not counted here" in said
    assert ("make bench-check RECORD=1" in said) == bool(code)


def test_kernels_without_a_record_and_records_without_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_check.compare({"avx2": {"new": 5}}, {"avx2": {"old": 6}}) == 2
    said = capsys.readouterr().out
    assert "no record" in said
    assert "gone" in said


def test_an_unknown_compiler_is_no_fault_but_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, 5, compiler="gcc 99.1.0") == 0
    said = capsys.readouterr().out
    assert "NOTHING COMPARED" in said
    assert "gcc 99.1.0" in said
    assert "RECORD=1" in said


def test_recording_keeps_levels_and_compilers_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, 2000, "--record") == 0
    assert run(monkeypatch, tmp_path, 2000, "--record", compiler="clang 14.0.6") == 0
    gcc, clang = json.loads((tmp_path / "instructions.json").read_text()).values()
    assert gcc == {"avx2": {"add": 2000}, "avx512vnni": {"add": 10}}
    assert clang == {"avx2": {"add": 2000}}


def test_a_missing_program_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "valgrind")
    monkeypatch.setattr(sys, "argv", ["bench_check.py", str(tmp_path / "nothing")])
    assert bench_check.main() == 2
    assert "run: make bench-check" in capsys.readouterr().err


def test_a_missing_valgrind_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["bench_check.py", "program"])
    assert bench_check.main() == 2
    assert "apt-get install -y valgrind" in capsys.readouterr().err
