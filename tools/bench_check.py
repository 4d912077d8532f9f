"""Compare the instructions that kernels take with recorded ones (``make bench-check`` runs this).

    python3 tools/bench_check.py build/cpp/count_instructions [--record]

Counts are those of one compiler version, in ``benchmarks/instructions.json``: more than 3 % away from its record in
either direction a kernel is a fault and the exit code 1. ``--record`` writes what is counted there instead. A compiler
without a record is said to have none, and is no fault. Callgrind counts the levels that valgrind knows, without what
they call in other libraries; the others are counted by stepping, where the system lets programs be stepped.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDS = Path(__file__).resolve().parent.parent / "benchmarks" / "instructions.json"
TOLERANCE = 0.03
CANNOT_STEP = 3  # the program's exit code
STEPPING_S = 100.0  # seconds for one level, which takes ten where steps are quick
VALGRIND = ("valgrind", "-q")
Counts = dict[str, int]  # by kernel


def run(*command: str | Path, timeout: float | None = None) -> str:
    """Give what a command prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", timeout=timeout).stdout


# --- counting -----------------------------------------------------------------------------------


def dump_count(text: str, program: str) -> tuple[str, int]:
    """Give the name and the count of one of callgrind's dumps: the costs of functions of ``program`` itself."""
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    if name is None:
        raise SystemExit("🚨 callgrind wrote a dump without the name of its kernel; which valgrind is this?")
    names: dict[str, str] = {}  # of objects, by their numbers: a dump names each once
    total, is_ours, is_call = 0, False, False
    for line in text.splitlines():
        if match := re.match(r"(c?ob)=\((\d+)\)(?: (.*))?$", line):
            names.setdefault(match[2], match[3] or "")
            is_ours = names[match[2]] == program if match[1] == "ob" else is_ours
        elif re.match(r"[\d+*-]", line):
            total += int(line.split()[1]) if is_ours and not is_call else 0
        is_call = line.startswith("calls=")  # the next line is what the called function took
    return name[1], total


def by_callgrind(program: Path, level: str) -> Counts:
    """Count a level's kernels under valgrind."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--tool=callgrind", "--collect-atstart=no", "--compress-strings=yes")
        run(*VALGRIND, *flags, f"--callgrind-out-file={folder}/dump", program, level)
        dumps = sorted(Path(folder).glob("dump.*"), key=lambda file: int(file.suffix[1:]))
        if not dumps:
            raise SystemExit(
                "🚨 built without valgrind's headers; install valgrind, then: make clean build bench-check"
            )
        return dict(dump_count(file.read_text("utf-8"), str(program)) for file in dumps)


def by_stepping(program: Path, level: str) -> Counts:
    """Count a level's kernels by single steps; nothing where that cannot be, or takes too long."""
    try:
        lines = run(program, level, timeout=STEPPING_S).splitlines()
    except subprocess.TimeoutExpired:
        print(f"       {level}: not counted in {STEPPING_S:.0f} s")
        return {}
    except subprocess.CalledProcessError as error:
        if error.returncode != CANNOT_STEP:
            raise
        return {}
    return {name: int(count) for count, name in (line.split(maxsplit=1) for line in lines)}


def count(program: Path) -> dict[str, Counts]:
    """Count the kernels of every level that this machine has and can count."""
    known = run(*VALGRIND, "--tool=none", program, "--levels").split()
    levels = run(program, "--levels").split()
    counts = {
        level: by_callgrind(program, level) if level in known else by_stepping(program, level) for level in levels
    }
    return {level: found for level, found in counts.items() if found}


# --- comparing ----------------------------------------------------------------------------------


def compare(counts: dict[str, Counts], records: dict[str, Counts]) -> int:
    """Print each count beside its record; how many are faults."""
    faults = 0
    for level in [*records, *(level for level in counts if level not in records)]:
        found, recorded = counts.get(level), records.get(level, {})
        if found is None:
            print(f"       {level}: not counted here (this CPU lacks it, or programs cannot be stepped)")
            continue
        for kernel in [*recorded, *(kernel for kernel in found if kernel not in recorded)]:
            faults += not compare_one(f"{level} {kernel}", found.get(kernel), recorded.get(kernel))
    return faults


def compare_one(name: str, found: int | None, recorded: int | None) -> bool:
    """Print one count; whether it is good."""
    if found is None or recorded is None:
        print(f"FAILED {name:<46} {found or 'gone':>10} {recorded or 'no record':>10}")
        return False
    ratio = found / recorded
    is_good = abs(ratio - 1) <= TOLERANCE
    print(f"{'ok    ' if is_good else 'FAILED'} {name:<46} {found:>10} {recorded:>10} {ratio:6.3f}")
    return is_good


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="count_instructions, as built")
    parser.add_argument("--record", action="store_true", help="write the counts as this compiler's record")
    args = parser.parse_args()
    if shutil.which(VALGRIND[0]) is None:
        print("🚨 valgrind is missing; run: sudo apt-get install -y valgrind, then: make bench-check", file=sys.stderr)
        return 2
    program = args.program.resolve()
    if not program.is_file():
        print(f"🚨 {args.program} is not there; run: make bench-check", file=sys.stderr)
        return 2
    compiler = f"{platform.machine()}, {run(program, '--compiler').strip()}"
    records = json.loads(RECORDS.read_text("utf-8"))
    if args.record:
        # Levels that this machine lacks keep their record.
        records[compiler] = {**records.get(compiler, {}), **count(program)}
        RECORDS.write_text(json.dumps(records, indent=2) + "\n", "utf-8")
        print(f"recorded {compiler}: {', '.join(records[compiler])}")
        return 0
    if compiler not in records:
        print(f"🚧 NOTHING COMPARED: {RECORDS.name} has no record of {compiler}, only of: {'; '.join(records)}")
        print("   to record what is counted here: make bench-check RECORD=1")
        return 0
    print(f"       {compiler}: instructions, recorded, ratio")
    faults = compare(count(program), records[compiler])
    print(f"bench-check: {faults} faults" + ("; if that is meant: make bench-check RECORD=1" if faults else ""))
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"🚨 {' '.join(map(str, error.cmd))} ended with exit code {error.returncode}")
