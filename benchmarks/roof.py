"""Everything that dllama must reach on one machine, as measured and required: runs the other benchmarks, one by one.

Run from the root: ``.venv/bin/python benchmarks/roof.py``; about a quarter of an hour on an idle machine. Exit code 1
if something is missed, or could not be measured, as the comparison where the extra ``compare`` is not installed. All
figures are kept in ``benchmarks/results``, from which ``report.py`` makes ``docs/performance.md``; those of a run with
``--quick`` or ``--only``, which would take the place of better ones, only in a file that ``--json`` names.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.facts import machine_facts
from benchmarks.models import DENSE_SHAPES, ROOT, SHAPES
from benchmarks.records import RESULTS, Record, is_met, line, read, write

ROUNDS, QUICK_ROUNDS = 5, 3


@dataclass(frozen=True, slots=True)
class Part:
    """A script of this folder with its arguments."""

    script: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name it as it is called."""
        return " ".join([self.script, *self.arguments])


PARTS = [
    *(Part("one_machine", ("--shape", shape)) for shape in SHAPES),
    *(Part("against_llama_cpp", ("--shape", shape)) for shape in DENSE_SHAPES),
    Part("speculation"),
    Part("kv_types"),
]


def run(part: Part, rounds: int) -> tuple[dict[str, Any], list[Record]]:
    """Run a part, which prints its lines, and give its facts and records; none of these if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        script = Path(__file__).with_name(f"{part.script}.py")
        command = [sys.executable, str(script), *part.arguments, "--rounds", str(rounds), "--json", str(result)]
        print(f"\n=== {part}", flush=True)
        subprocess.run(command, check=False, cwd=ROOT)
        return read(result) if result.is_file() else ({}, [])


def chosen(only: Sequence[str]) -> list[Part]:
    """Give the parts whose call has one of these words; all if there are none."""
    return [part for part in PARTS if not only or any(word in str(part).split() for word in only)]


def summary(records: Iterable[Record], missing: Iterable[Part]) -> Iterator[str]:
    """Give a line for everything that is required, and one for every part that said nothing."""
    required = [record for record in records if record["required"] is not None]
    yield from map(line, required)
    missing = list(missing)
    for part in missing:
        yield f"MISSED {part}: not measured"
    met = sum(map(is_met, required))
    yield f"{met} of {len(required) + len(missing)} met"


def merged(facts: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Add facts that are not known yet; of dictionaries, their keys."""
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(facts.get(name), dict):
            facts[name] = merged(facts[name], value)
        else:
            facts.setdefault(name, value)
    return facts


def result_file(facts: dict[str, Any]) -> Path:
    """Say where figures of this machine and instruction-set level are kept."""
    name = f"{facts['cpu']} {facts['isa']}".lower()
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', name).strip('-')}.json"


def keep(records: Sequence[Record], facts: dict[str, Any], file: Path | None, *, is_whole: bool) -> str:
    """Write figures to ``file``, or to that of this machine if they are all of it; say where they are."""
    if file is None and not is_whole:
        return "not kept: parts of it or fewer rounds; --json FILE keeps them"
    file = file or result_file(facts)
    file.parent.mkdir(exist_ok=True)
    write(file, records, facts)
    return f"kept in {file}"


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    help_ = "parts to run: scripts or shapes, e.g. one_machine or qwen3-0.6b (default: all)"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=help_)
    help_ = "where figures are kept (default: by this machine; nowhere with --quick or --only)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=help_)
    args = parser.parse_args()
    parts = chosen(args.only)
    if not parts:
        names = dict.fromkeys(word for part in PARTS for word in str(part).split() if not word.startswith("-"))
        parser.error(f"--only: expected some of {', '.join(names)}")
    facts, missing = machine_facts(), list[Part]()
    records: list[Record] = []
    for part in parts:
        more, found = run(part, QUICK_ROUNDS if args.quick else ROUNDS)
        facts, records = merged(facts, more), records + found
        missing += [] if found else [part]
    print("\n=== all of it")
    for text in summary(records, missing):
        print(text)
    print(keep(records, facts, args.json, is_whole=not (args.only or args.quick)))
    return 0 if not missing and all(map(is_met, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
