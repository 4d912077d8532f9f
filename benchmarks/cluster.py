"""What a cluster must reach: its speed against one process, over loopback and behind 1 Gbit/s, its bytes and its start.

Run from the root of the repository, as root: ``.venv/bin/python benchmarks/cluster.py [--model FILE]``; without
``--model`` the file is one of ``models.py``. On a network of namespaces, host 1 runs the root of every cluster
and a worker on its loopback, the other hosts a worker each. Prints measured and required figures; exit code 1 if one
is missed.

The ways to run are loaded side by side in one process and take turns, because a machine shared with others changes its
pace: ratios are medians of those of single rounds. Every node computes with one thread, the one process with two.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import DLLAMA, MODEL, ROOT, make_model
from benchmarks.records import figure, is_met, line
from dllama.cli.bench import Bench, Case
from dllama.cli.parser import whole
from dllama.config import DType
from dllama.engine import Engine
from dllama.plan.wire import Exchange, step_traffic
from tools.lan import Host, Lan, problem

PORT = 9999
BATCH = 512
PREFILL, DECODE = Case(BATCH, 0, 0), Case(0, 128, 0)
KIB = 1024
Figures = dict[str, Any]


def report(name: str, measured: float, required: float, unit: str, *, at_least: bool) -> bool:
    """Print one figure; whether it is good enough."""
    record = figure("cluster", name, measured, required, unit, at_least=at_least)
    print(line(record), flush=True)
    return is_met(record)


@contextmanager
def worker(host: Host, address: str, folder: Path) -> Iterator[str]:
    """Run a worker on a host, and give its address once it listens."""
    flags = ("--host", address, "--port", PORT, "--nthreads", 1, "--insecure", "--cache-dir", folder, "--until-eof")
    command = host.command(*DLLAMA, "worker", *flags)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not any("Listening" in line for line in process.stdout):
            raise SystemExit(f"a worker ended with exit code {process.wait()}")
        yield f"{address}:{PORT}"
        process.stdin.close()


def load(model: Path, num_threads: int, workers: list[str] | None) -> Engine:
    """Load the model with room for what is measured."""
    sizes: dict[str, Any] = {"max_seq_len": 2 * BATCH, "max_batch_tokens": BATCH}
    return Engine.load(model, num_threads=num_threads, workers=workers, wire_type=DType.Q80, max_draft=0, **sizes)


# --- speed --------------------------------------------------------------------------------------


def race(benches: dict[str, Bench], case: Case, rounds: int) -> dict[str, list[float]]:
    """Give the tokens per second of each bench in every round; every second round goes the other way."""
    for bench in benches.values():
        bench.sample(case)
    rates: dict[str, list[float]] = {name: [] for name in benches}
    for number in range(rounds):
        for name in list(benches)[:: -1 if number % 2 else 1]:
            rates[name].append((case.prompt + case.gen) * 1e9 / benches[name].sample(case))
    return rates


def compare(what: str, rates: dict[str, list[float]], name: str, other: str, required: float, figures: Figures) -> bool:
    """Report how fast ``name`` was compared with ``other``."""
    ratios = sorted(one / two for one, two in zip(rates[name], rates[other], strict=True))
    ratio = statistics.median(ratios)
    medians, best = ([function(rates[each]) for each in (name, other)] for function in (statistics.median, max))
    figures[f"{what}, {name} / {other}"] = {"ratio": ratio, "ratios": ratios, "medians": medians, "best": best}
    speeds = ", ".join(f"{kind} {one:.1f} and {two:.1f}" for kind, (one, two) in (("median", medians), ("best", best)))
    print(f"       {what}: {speeds} tokens/s, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}")
    return report(f"{what}, {name} / {other}", ratio, required, "", at_least=True)


def speeds(benches: dict[str, Bench], rounds: int, figures: Figures) -> list[bool]:
    """Compare the ways to run."""
    prefill, decode = race(benches, PREFILL, rounds), race(benches, DECODE, rounds)
    return [
        compare("decode", decode, "loopback", "one process", 0.92, figures),
        compare("prefill", prefill, "loopback", "one process", 0.93, figures),
        compare("decode", decode, "1 Gbit/s", "loopback", 0.93, figures),
        compare("prefill", prefill, "1 Gbit/s", "loopback", 0.85, figures),
    ]


# --- bytes --------------------------------------------------------------------------------------


def kernel_bytes(address: str) -> tuple[int, int]:
    """Give the bytes sent and received by this host's connections to a worker, as the kernel counts them.

    A busy machine sends some packets twice; those that were acknowledged count once.
    """
    command = ["ss", "-tinHO", "dst", address]
    said = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    sent, received = (sum(map(int, re.findall(rf"\b{name}:(\d+)", said))) for name in ("bytes_acked", "bytes_received"))
    return sent, received


def moved(engine: Engine, work: Callable[[], object]) -> list[tuple[int, int]]:
    """Give the bytes that each node sends and receives during ``work``, by its own counters."""
    before = engine.nodes()
    work()
    names = ("sent_bytes", "received_bytes")
    pairs = zip(before, engine.nodes(), strict=True)
    changes = [[int(after[name]) - int(node[name]) for name in names] for node, after in pairs]
    return [(sent, received) for sent, received in changes]


def two_nodes_bytes(engine: Engine, bench: Bench, address: str, figures: Figures) -> list[bool]:
    """Report what root and worker send each other, and whether the kernel agrees."""
    before = kernel_bytes(address)
    decode = moved(engine, lambda: bench.sample(DECODE))
    kernel = [after - first for first, after in zip(before, kernel_bytes(address), strict=True)]
    prefill = moved(engine, lambda: bench.sample(PREFILL))
    sent, received = (amount / DECODE.gen / KIB for amount in decode[0])
    per_prompt_token = prefill[0][1] / PREFILL.prompt / KIB
    plan = step_traffic(engine.config, 2, DType.Q80, Exchange.DIRECT, PREFILL.prompt, 1)[0].received
    apart = max(abs(ours / theirs - 1) for ours, theirs in zip(decode[0], kernel, strict=True))
    figures["bytes, 2 nodes"] = {"decode": decode, "decode, kernel": kernel, "prefill": prefill, "prefill, plan": plan}
    return [
        report("decode, root sends per token", sent, 78, "KiB", at_least=False),
        report("decode, root receives per token", received, 80, "KiB", at_least=False),
        report("prefill, root receives per token", per_prompt_token, 71, "KiB", at_least=False),
        report("bytes, apart from the kernel's", 100 * apart, 0.1, "%", at_least=False),
    ]


def four_nodes_bytes(model: Path, workers: list[str], figures: Figures) -> list[bool]:
    """Report what four nodes send for a prompt token, compared with sending all sums to all."""
    with load(model, 1, workers) as engine:
        found = moved(engine, lambda: Bench(engine, BATCH).sample(PREFILL))
    all_to_all = step_traffic(engine.config, 1 + len(workers), DType.Q80, Exchange.DIRECT, PREFILL.prompt, 1)
    ratio = sum(sent for sent, _ in found) / sum(node.sent for node in all_to_all)
    figures["bytes, 4 nodes"] = {"prefill": found, "all-to-all": [node.sent for node in all_to_all]}
    return [report("prefill on 4 nodes, bytes / all-to-all", ratio, 0.6, "", at_least=False)]


# --- starting -----------------------------------------------------------------------------------


def start_seconds(model: Path, tokenizer: Path, *flags: object) -> float:
    """Run a whole inference of one token and give its seconds."""
    text = ("--prompt", "Hello world", "--steps", 1, "--max-seq-len", 2 * BATCH)
    command = [*DLLAMA, "inference", "--model", model, "--tokenizer", tokenizer, *text, *flags]
    begin = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def starts(model: Path, tokenizer: Path, address: str, rounds: int, figures: Figures) -> list[bool]:
    """Report what a start costs whose weights all nodes have already."""
    with load(model, 1, [address]):
        sent, _ = kernel_bytes(address)
    times: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(rounds):
        times["one"].append(start_seconds(model, tokenizer, "--nthreads", 2))
        times["two"].append(start_seconds(model, tokenizer, "--nthreads", 1, "--workers", address))
    one, two = (statistics.median(times[name]) for name in ("one", "two"))
    more = statistics.median(two - one for one, two in zip(*times.values(), strict=True))
    figures["second start"] = {"bytes sent": sent, "seconds": times}
    print(f"       second start: {two:.2f} s, one node {one:.2f} s")
    return [
        report("second start, all bytes to the worker", sent / KIB, 64, "KiB", at_least=False),
        report("second start, more than one node's", more, 0.5, "s", at_least=False),
    ]


# --- all of it ----------------------------------------------------------------------------------


def measure(args: argparse.Namespace, figures: Figures) -> bool:
    """Measure everything from host 1."""
    local, *remote = args.workers
    ways = {"one process": (2, None), "loopback": (1, [local]), "1 Gbit/s": (1, remote[:1])}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(load(args.model, *way)) for name, way in ways.items()}
        benches = {name: Bench(engine, BATCH) for name, engine in engines.items()}
        checks = speeds(benches, args.rounds, figures)
        checks += two_nodes_bytes(engines["loopback"], benches["loopback"], local, figures)
    checks += four_nodes_bytes(args.model, remote, figures)
    checks += starts(args.model, args.tokenizer, local, args.rounds, figures)
    return all(checks)


def measure_on_network(arguments: list[str], folder: Path) -> int:
    """Make the network and its workers, and run this program again on host 1."""
    with Lan(4) as lan, ExitStack() as stack:
        here, *others = lan.hosts
        places = [(here, "127.0.0.1"), *((host, host.ipv4) for host in others)]
        workers = [
            stack.enter_context(worker(host, address, folder / f"{index}"))
            for index, (host, address) in enumerate(places)
        ]
        command = here.command(sys.executable, __file__, *arguments, "--workers", *workers)
        return subprocess.run(command, check=False, cwd=ROOT).returncode


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tokenizer", type=Path, help="default: beside the model, with suffix .t")
    parser.add_argument("--rounds", type=whole(1, 1024), default=5, help="measured rounds (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, too")
    parser.add_argument("--workers", nargs="+", help=argparse.SUPPRESS)  # this is the program on host 1
    args = parser.parse_args()
    args.tokenizer = args.tokenizer or args.model.with_suffix(".t")
    if args.workers is None:
        if why := problem():
            parser.error(why)
        make_model(args.model, args.tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            return measure_on_network(sys.argv[1:], Path(folder))
    figures: Figures = {"load before": os.getloadavg()[0]}
    print(f"       load of this machine before: {figures['load before']:.2f}; it should be idle")
    is_met = measure(args, figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
