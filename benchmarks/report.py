"""Turn the results in ``benchmarks/results`` into the tables of ``docs/performance.md`` and plots beside it.

Run from the root: ``.venv/bin/python benchmarks/report.py``. What lies between two markers is replaced; the text around
them is written by hand. Plots need matplotlib (extra ``compare``); ``--no-plots`` leaves them as they are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import ROOT
from benchmarks.records import RESULTS, Record, is_met, limit, measured, read, title

PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
BEGIN, END = "<!-- {}: made by benchmarks/report.py -->", "<!-- end of {} -->"


@dataclass(frozen=True, slots=True)
class Result:
    """A file of results: its name without ending, facts of machine and versions, and records."""

    name: str
    facts: dict[str, Any]
    records: list[Record]

    @property
    def heading(self) -> str:
        """Name the machine, the level and the day."""
        facts = self.facts
        return f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']} ({facts['date']})"

    def of(self, benchmark: str) -> list[Record]:
        """Give the records of one benchmark."""
        return [record for record in self.records if record["benchmark"] == benchmark]


def read_results(folder: Path) -> list[Result]:
    """Read all files of results, by name."""
    return [Result(path.stem, *read(path)) for path in sorted(folder.glob("*.json"))]


# --- tables -------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; all columns but the first are set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def required_table(result: Result) -> str:
    """Write what is required, and what was measured."""
    rows = [
        [title(record), f"{measured(record):.2f}", limit(record), "yes" if is_met(record) else "**no**"]
        for record in result.records
        if record["required"] is not None
    ]
    return table(["", "measured", "required", "met"], rows)


def comparison_table(result: Result) -> str:
    """Write the rates of both engines, the median of their ratios, and their range."""
    rows = []
    for record in result.of("against_llama_cpp"):
        rates = [f"{statistics.median(record[side]):.1f}" for side in ("ours", "theirs")]
        spread = f"{record['ratio_min']:.2f} to {record['ratio_max']:.2f}"
        rows.append([title(record), *rates, f"{record['ratio']:.2f}", spread, record["setting"]])
    return table(["tokens/s", "dllama", "llama.cpp", "ratio", "of single rounds", "llama.cpp's best setting"], rows)


def floors_table(result: Result) -> str:
    """Write for each model the least time that bytes and multiplies leave, beside what was measured."""
    rows = []
    for model, sizes in result.facts.get("models", {}).items():
        decode, prefill = _of_all_cores(result, model, "share of read bandwidth"), _of_all_cores(result, model, "alone")
        if decode is None or prefill is None:
            continue
        bandwidth, multiplies = statistics.median(decode["bandwidths"]), prefill["gmac_per_second"] * 1e9
        for name, size, pace, unit, record in (
            ("a generated token", sizes["decode_bytes"], bandwidth, "GB", decode),
            ("a token of a prompt", sizes["prompt_multiplies"], multiplies, "GMAC", prefill),
        ):
            least, rate = size / pace * 1e3, statistics.median(record["rates"])
            costs = [f"{size / 1e9:.3f} {unit}", f"{pace / 1e9:.1f} {unit}/s"]
            rows.append([f"{model}, {name}", *costs, f"{least:.2f} ms", f"{1e3 / rate:.2f} ms"])
    return table(["", "costs", "pace", "floor", "measured"], rows)


def _of_all_cores(result: Result, model: str, words: str) -> Record | None:
    """Give the first record with most threads whose case has these words."""
    found = [record for record in result.of("one_machine") if record["model"] == model and words in record["case"]]
    return max(found, key=lambda record: int(record["threads"]), default=None)


def versions(result: Result) -> str:
    """Say what was compared with what, on what."""
    facts = result.facts
    lines = [f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; {facts['system']}."]
    if ours := facts.get("dllama"):
        lines.append(f"dllama {ours['version']} ({ours['commit']}), {ours['compiler']}, level {ours['isa']}.")
    if theirs := facts.get("llama.cpp"):
        lines.append(f"{theirs['version']}, built here; it says of itself: `{theirs['features']}`.")
    return "\n".join(lines)


def plots(result: Result) -> str:
    """Show those plots of a file of results that were drawn."""
    kinds = {"threads": "tokens/s by threads", "context": "by context", "batch": "by sequences", "roofline": "roofline"}
    files = {PLOTS / f"{result.name}-{kind}.svg": text for kind, text in kinds.items()}
    return "\n".join(f"![{text}](plots/{file.name})" for file, text in files.items() if file.is_file())


PARTS: dict[str, Callable[[Result], str]] = {
    "required": required_table,
    "comparison": comparison_table,
    "floors": floors_table,
    "versions": versions,
    "plots": plots,
}


def made(results: Sequence[Result]) -> dict[str, str]:
    """Give every part of the page, with a heading for each file of results."""
    return {
        name: "\n\n".join(f"#### {result.heading}\n\n{write(result)}" for result in results)
        for name, write in PARTS.items()
    }


def filled(page: str, parts: dict[str, str]) -> str:
    """Put parts between their markers.

    Raises:
        ValueError: A part's markers are not both there, once, in order.
    """
    for name, text in parts.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended) or begin in after or end in after:
            raise ValueError(f"expected once, in this order: {begin} and {end}")
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-plots", action="store_true", help="write the tables alone")
    args = parser.parse_args()
    results = read_results(RESULTS)
    if not args.no_plots:
        from benchmarks.plots import draw

        for result in results:
            draw(result.name, result.records, PLOTS)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), made(results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
