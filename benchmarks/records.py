"""What a benchmark found, as data: one dictionary for each figure, printed as a line and kept in a JSON file.

Every record has ``benchmark``, ``case``, ``unit`` and ``value``; ``required`` is None where nothing is asked, and
``at_least`` says which way. Comparisons have ``ratio`` instead, with the rates of both sides round by round.
``disturbed`` counts rounds in which other programs ran all the same (``quiet.py``).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
RESULTS = Path(__file__).resolve().parent / "results"  # a file for each machine and instruction-set level


def figure(benchmark: str, case: str, value: float, required: float | None, unit: str, **more: Any) -> Record:
    """Make the record of a single figure; ``at_least=False`` in ``more`` makes ``required`` an upper limit."""
    return {"benchmark": benchmark, "case": case, "value": value, "unit": unit, "required": required, **more}


def comparison(
    benchmark: str, case: str, ours: Sequence[float], theirs: Sequence[float], required: float | None, **more: Any
) -> Record:
    """Make the record of two rates that were measured in turns: the median of their ratios, and their range."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    spread = {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    return {
        "benchmark": benchmark,
        "case": case,
        **spread,
        "required": required,
        "unit": "tokens/s",
        "ours": list(ours),
        "theirs": list(theirs),
        **more,
    }


def measured(record: Record) -> float:
    """Give the figure that is compared with what is required."""
    return float(record["ratio"] if "ratio" in record else record["value"])


def is_met(record: Record) -> bool:
    """Whether a figure is good enough, as it is where nothing is required."""
    required = record["required"]
    if required is None:
        return True
    return bool(measured(record) >= required if record.get("at_least", True) else measured(record) <= required)


def limit(record: Record) -> str:
    """Write what is required, e.g. ``≤ 1.4 s``; a ratio has no unit."""
    unit = "" if "ratio" in record else record["unit"]
    return f"{'≥' if record.get('at_least', True) else '≤'} {record['required']:g} {unit}".rstrip()


def line(record: Record) -> str:
    """Write a record as a line: verdict, name, what was measured and required."""
    verdict = "      " if record["required"] is None else "ok    " if is_met(record) else "MISSED"
    text = f"{verdict} {title(record):<64} {measured(record):8.3f}"
    if record["required"] is not None:
        text += f"   required {limit(record)}"
    elif "ratio" not in record:
        text += f" {record['unit']}"
    if "ratio_min" in record:
        text += f"   ({record['ratio_min']:.2f} to {record['ratio_max']:.2f})"
    if "theirs" in record:
        ours, theirs = (statistics.median(record[side]) for side in ("ours", "theirs"))
        text += f"   {ours:.1f} / {theirs:.1f} {record['unit']}"
    if record.get("disturbed"):
        text += f"   rounds disturbed: {record['disturbed']}"
    return text


def title(record: Record) -> str:
    """Name a record: model, case and threads, as far as it has them."""
    parts = [
        record.get("model", record["benchmark"]),
        record["case"],
        _threads(record["threads"]) if "threads" in record else None,
    ]
    return ", ".join(part for part in parts if part)


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def show(records: Iterable[Record]) -> list[Record]:
    """Print records as they come, and give them all."""
    shown = []
    for record in records:
        print(line(record), flush=True)
        shown.append(record)
    return shown


def write(path: Path, records: Iterable[Record], facts: dict[str, Any]) -> None:
    """Keep records in a file, with ``facts`` of machine, day and versions."""
    path.write_text(json.dumps({**facts, "records": list(records)}, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Give facts and records of a file."""
    facts = json.loads(path.read_text())
    return facts, facts.pop("records")
