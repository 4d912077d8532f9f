"""What inference and perplexity print: the lines that scripts of distributed-llama's users read, and JSON."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Command, Files  # type: ignore[import-not-found]

from dllama.cli import cluster_flags, main
from dllama.cli.common import StepCost, to_json
from dllama.cli.inference import Run, rate, summary_lines
from dllama.cli.perplexity import chunks, results
from dllama.engine import Engine, Output
from dllama.engine.step_times import StepTimes

START = [
    r"📄 AddBos: 1",
    r"📄 BosId: \d+ \(.*\)",
    r"📄 EosId: \d+ \(.*\)( \d+ \(.*\))*",
    r"📄 RegularVocabSize: \d+",
    r"📄 SpecialVocabSize: \d+",
    r"💡 Arch: Llama",
    r"💡 HiddenAct: Silu",
    r"💡 Dim: 64",
    r"💡 HeadDim: 16",
    r"💡 QDim: 64",
    r"💡 KvDim: 32",
    r"💡 HiddenDim: 96",
    r"💡 VocabSize: 320",
    r"💡 nLayers: 2",
    r"💡 nHeads: 4",
    r"💡 nKvHeads: 2",
    r"💡 SeqLen: 128",
    r"💡 NormEpsilon: 0\.000010",
    r"💡 RopeType: Llama",
    r"💡 RopeTheta: 10000",
    r"📀 RequiredMemory: \d+ MB",
    r"🧠 CPU: \w+",
    r"💿 Loading weights\.\.\.",
    r"💿 Weights loaded",
]
COSTS = r"[ \d]{5} ms Sync[ \d]{5} ms \| Sent[ \d]{6} kB Recv[ \d]{6} kB \| "
SUMMARY = [
    r"",
    r"Evaluation",
    r"   nBatches: 512",
    r"    nTokens: 5",
    r"   tokens/s: \d+\.\d\d \(\d+\.\d\d ms/tok\)",
    r"Prediction",
    r"    nTokens: 5",
    r"   tokens/s: \d+\.\d\d \(\d+\.\d\d ms/tok\)",
]
GREEDY = ["--temperature", "0", "--ignore-eos"]


def assert_lines(lines: list[str], patterns: list[str]) -> None:
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_inference_prints_the_known_lines(dllama: Command, tiny: Files) -> None:
    result = dllama("inference", *tiny.flags, "--prompt", "Hello", "--steps", 5, "--seed", 1, "--ignore-eos")
    assert result.returncode == 0
    assert result.stderr == ""
    steps = [rf"🔷️ Eval{COSTS}\(5 tokens\)"] + [rf"🔶 Pred{COSTS}(?s:.+)"] * 5
    lines = result.stdout.split("\n")[:-1]
    assert_lines(lines[: len(START)], START)
    assert_lines(lines[-len(SUMMARY) :], SUMMARY)
    middle = lines[len(START) : -len(SUMMARY)]
    assert middle[0] == "Hello"
    marked = [line for line in middle if line.startswith(("🔷️", "🔶"))]
    assert_lines(marked, steps)


def test_one_token_prompt_has_true_figures(dllama: Command, tiny: Files) -> None:
    result = dllama("inference", *tiny.flags, "--prompt", "", "--steps", 1)
    assert result.returncode == 0
    assert "nan" not in result.stdout
    assert "    nTokens: 1\n   tokens/s: 0.00 (0.00 ms/tok)\n" in result.stdout


def test_text_is_printed_whole_at_the_end(dllama: Command, tiny: Files) -> None:
    arguments = ["inference", *tiny.flags, "--prompt", "Hello", "--steps", "4", *GREEDY]
    text = json.loads(dllama(*arguments, "--json").stdout)["text"]
    assert dllama(*arguments, "--text").stdout.endswith(f"\n\nHello{text}\n")


def test_inference_json(dllama: Command, tiny: Files) -> None:
    flags = ["--prompt", "Hello", "--steps", "4", "--seed", "7", "--logprobs", "2", "--ignore-eos", "--json"]
    result = dllama("inference", *tiny.flags, *flags)
    assert result.returncode == 0
    data = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert len(data["token_ids"]) == 4
    assert data["finish_reason"] == "length"
    assert data["seed"] == 7
    assert data["evaluation"]["tokens"] == 5
    assert data["prediction"]["tokens"] == 4
    assert [entry["token_id"] for entry in data["logprobs"]] == data["token_ids"]
    assert all(len(entry["top"]) == 2 for entry in data["logprobs"])
    assert json.loads(dllama("inference", *tiny.flags, *flags).stdout)["token_ids"] == data["token_ids"]


def test_flags_reach_the_sampler(dllama: Command, tiny: Files) -> None:
    result = dllama(
        "inference", *tiny.flags, "--prompt", "Hi", "--steps", 3, "--json", "--logit-bias", "65:900", *GREEDY
    )
    assert json.loads(result.stdout)["token_ids"] == [65, 65, 65]


def test_generation_ends_with_the_context(dllama: Command, tiny: Files) -> None:
    result = dllama("inference", *tiny.flags, "--prompt", "Hi", "--max-seq-len", 8, "--json", *GREEDY)
    data = json.loads(result.stdout)
    assert data["finish_reason"] == "length"
    assert data["evaluation"]["tokens"] + data["prediction"]["tokens"] == 8


def test_old_flags_are_accepted(dllama: Command, tiny: Files) -> None:
    flags = ["--net-turbo", "0", "--buffer-float-type", "q80", "--nthreads", "1", "--topp", "0.5", "--steps", "2"]
    assert dllama("inference", *tiny.flags, "--prompt", "Hi", *flags).returncode == 0


def test_prompt_from_standard_input_and_beginning_with_a_dash(dllama: Command, tiny: Files) -> None:
    flags = ["--steps", "3", "--json", *GREEDY]
    given = json.loads(dllama("inference", *tiny.flags, "--prompt", "--dash", *flags).stdout)
    piped = json.loads(dllama("inference", *tiny.flags, "--prompt-file", "-", *flags, stdin="--dash").stdout)
    assert given["prompt"] == piped["prompt"] == "--dash"
    assert given["token_ids"] == piped["token_ids"]


def test_perplexity_prints_the_known_lines(dllama: Command, tiny: Files) -> None:
    result = dllama("perplexity", *tiny.flags, "--prompt", "Hello")
    assert result.returncode == 0
    lines = result.stdout.split("\n")[:-1]
    patterns = [*START, r"Evaluating 5 tokens\.\.\."]
    patterns += [rf"    {number} / 4, prob=0\.\d{{6}}" for number in range(1, 5)]
    patterns += [r"", r"Results", r"   perplexity: \d+\.\d{6} \(lower = better\)"]
    patterns += [r"   avgLogProb: -\d+\.\d{6}", r"   bitPerToken: \d+\.\d{6}"]
    assert_lines(lines, patterns)


def test_perplexity_is_that_of_the_scores(dllama: Command, tiny: Files, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("the quick brown fox", "utf-8")
    data = json.loads(dllama("perplexity", *tiny.flags, "--prompt-file", file, "--json").stdout)
    with Engine.load(tiny.model, tiny.tokenizer) as engine:
        assert engine.tokenizer is not None
        tokens = engine.tokenizer.encode("the quick brown fox")
        mean = math.fsum(engine.score(tokens)) / (len(tokens) - 1)
    assert data["tokens"] == len(tokens)
    assert data["avgLogProb"] == pytest.approx(mean)
    assert data["perplexity"] == pytest.approx(math.exp(-mean))
    assert data["bitPerToken"] == pytest.approx(-mean / math.log(2))


def test_perplexity_of_a_text_longer_than_the_context(dllama: Command, tiny: Files) -> None:
    result = dllama("perplexity", *tiny.flags, "--prompt", "Hello world", "--max-seq-len", 4, "--json")
    assert json.loads(result.stdout)["tokens"] == 10


@pytest.mark.parametrize("length", [2, 3, 5, 12, 13])
def test_chunks_score_every_token_but_the_first_once(length: int) -> None:
    tokens = list(range(12))
    pieces = list(chunks(tokens, length))
    assert [token for piece in pieces for token in piece[1:]] == tokens[1:]
    assert all(2 <= len(piece) <= length for piece in pieces)


def test_results_of_known_probabilities() -> None:
    found = results([math.log(0.5), math.log(0.125)])
    assert found["perplexity"] == pytest.approx(4)
    assert found["bitPerToken"] == pytest.approx(2)
    assert results([-1e6])["perplexity"] == math.inf
    assert math.isnan(results([math.nan])["perplexity"])


def test_json_is_ascii_and_valid() -> None:
    text = to_json({"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}, "d": "🚨é"})
    assert text.isascii()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, [None, 1.5]], "b": {"c": None}, "d": "🚨é"}


def test_json_in_an_ascii_locale(dllama: Command, tiny: Files) -> None:
    result = dllama(
        "inference", *tiny.flags, "--prompt", "é", "--steps", 1, "--json", env={"PYTHONIOENCODING": "ascii"}
    )
    assert json.loads(result.stdout)["prompt"] == "é"


def test_lines_of_a_step() -> None:
    cost = StepCost(wall_us=12_999, sync_us=2_500, sent_bytes=2048, received_bytes=1023, tokens=1)
    assert cost.line("🔶 Pred", "a") == "🔶 Pred   10 ms Sync    2 ms | Sent     2 kB Recv     0 kB | a"
    assert (cost + cost).wall_us == 25_998


def test_rates() -> None:
    assert rate(10, 2_000_000) == (5.0, 200.0)
    assert rate(0, 10) == rate(5, 0) == (0.0, 0.0)
    run = Run("Hi", 4, 512, evaluation=StepCost(wall_us=8_000))
    assert "   tokens/s: 500.00 (2.00 ms/tok)" in summary_lines(run)


class TwoTokensAStep:
    """An engine whose steps give two tokens each."""

    def __init__(self) -> None:
        self._left, self._steps = 3, 0

    @property
    def has_work(self) -> bool:
        return self._left > 0

    def counters(self) -> dict[str, int]:
        return {"sync_us": 0, "sent_bytes": 2048 * self._steps, "received_bytes": 0, "tokens": 0, "steps": self._steps}

    def step(self) -> list[Output]:
        self._left, self._steps = self._left - 1, self._steps + 1
        return [Output(0, 1, text) for text in "ab"]


def test_what_a_step_costs_is_shown_once() -> None:
    run, lines = Run("Hi", 4, 512), list[str]()
    run.follow(TwoTokensAStep(), lines.append)  # type: ignore[arg-type]
    sent = [int(found[1]) for line in lines if (found := re.search(r"Sent +(\d+) kB", line))]
    assert sent == [2, 0, 0, 2, 0, 2, 0]  # the prompt's step, then a line for each token
    assert run.prediction.steps == 2


def test_summary_says_what_drafts_did() -> None:
    run = Run("Hi", 4, 512)
    assert not any("nDrafts" in line for line in summary_lines(run))
    run.drafts = {"drafted": 9, "accepted": 5}
    assert summary_lines(run)[-1] == "    nDrafts: 9 (5 accepted)"


def test_drafts_change_no_text(
    tiny: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StepTimes, "of", lambda _times, count: 1.0 + count / 1000)  # so that every guess is tried
    flags = ["--prompt", "abcabcabc", "--steps", "40", "--json", "--repeat-penalty", "0.5", *GREEDY]
    command, found = ["inference", *tiny.flags, *flags], []
    for more in (["--draft-max", "0"], []):
        assert main([*command, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, drafted = found
    assert drafted["token_ids"] == plain["token_ids"]
    assert plain["prediction"]["drafted"] == 0
    assert drafted["prediction"]["drafted"] > 0
    assert main([*command, "--draft-max", "32"]) == 2


def test_bars_take_news_from_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_flags, "_LINE_S", 0.0)
    lines: list[str] = []
    bars = cluster_flags.Bars(lines.append, is_live=False)

    def load(name: str) -> None:
        for number in range(200):
            bars(f"{name}{number}", number, 200)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, "abcd"))
    bars.close()
    assert len(lines) == 800
    assert "d199 0/0 MB" in lines[-1]
