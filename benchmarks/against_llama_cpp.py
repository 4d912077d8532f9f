"""dllama against llama.cpp on the very same quantized blocks: prompts, generation, long contexts, many sequences.

Run from the root: ``.venv/bin/python benchmarks/against_llama_cpp.py``. It needs the extra ``compare``, llama.cpp built
from source: ``PIP_NO_BINARY=llama-cpp-python python3 launch.py setup compare``. The model is one of ``models.py`` and
its copy in GGUF, both made once.

Both sides have the same threads, F16 keys and values, steps of at most 512 tokens, and compute logits of every step of
a generation and of a prompt's last token. dllama also chooses its tokens, llama.cpp is given them. They take turns in
processes of their own, one stopped while the other runs. A ratio is the median of those of single rounds. llama.cpp
runs in the fastest of the settings that ``llama_cpp_side.py`` tries.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import quiet
from benchmarks.dllama_side import Dllama
from benchmarks.facts import machine_facts
from benchmarks.models import DENSE_SHAPES, LLAMA_1B, Shape, make_model
from benchmarks.records import Record, comparison, is_met, show, write
from benchmarks.workload import Side, Workload
from dllama import machine
from dllama.cli.parser import whole

ROUNDS = 5
_LEAST_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class Race:
    """A workload and how many times llama.cpp's rate is required.

    Attributes:
        is_for_all: Whether it is run with every model, and with one thread too.
    """

    workload: Workload
    required: float | None = None
    is_for_all: bool = False
    most_rounds: int = 1000


RACES = [
    Race(Workload(prompt=512), 2.0, is_for_all=True),
    Race(Workload(gen=128), 1.2, is_for_all=True),
    Race(Workload(gen=32, depth=128)),
    Race(Workload(gen=32, depth=128, sequences=4)),
    Race(Workload(gen=32, depth=128, sequences=8), 2.5),
    Race(Workload(gen=32, depth=1024)),
    Race(Workload(gen=32, depth=4096), 2.5),
    Race(Workload(prompt=4096), most_rounds=1),
]


def problem() -> str | None:
    """Say why nothing can be compared here, or None."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "missing: llama_cpp; run: PIP_NO_BINARY=llama-cpp-python python3 launch.py setup compare"
    return None


def make_copy(model: Path) -> Path:
    """Write the model's copy in GGUF unless it is there, and give its path."""
    from dllama.formats.gguf_export import export_gguf
    from dllama.formats.open_model import open_model

    copy = model.with_suffix(".gguf")
    if not copy.is_file():
        with open_model(model) as source:
            export_gguf(source, copy)
    return copy


def check_equal(ours: Side, theirs: Side, threads: int) -> float:
    """Give the cosine of both sides' logits behind some tokens.

    Raises:
        SystemExit: They do not compute the same.
    """
    tokens = [(index * 7919 + 11) % 30000 for index in range(24)]
    one, other = (side.ask("logits", tokens, threads) for side in (ours, theirs))
    cosine = float(one @ other / (one @ one) ** 0.5 / (other @ other) ** 0.5)
    if not cosine >= _LEAST_COSINE or one.argmax() != other.argmax():
        raise SystemExit(f"the two engines do not compute the same: cosine of their logits {cosine:.4f}")
    return cosine


def run(race: Race, ours: Side, theirs: Side, threads: int, count: int, model: str) -> Record:
    """Let both run a workload in turns, with a look at the memory's pace in each round."""
    workload = race.workload
    setting = theirs.ask("prepare", workload, threads)
    ours.ask("prepare", workload, threads)

    def one_round(number: int) -> tuple[float, float, float]:
        bandwidth = ours.ask("read_bandwidth", threads)
        turns = (ours, theirs)[:: -1 if number % 2 else 1]
        rates = {side: workload.tokens / side.ask("seconds", workload) for side in turns}
        return bandwidth, rates[ours], rates[theirs]

    found, disturbed = quiet.rounds(min(count, race.most_rounds), one_round, (ours.pid, theirs.pid))
    bandwidths, our_rates, their_rates = (list(values) for values in zip(*found, strict=True))
    more: dict[str, Any] = {
        "model": model,
        "threads": threads,
        "workload": asdict(workload),
        "setting": setting,
        "bandwidths": bandwidths,
        "disturbed": disturbed,
    }
    if workload.gen:
        more |= _shares(our_rates, bandwidths, workload, ours.ask("bytes_per_step", workload, threads))
    return comparison("against_llama_cpp", workload.name, our_rates, their_rates, race.required, **more)


def _shares(
    rates: Sequence[float], bandwidths: Sequence[float], workload: Workload, step_bytes: float
) -> dict[str, float]:
    """Give what a step reads, and how much of the memory's pace that is."""
    pairs = zip(rates, bandwidths, strict=True)
    share = statistics.median(rate / workload.sequences * step_bytes / bandwidth for rate, bandwidth in pairs)
    return {"bytes_per_step": step_bytes, "bandwidth_share": share}


def races(shape: Shape, threads: Sequence[int], rounds: int, only: str, facts: dict[str, Any]) -> Iterator[Record]:
    """Run all races of a model, or those whose name is ``only``; what both sides are is added to ``facts``."""
    from benchmarks.llama_cpp_side import LlamaCpp

    make_model(shape.model, shape.tokenizer, shape)
    with Side(Dllama, shape.model) as ours, Side(LlamaCpp, make_copy(shape.model)) as theirs:
        facts |= {"dllama": ours.ask("facts"), "llama.cpp": theirs.ask("facts")}
        facts.setdefault("cosines", {})[shape.title] = check_equal(ours, theirs, max(threads))
        for race in RACES:
            if race.workload.name == only or (not only and (shape is LLAMA_1B or race.is_for_all)):
                for count in threads if race.is_for_all else [max(threads)]:
                    yield run(race, ours, theirs, count, rounds, shape.title)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=DENSE_SHAPES, default=LLAMA_1B.name)
    parser.add_argument(
        "--threads", type=whole(1, 1024), nargs="+", metavar="N", help="default: 1 and all physical cores"
    )
    parser.add_argument("--rounds", type=whole(1, 1024), default=ROUNDS, metavar="N", help="default: %(default)s")
    names = [race.workload.name for race in RACES]
    parser.add_argument("--only", default="", metavar="NAME", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures in a file")
    args = parser.parse_args()
    if why := problem():
        parser.error(why)
    facts = machine_facts()
    threads = args.threads or sorted({1, machine.physical_cores()})
    records = show(races(DENSE_SHAPES[args.shape], threads, args.rounds, args.only, facts))
    if args.json:
        write(args.json, records, facts)
    return 0 if all(map(is_met, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
