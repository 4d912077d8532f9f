"""How near one machine comes to its own limits: the pace of its memory and of its products, and how fast it starts.

Run from the root: ``.venv/bin/python benchmarks/one_machine.py [--shape NAME]``. The model is one of ``models.py``,
made once. Prints measured and required figures; exit code 1 if one is missed. Numbers depend on the machine being
otherwise idle. Whatever is set against something else is measured in turns with it, and a figure is the median of the
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import quiet
from benchmarks.dllama_side import Dllama
from benchmarks.facts import machine_facts
from benchmarks.models import (
    DLLAMA,
    LLAMA_1B,
    QWEN_MOE,
    ROOT,
    SHAPES,
    Shape,
    TokenCosts,
    make_model,
    token_costs,
)
from benchmarks.records import Record, figure, is_met, show, write
from benchmarks.workload import BATCH, Workload
from dllama import machine
from dllama.cli.parser import whole

ROUNDS = 7
PREFILL, LONG_PREFILL = Workload(prompt=BATCH), Workload(prompt=4096)
DECODE, LONG_DECODE = Workload(gen=32), Workload(gen=32, depth=4096)
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]  # in a step, for the roofline
MIB = 1 << 20
_STEADY, _MOST_LOOKS = 0.05, 8  # how far two readings of the bandwidth may lie apart, and tries to get such a pair
SHORT_CONTEXT = 512  # of a short inference, so that keys and values which are planned but never written hide nothing


def spread(name: str, values: Sequence[float], required: float | None, unit: str, **more: Any) -> Record:
    """Make the record of a figure that was measured round by round: their median, and all of them."""
    return figure("one_machine", name, statistics.median(values), required, unit, values=list(values), **more)


def columns(rows: Iterable[Iterable[float]]) -> list[list[float]]:
    """Turn rounds of several figures into a list for each figure."""
    return [list(column) for column in zip(*rows, strict=True)]


# --- shares of what the machine could do ------------------------------------------------------------


def bandwidth_share(side: Dllama, workload: Workload, threads: int, rounds: int, required: float) -> Record:
    """Compare what a generation reads per second with what the machine reads."""
    side.prepare(workload, threads)
    step_bytes = side.bytes_per_step(workload, threads)

    found, disturbed = quiet.rounds(rounds, lambda _number: _steady_round(side, workload, threads))
    bandwidths, rates = columns(found)
    shares = [rate * step_bytes / bandwidth for rate, bandwidth in zip(rates, bandwidths, strict=True)]
    more = {"threads": threads, "rates": rates, "bandwidths": bandwidths, "bytes_per_step": step_bytes}
    return spread(f"{workload.name}, share of read bandwidth", shares, required, "", disturbed=disturbed, **more)


def _steady_round(side: Dllama, workload: Workload, threads: int) -> tuple[float, float]:
    """Give read bandwidth, and tokens per second between two looks at it that agree: shared memory changes its pace."""
    for _ in range(_MOST_LOOKS):
        before, rate, after = side.read_bandwidth(threads), _rate(side, workload), side.read_bandwidth(threads)
        if abs(before - after) <= _STEADY * max(before, after):
            break
    return (before + after) / 2, rate


def _rate(side: Dllama, workload: Workload) -> float:
    return workload.tokens / side.seconds(workload)


def products_share(side: Dllama, costs: TokenCosts, threads: int, rounds: int, required: float | None) -> Record:
    """Compare the products of a prompt of 512 tokens by themselves with the whole of it."""
    side.prepare(PREFILL, threads)
    found, disturbed = quiet.rounds(rounds, lambda _number: (side.product_seconds(BATCH), side.seconds(PREFILL)))
    products, prompts = columns(found)
    shares = [one / other for one, other in zip(products, prompts, strict=True)]
    rate = BATCH * costs.multiplies / statistics.median(products) / 1e9
    rates = [BATCH / seconds for seconds in prompts]
    more = {"threads": threads, "disturbed": disturbed, "rates": rates, "gmac_per_second": rate}
    return spread(f"{PREFILL.name}, its products alone / all of it", shares, required, "", **more)


def long_prompt(side: Dllama, threads: int, rounds: int) -> Record:
    """Compare the rate at which 4096 tokens are read with that of 512."""
    side.prepare(PREFILL, threads)

    def one_round(_number: int) -> float:
        long, short = (_rate(side, workload) for workload in (LONG_PREFILL, PREFILL))
        return long / short

    ratios, disturbed = quiet.rounds(rounds, one_round)
    return spread(f"{LONG_PREFILL.name} / {PREFILL.name}", ratios, 0.7, "", threads=threads, disturbed=disturbed)


def many(side: Dllama, threads: int, rounds: int) -> Iterator[Record]:
    """Compare the tokens per second of several sequences in all with those of one."""
    workloads = {count: Workload(gen=32, depth=128, sequences=count) for count in (1, 4, 8)}
    for workload in workloads.values():
        side.prepare(workload, threads)

    def one_round(_number: int) -> list[float]:
        return [_rate(side, workload) for workload in workloads.values()]

    found, disturbed = quiet.rounds(rounds, one_round)
    rates = dict(zip(workloads, columns(found), strict=True))
    for count, required in ((4, 3.0), (8, 3.1)):
        ratios = [several / one for several, one in zip(rates[count], rates[1], strict=True)]
        more = {"threads": threads, "disturbed": disturbed, "rates": rates[count]}
        yield spread(f"{count} sequences / one", ratios, required, "", **more)


def expert_prefill(side: Dllama, costs: TokenCosts, threads: int, rounds: int) -> Record:
    """Compare the multiply-adds per second of a prompt of 512 tokens with those of a model without experts."""
    make_model(LLAMA_1B.model, LLAMA_1B.tokenizer)
    dense, dense_costs = Dllama(LLAMA_1B.model), token_costs(LLAMA_1B.model)
    side.prepare(PREFILL, threads)
    dense.prepare(PREFILL, threads)

    def one_round(_number: int) -> tuple[float, float]:
        return costs.multiplies / side.seconds(PREFILL), dense_costs.multiplies / dense.seconds(PREFILL)

    found, disturbed = quiet.rounds(rounds, one_round)
    dense.close()
    own, others = columns(found)
    rates = [BATCH * rate / 1e9 for rate in own]
    more = {"threads": threads, "disturbed": disturbed, "gmac_per_second": statistics.median(rates)}
    ratios = [one / other for one, other in zip(own, others, strict=True)]
    return spread(f"{PREFILL.name}, GMAC/s / those of {LLAMA_1B.title}", ratios, 0.6, "", **more)


def products(side: Dllama, costs: TokenCosts, threads: int, rounds: int) -> Iterator[Record]:
    """Give the pace of the products alone by the tokens of a step: the roofline."""
    side.prepare(PREFILL, threads)
    for tokens in TOKENS:
        found, disturbed = quiet.rounds(rounds, partial(_product_round, side, tokens, threads))
        bandwidths, seconds = columns(found)
        rates = [tokens * costs.multiplies / spent / 1e9 for spent in seconds]
        more: dict[str, Any] = {
            "tokens": tokens,
            "multiplies": costs.multiplies,
            "bytes": costs.layer_bytes,
            "disturbed": disturbed,
        }
        more["read_bandwidth"] = statistics.median(bandwidths)
        yield spread(f"products of {tokens} tokens", rates, None, "GMAC/s", threads=threads, **more)


def _product_round(side: Dllama, tokens: int, threads: int, _number: int) -> tuple[float, float]:
    return side.read_bandwidth(threads), side.product_seconds(tokens)


# --- starting -----------------------------------------------------------------------------------


def fill_page_cache(file: Path) -> None:
    """Read a file once, in small pieces: the most memory this process ever had would count for its children too."""
    with file.open("rb") as stream:
        while stream.read(1 << 20):
            pass


def whole_process(model: Path, tokenizer: Path) -> tuple[float, float]:
    """Run a whole inference of 4 tokens; its seconds, and bytes of the most memory resident."""
    flags = ("--prompt", "Hello world", "--steps", 4, "--ignore-eos", "--max-seq-len", SHORT_CONTEXT)
    command = [*DLLAMA, "inference", "--model", model, "--tokenizer", tokenizer, *flags]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"dllama inference ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def planned_bytes(model: Path) -> int:
    """Give the bytes of weights, keys and values that are planned for a model on one node."""
    command = [*DLLAMA, "plan", "--model", model, "--nodes", 1, "--max-seq-len", SHORT_CONTEXT, "--json"]
    said = subprocess.run([*map(str, command)], check=True, cwd=ROOT, capture_output=True).stdout
    (node,) = json.loads(said)["nodes"]
    return int(node["weights_bytes"]) + int(node["kv_bytes"])


def start(shape: Shape, rounds: int) -> Iterator[Record]:
    """Measure the whole of a short inference."""
    fill_page_cache(shape.model)
    planned = planned_bytes(shape.model)
    runs = [whole_process(shape.model, shape.tokenizer) for _ in range(rounds)]
    beyond = [(resident - planned) / MIB for _, resident in runs]
    name = "inference of 4 tokens, whole process"
    yield spread(name, [seconds for seconds, _ in runs], 1.4, "s", at_least=False)
    more = {"at_least": False, "resident": [resident for _, resident in runs]}
    yield spread("most memory beyond weights and KV", beyond, 150, "MiB", **more)


# --- all of it ----------------------------------------------------------------------------------


def measures(shape: Shape, costs: TokenCosts, threads: Sequence[int], rounds: int) -> Iterator[Record]:
    """Measure a model: decode and prefill, with experts their share too, and of the 1B shape the rest."""
    most = max(threads)
    is_main, has_experts = shape is LLAMA_1B, shape is QWEN_MOE
    # Products of experts by themselves take turns evenly, as those of a step do not.
    decode_share, prefill_share = (0.85, None) if has_experts else (0.93, 0.88)
    if is_main:  # first: what this process has had in memory counts for its children
        yield from start(shape, rounds)
    side = Dllama(shape.model)
    for count in threads:
        yield bandwidth_share(side, DECODE, count, 2 * rounds, decode_share)
        yield products_share(side, costs, count, rounds, prefill_share)
        if has_experts:
            yield expert_prefill(side, costs, count, rounds)
    if is_main:
        yield bandwidth_share(side, LONG_DECODE, most, rounds, 0.8)
        yield long_prompt(side, most, min(rounds, 3))
        yield from many(side, most, rounds)
        yield from products(side, costs, most, rounds)
    side.close()


def titled(records: Iterator[Record], shape: Shape) -> Iterator[Record]:
    """Add the model to records."""
    for record in records:
        yield {"model": shape.title, **record}


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=LLAMA_1B.name)
    parser.add_argument(
        "--threads", type=whole(1, 1024), nargs="+", metavar="N", help="default: 1 and all physical cores"
    )
    parser.add_argument("--rounds", type=whole(1, 1024), default=ROUNDS, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures in a file")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    make_model(shape.model, shape.tokenizer, shape)
    costs = token_costs(shape.model)
    sizes = {"decode_bytes": costs.decode_bytes, "prompt_multiplies": costs.multiplies}
    facts = {**machine_facts(), "models": {shape.title: sizes}}
    threads = args.threads or sorted({1, machine.physical_cores()})
    records = show(titled(measures(shape, costs, threads, args.rounds), shape))
    if args.json:
        write(args.json, records, facts)
    return 0 if all(map(is_met, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
