"""``dllama bench``: speed of prompt processing (pp) and token generation (tg), with llama-bench's flags and fields.

Token ids are random with a fixed seed and no tokenizer is needed. A pp test computes its prompt in steps of the batch
size and logits for the last token only; a tg test computes one token and its logits per step. Each test runs once
unmeasured, then ``-r`` times from an empty context (or behind ``-d`` tokens). The rate at which this machine reads
memory is measured in the same run, because it is the roof of generation: a token reads every weight once.
"""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllama.cli.cluster_flags import add_cluster_flags, add_wire_flag, are_workers_given, wire_type
from dllama.cli.common import find_model, say
from dllama.cli.engine_flags import add_kv_flag, add_weight_flag, kv_type, weight_type
from dllama.cli.parser import file_name, list_of, whole
from dllama.errors import UsageError

if TYPE_CHECKING:
    from dllama.engine import Engine

EXAMPLE = "example: dllama bench -m model.m -p 512 -n 128 -d 0,4096 -t 2,4 -o json"
SEED = 42
BANDWIDTH_S = 0.25  # of reading before each run
PAGE = 64  # room that a filler may waste in its last page of the context


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    lists: dict[str, Any] = {"type": list_of(whole(0)), "action": "extend", "metavar": "N[,N…]"}
    threads: dict[str, Any] = {**lists, "type": list_of(whole(1, 1024))}
    batches: dict[str, Any] = {**lists, "type": list_of(whole(1, 4096))}
    model: dict[str, Any] = {"type": file_name, "action": "append", "metavar": "PATH|NAME"}
    help_ = "model: a file, a Hugging Face folder, or the name of a downloaded one; repeatable"
    parser.add_argument("-m", "--model", **model, required=True, help=help_)
    parser.add_argument("-p", "--n-prompt", **lists, help="prompt tokens (default 512; 0: no such test)")
    parser.add_argument("-n", "--n-gen", **lists, help="tokens to generate (default 128; 0: no such test)")
    parser.add_argument("-d", "--n-depth", **lists, help="tokens in the context before the test (default 0)")
    parser.add_argument("-b", "--batch-size", **batches, help="most tokens in one step (default 512)")
    parser.add_argument("-t", "--threads", **threads, help="compute threads (default: the physical cores)")
    parser.add_argument(
        "-r", "--repetitions", type=whole(1, 1000), default=5, metavar="N", help="measured runs (default 5)"
    )
    parser.add_argument(
        "-o", "--output", choices=["md", "json", "jsonl", "csv"], default="md", help="form (default md)"
    )
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    parser.add_argument("--no-warmup", action="store_true", help="leave out the unmeasured run")
    add_weight_flag(parser)
    add_kv_flag(parser)
    add_cluster_flags(parser)
    add_wire_flag(parser)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: ``prompt`` tokens processed or ``gen`` tokens generated, behind ``depth`` others."""

    prompt: int
    gen: int
    depth: int

    @property
    def positions(self) -> int:
        """Context that a run needs: its tokens, and the one that the last of them gives."""
        return self.depth + self.prompt + self.gen + 1


def tests_of(args: argparse.Namespace) -> list[Case]:
    """List the tests the flags ask for: all of pp, then all of tg, each at all depths."""
    depths = args.n_depth or [0]
    prompts = [512] if args.n_prompt is None else args.n_prompt
    gens = [128] if args.n_gen is None else args.n_gen
    tests = [Case(prompt, 0, depth) for prompt in prompts if prompt for depth in depths]
    tests += [Case(0, gen, depth) for gen in gens if gen for depth in depths]
    if not tests:
        raise UsageError("nothing to measure: -p and -n are both 0")
    return tests


class Bench:
    """Runs tests on one engine. Each run adds a request and steps the engine; only the steps asked for are timed."""

    def __init__(self, engine: Engine, batch: int) -> None:
        self._engine, self._batch = engine, batch
        self._random, self._num_prompts = random.Random(SEED), 0

    def sample(self, test: Case) -> int:
        """Run once; the result is nanoseconds."""
        return self._prompt(test) if test.prompt else self._generate(test)

    def _prompt(self, test: Case) -> int:
        """Time the steps that compute the last ``test.prompt`` tokens of a prompt.

        A step begins exactly there because fillers, queued first, take what the first step has too much of.
        """
        fillers = self.fillers(test, self._engine.max_seq_len, self._batch)
        for filler in fillers:
            self._add(filler, 1)
        self._add(test.depth + test.prompt, 1)
        self._skip(test.depth + sum(fillers))
        return self._time(test.prompt)

    @staticmethod
    def fillers(test: Case, max_seq_len: int, batch: int) -> list[int]:
        """Prompts that together with the ``test.depth`` tokens before a prompt fill whole steps."""
        missing = -test.depth % batch if test.prompt else 0
        longest = min(batch, max_seq_len - 1)
        return [min(longest, missing - begin) for begin in range(0, missing, longest)]

    def _generate(self, test: Case) -> int:
        """Time the steps that compute ``test.gen`` tokens one by one.

        The first of them is the prompt's only token or, behind a filled context, what that gave.
        """
        self._add(max(test.depth, 1), test.gen + min(test.depth, 1))
        self._skip(test.depth)
        return self._time(test.gen)

    def _add(self, prompt: int, max_tokens: int) -> None:
        from dllama.engine import SamplingParams

        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        vocab_size = self._engine.config.vocab_size
        self._num_prompts += 1  # no prompt begins like one before it, whose KV would be used again
        first = self._num_prompts % vocab_size
        rest = [self._random.randrange(vocab_size) for _ in range(prompt - 1)]
        self._engine.add([first, *rest], sampling)

    def _skip(self, tokens: int) -> None:
        end = self._engine.counters()["tokens"] + tokens
        while self._engine.counters()["tokens"] < end:
            if not self._engine.has_work:
                raise RuntimeError(f"the engine has nothing left to compute before the {tokens} tokens to skip")
            self._engine.step()

    def _time(self, tokens: int) -> int:
        before = self._engine.counters()["tokens"]
        start = time.perf_counter_ns()
        while self._engine.has_work:
            self._engine.step()
        spent = time.perf_counter_ns() - start
        computed = self._engine.counters()["tokens"] - before
        if computed != tokens:
            raise RuntimeError(f"the engine computed {computed} tokens where {tokens} were to be timed")
        return spent


def measure(bench: Bench, test: Case, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run one test; the result has llama-bench's fields of one, and the rates of reading measured between its runs.

    They take turns because a machine shared with others may read twice as fast in one minute as in the next.
    """
    from dllama.version import read_bandwidth

    if not args.no_warmup:
        bench.sample(test)
    began = datetime.datetime.now(datetime.UTC)
    samples, bandwidths = [], []
    for _ in range(args.repetitions):
        bandwidths.append(read_bandwidth(threads, BANDWIDTH_S))
        samples.append(bench.sample(test))
    rates = [(test.prompt + test.gen) * 1e9 / sample for sample in samples]
    return {
        "n_prompt": test.prompt,
        "n_gen": test.gen,
        "n_depth": test.depth,
        "test_time": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(statistics.fmean(samples)),
        "stddev_ns": round(_spread(samples)),
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": _spread(rates),
        "samples_ns": samples,
        "samples_ts": rates,
        "samples_bandwidth": bandwidths,
        "read_bandwidth": statistics.median(bandwidths),
    }


def _spread(values: list[int] | list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure everything the flags ask for, a record per test, each given as soon as it is there."""
    from dllama import machine

    tests = tests_of(args)
    for model in args.model:
        file, _ = find_model(model)
        for threads in args.threads or [machine.physical_cores()]:
            for batch in args.batch_size or [512]:
                yield from _records_of(file, threads, batch, tests, args)


def _records_of(
    model: str, threads: int, batch: int, tests: list[Case], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    from dllama.cli.bench_report import facts_of
    from dllama.engine import Engine

    longest = max(test.positions for test in tests)
    fillers = max((Bench.fillers(test, longest, batch) for test in tests), key=len)
    room = longest + sum(filler + 2 * PAGE for filler in fillers)
    options: dict[str, Any] = {"num_threads": threads, "max_batch_tokens": batch, "max_seq_len": longest}
    if are_workers_given(args):
        options |= {"workers": args.workers, "shares": args.shares, "key_file": args.key_file}
    options |= {"weight_type": weight_type(args, model), "kv_type": kv_type(args), "wire_type": wire_type(args)}
    with Engine.load(model, kv_tokens=room, max_draft=0, **options) as engine:
        if engine.max_seq_len < longest:
            raise UsageError(f"{model} has a context of {engine.max_seq_len}, the tests need {longest}")
        facts = {**facts_of(engine, model), "n_batch": batch, "n_ubatch": batch, "n_threads": threads}
        bench = Bench(engine, batch)
        for test in tests:
            result = measure(bench, test, threads, args)
            per_token = engine.token_weights
            pairs = zip(result["samples_ts"], result["samples_bandwidth"], strict=True)
            share = statistics.median(per_token * rate / read for rate, read in pairs) if test.gen else None
            yield {**facts, **result, "weight_bytes_per_token": per_token, "read_bandwidth_share": share}


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama.cli.bench_report import lines

    for line in lines(args.output, records(args)):
        say(line)
