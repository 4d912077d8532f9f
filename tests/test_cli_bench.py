"""``dllama bench``: which tests it runs, what exactly is timed, and its four forms of output."""

from __future__ import annotations

import argparse
import csv
import json
import re

import pytest
from conftest import Command, Files  # type: ignore[import-not-found]

from dllama.cli import bench, bench_report
from dllama.cli.bench import Bench, Case
from dllama.cli.parser import Parser
from dllama.engine import Engine
from dllama.errors import UsageError

FIELDS = {
    *("build_commit", "cpu_info", "backends", "model_filename", "model_type", "model_size", "model_n_params"),
    *("n_batch", "n_ubatch", "n_threads", "type_k", "type_v", "n_prompt", "n_gen", "n_depth", "test_time"),
    *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts", "read_bandwidth"),
}
QUICK = ["-p", "8", "-n", "4", "-r", "2", "-t", "1"]


def parse(*arguments: str) -> argparse.Namespace:
    parser = Parser(prog="bench")
    bench.add_flags(parser)
    return parser.parse(["-m", "x.m", *arguments])


def test_defaults() -> None:
    assert bench.tests_of(parse()) == [Case(512, 0, 0), Case(0, 128, 0)]


def test_lists_with_commas_and_repeated_flags() -> None:
    tests = bench.tests_of(parse("-p", "1,2", "-p", "3", "-n", "0", "-d", "0,5"))
    assert [(test.prompt, test.depth) for test in tests] == [(1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (3, 5)]
    assert parse("-m", "y.m").model == ["x.m", "y.m"]
    assert parse("-t", "1,2").threads == [1, 2]


def test_nothing_to_measure() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        bench.tests_of(parse("-p", "0", "-n", "0"))


@pytest.mark.parametrize("depth", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("max_seq_len", [8, 100])
def test_fillers_complete_a_step(depth: int, max_seq_len: int) -> None:
    fillers = Bench.fillers(Case(8, 0, depth), max_seq_len, 16)
    assert (depth + sum(fillers)) % 16 == 0
    assert all(0 < filler < max_seq_len for filler in fillers)
    assert Bench.fillers(Case(0, 8, depth), max_seq_len, 16) == []


class Spy:
    """An engine that notes how many tokens each step computes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.steps: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def step(self) -> object:
        before = self._engine.counters()["tokens"]
        outputs = self._engine.step()
        self.steps.append(self._engine.counters()["tokens"] - before)
        return outputs


@pytest.mark.parametrize(
    ("test", "timed"),
    [
        (Case(8, 0, 0), [8]),
        (Case(40, 0, 0), [16, 16, 8]),
        (Case(20, 0, 5), [16, 4]),
        (Case(20, 0, 32), [16, 4]),
        (Case(0, 3, 0), [1, 1, 1]),
        (Case(0, 3, 20), [1, 1, 1]),
        (Case(0, 1, 126), [1]),
        (Case(1, 0, 126), [1]),
    ],
)
def test_what_is_timed(test: Case, timed: list[int], tiny: Files) -> None:
    with Engine.load(
        tiny.model, max_batch_tokens=16, num_threads=1, max_seq_len=test.positions, kv_tokens=400
    ) as engine:
        spy = Spy(engine)
        assert Bench(spy, 16).sample(test) > 0  # type: ignore[arg-type]
        assert spy.steps[-len(timed) :] == timed
        assert not engine.has_work


def test_engine_without_work_is_not_waited_for(tiny: Files) -> None:
    with Engine.load(tiny.model, num_threads=1) as engine, pytest.raises(RuntimeError, match="nothing left to compute"):
        Bench(engine, 16)._skip(1)


def test_markdown(dllama: Command, tiny: Files) -> None:
    result = dllama("bench", "-m", tiny.model, *QUICK, "-d", "0,10")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"\| model +\| +size \| +params \| backend +\| threads \| +test \| +t/s \|", lines[0])
    assert re.fullmatch(r"\| -+ \| -+: \| -+: \| -+ \| -+: \| -+: \| -+: \|", lines[1])
    row = r"\| llama \S+ K Q40 +\| +\S+ KiB \| +\S+ K \| CPU +\| +1 \| +{} \| +\d+\.\d\d ± \d+\.\d\d \|"
    for line, name in zip(lines[2:6], ["pp8", "pp8 @ d10", "tg4", "tg4 @ d10"], strict=True):
        assert re.fullmatch(row.format(name), line), line
    assert lines[6] == ""
    assert lines[7].startswith("build: ")
    assert len({len(line) for line in lines[:6]}) == 1
    assert [line.split(" with ")[0] for line in lines[8:]] == ["tg4", "tg4 @ d10"]


def test_json(dllama: Command, tiny: Files) -> None:
    result = dllama("bench", "-m", tiny.model, *QUICK, "-o", "json")
    prompt, gen = json.loads(result.stdout)
    assert set(prompt) >= FIELDS
    assert (prompt["n_prompt"], prompt["n_gen"], gen["n_prompt"], gen["n_gen"]) == (8, 0, 0, 4)
    assert len(gen["samples_ns"]) == len(gen["samples_ts"]) == 2
    assert gen["avg_ts"] == pytest.approx(sum(gen["samples_ts"]) / 2)
    assert gen["samples_ts"][0] == pytest.approx(4e9 / gen["samples_ns"][0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", gen["test_time"])
    pairs = zip(gen["samples_ts"], gen["samples_bandwidth"], strict=True)
    shares = [gen["weight_bytes_per_token"] * rate / read for rate, read in pairs]
    assert gen["read_bandwidth_share"] == pytest.approx(sum(shares) / 2)  # the median of two
    assert prompt["read_bandwidth_share"] is None


def test_jsonl_and_csv(dllama: Command, tiny: Files) -> None:
    result = dllama("bench", "-m", tiny.model, *QUICK, "-o", "jsonl", "-r", "1", "--no-warmup")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert set(first) == set(second) >= FIELDS
    assert first["stddev_ts"] == 0
    result = dllama("bench", "-m", tiny.model, *QUICK, "-o", "csv", "-r", "1")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [("8", "0"), ("0", "4")]
    assert FIELDS - {"samples_ns", "samples_ts"} <= set(rows[0])


def test_context_of_the_model_is_too_short(dllama: Command, tiny: Files) -> None:
    result = dllama("bench", "-m", tiny.model, "-p", "0", "-n", "8", "-d", "127", "-r", "1")
    assert result.returncode == 2
    assert "has a context of 128, the tests need 136" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("value", "base", "text"),
    [(5, 1000, "5.00"), (1_235_814_400, 1000, "1.24 B"), (727 << 20, 1024, "727.00 MiB"), (2e15, 1000, "2000.00 T")],
)
def test_short_numbers(value: float, base: int, text: str) -> None:
    assert bench_report.scaled(value, base) == text
