"""What benchmarks keep, judge and write, without timing anything."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
from conftest import Files  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from benchmarks import facts, quiet, records, report, roof
from benchmarks.models import ROOT, token_costs
from benchmarks.records import Record, comparison, figure
from benchmarks.workload import Side, Workload
from dllama.engine import Engine, SamplingParams
from dllama.formats.m_file import open_m_file

MODEL = "llama3.2-1b"


def race(case: str, workload: dict[str, int], threads: int = 2) -> Record:
    workload = {"prompt": 0, "gen": 0, "depth": 0, "sequences": 1, **workload}
    more = {"model": MODEL, "threads": threads, "workload": workload, "setting": "flash attention"}
    shares = {"bandwidths": [8e9, 9e9, 7e9], "bytes_per_step": 1e9} if workload["gen"] else {}
    return comparison("against_llama_cpp", case, [6.0, 9.0, 4.0], [2.0, 2.0, 2.0], 2.5, **more, **shares)


@pytest.fixture
def found() -> list[Record]:
    own = {"model": MODEL, "threads": 2}
    share = {"rates": [7.0], "bandwidths": [8e9], "bytes_per_step": 1e9, "values": [0.875]}
    whole = {"rates": [500.0], "gmac_per_second": 600.0, "values": [0.85]}
    product = {"multiplies": 9e8, "bytes": 5e8, "values": [40.0], "read_bandwidth": 5e10}
    return [
        figure("one_machine", "tg32, share of read bandwidth", 0.875, 0.93, "", **own, **share),
        figure("one_machine", "pp512, its products alone / all of it", 0.85, 0.88, "", **own, **whole),
        figure("one_machine", "inference of 4 tokens", 1.2, 1.4, "s", at_least=False, model=MODEL),
        *(figure("one_machine", f"{n}", 40.0 * n, None, "GMAC/s", **own, **product, tokens=n) for n in (1, 2)),
        race("pp512", {"prompt": 512}),
        race("tg128", {"gen": 128}, threads=1),
        race("tg128", {"gen": 128}),
        race("tg32 @ d128", {"gen": 32, "depth": 128}),
        race("tg32 @ d128 × 4", {"gen": 32, "depth": 128, "sequences": 4}),
        race("tg32 @ d4096", {"gen": 32, "depth": 4096}),
    ]


@pytest.fixture
def result(found: list[Record]) -> report.Result:
    sizes = {MODEL: {"decode_bytes": 1e9, "prompt_multiplies": 1e9}}
    built = {"dllama": {"version": "1", "commit": "c", "compiler": "gcc", "isa": "avx2"}}
    machine = {"date": "2026-01-02", "cpu": "A CPU", "cores": 2, "memory_gib": 8, "isa": "avx2", "system": "Linux"}
    return report.Result("a-cpu-avx2", {**machine, **built, "models": sizes}, found)


# --- records ------------------------------------------------------------------------------------


def test_a_comparison_is_the_median_of_single_rounds() -> None:
    record = comparison("b", "c", [6.0, 9.0, 4.0], [2.0, 1.0, 4.0], 2.5)
    assert (record["ratio"], record["ratio_min"], record["ratio_max"]) == (3.0, 1.0, 9.0)
    assert records.is_met(record)
    assert not records.is_met({**record, "required": 3.1})


@pytest.mark.parametrize(("value", "is_met"), [(1.3, True), (1.4, True), (1.5, False)])
def test_an_upper_limit(value: float, is_met: bool) -> None:
    record = figure("b", "start", value, 1.4, "s", at_least=False)
    assert records.is_met(record) is is_met
    assert records.line(record).startswith("ok    " if is_met else "MISSED")
    assert "required ≤ 1.4 s" in records.line(record)


def test_nothing_required_is_no_verdict() -> None:
    record = figure("b", "pace", 5.0, None, "GMAC/s", model="m", threads=1)
    assert records.is_met(record)
    assert records.line(record).split() == ["m,", "pace,", "1", "thread", "5.000", "GMAC/s"]


def test_records_are_kept_with_facts(tmp_path: Path, found: list[Record]) -> None:
    records.write(tmp_path / "a.json", found, {"date": "today"})
    assert records.read(tmp_path / "a.json") == ({"date": "today"}, found)


# --- the script that runs all -------------------------------------------------------------------


def test_the_summary_counts_what_was_not_measured_as_missed(found: list[Record]) -> None:
    lines = list(roof.summary(found, [roof.Part("speculation")]))
    assert lines[-1] == "7 of 10 met"
    assert lines[-2] == "MISSED speculation: not measured"
    assert not any("GMAC/s" in line for line in lines)


def test_parts_are_chosen_by_script_or_shape() -> None:
    assert roof.chosen([]) == roof.PARTS
    assert [str(part) for part in roof.chosen(["qwen3-0.6b"])] == [
        "one_machine --shape qwen3-0.6b",
        "against_llama_cpp --shape qwen3-0.6b",
    ]
    assert roof.chosen(["nothing"]) == []


def test_every_part_is_a_script() -> None:
    for part in roof.PARTS:
        assert ROOT.joinpath("benchmarks", f"{part.script}.py").is_file()


def test_facts_are_added_but_not_changed() -> None:
    known = {"date": "monday", "models": {"a": 1}}
    assert roof.merged(known, {"date": "tuesday", "models": {"b": 2}}) == {"date": "monday", "models": {"a": 1, "b": 2}}


def test_results_are_named_by_machine_and_level() -> None:
    assert roof.result_file({"cpu": "AMD EPYC (tm) 9", "isa": "avx2"}).name == "amd-epyc-tm-9-avx2.json"
    assert roof.result_file(facts.machine_facts()).parent == records.RESULTS


def test_a_part_of_it_takes_no_kept_figures_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[Record]
) -> None:
    monkeypatch.setattr(roof, "RESULTS", tmp_path / "results")
    known = {"cpu": "A CPU", "isa": "avx2"}
    kept, file = tmp_path / "results" / "a-cpu-avx2.json", tmp_path / "part.json"
    assert roof.keep(found, known, None, is_whole=True) == f"kept in {kept}"
    assert roof.keep(found[:1], known, None, is_whole=False).startswith("not kept: ")
    assert records.read(kept) == (known, found)
    roof.keep(found[:1], known, file, is_whole=False)
    assert records.read(file) == (known, found[:1])


# --- the page -----------------------------------------------------------------------------------


def test_tables(result: report.Result) -> None:
    assert "| llama3.2-1b, inference of 4 tokens | 1.20 | ≤ 1.4 s | yes |" in report.required_table(result)
    assert "| llama3.2-1b, tg128, 1 thread | 6.0 | 2.0 | 3.00 | 2.00 to 4.50 | flash" in report.comparison_table(result)
    floors = report.floors_table(result).splitlines()
    assert floors[2] == "| llama3.2-1b, a generated token | 1.000 GB | 8.0 GB/s | 125.00 ms | 142.86 ms |"
    assert floors[3] == "| llama3.2-1b, a token of a prompt | 1.000 GMAC | 600.0 GMAC/s | 1.67 ms | 2.00 ms |"


def page_with_all_parts() -> str:
    markers = [f"{report.BEGIN.format(name)}\nold\n{report.END.format(name)}" for name in report.PARTS]
    return "By hand.\n" + "\nAlso by hand.\n".join(markers) + "\nThe end.\n"


def test_the_page_keeps_what_was_written_by_hand(result: report.Result) -> None:
    page = report.filled(page_with_all_parts(), report.made([result]))
    assert page.startswith("By hand.\n")
    assert page.endswith("\nThe end.\n")
    assert page.count("Also by hand.") == len(report.PARTS) - 1
    assert "old" not in page.split()
    assert report.filled(page, report.made([result])) == page


@pytest.mark.parametrize("change", ["", "{begin}", "{end}", "{end}\n{begin}", "{begin}{end}\n{begin}{end}"])
def test_markers_must_be_there_once_and_in_order(change: str) -> None:
    begin, end = report.BEGIN.format("a"), report.END.format("a")
    with pytest.raises(ValueError, match="once, in this order"):
        report.filled(change.format(begin=begin, end=end), {"a": "text"})


def test_the_page_in_the_repository_is_that_of_its_results() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.filled(page, report.made(report.read_results(records.RESULTS))) == page


def test_plots_that_were_not_drawn_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: report.Result
) -> None:
    monkeypatch.setattr(report, "PLOTS", tmp_path)
    assert report.plots(result) == ""
    (tmp_path / "a-cpu-avx2-batch.svg").touch()
    assert report.plots(result) == "![by sequences](plots/a-cpu-avx2-batch.svg)"


def test_plots_are_the_same_bytes_each_time(tmp_path: Path, found: list[Record]) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    for folder in ("one", "two"):
        draw("x", found, tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"x-{kind}.svg" for kind in ("batch", "context", "roofline", "threads")]
    for name in names:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        assert len(data) < 40_000


# --- measuring ----------------------------------------------------------------------------------


def test_workloads_have_llama_benchs_names() -> None:
    assert Workload(prompt=512).name == "pp512"
    assert Workload(gen=32, depth=4096).name == "tg32 @ d4096"
    several = Workload(gen=32, depth=128, sequences=8)
    assert (several.name, several.tokens) == ("tg32 @ d128 × 8", 256)
    first, second = several.context(0, 1000), several.context(1, 1000)
    assert len(first) == len(second) == 128
    assert first[0] != second[0]
    assert first == several.context(0, 1000)


def test_a_disturbed_round_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    others = iter([0.0, 60.0, 60.0, 60.0, 60.0, 60.0])  # seconds of cores, before and after each try
    monkeypatch.setattr(quiet, "_others", lambda _pids: next(others))
    tries: list[int] = []
    assert quiet.rounds(2, lambda number: tries.append(number) or len(tries)) == ([2, 3], 0)  # type: ignore[func-returns-value]
    assert tries == [0, 0, 1]


def test_a_round_that_stays_disturbed_counts_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    others = itertools.count(0.0, 60.0)
    monkeypatch.setattr(quiet, "_others", lambda _pids: next(others))
    tries: list[int] = []
    assert quiet.rounds(2, tries.append) == ([None, None], 2)
    assert tries == [0, 0, 0, 1, 1, 1]
    assert records.line(figure("b", "c", 1.0, None, "s", disturbed=2)).endswith("rounds disturbed: 2")
    assert "disturbed" not in records.line(figure("b", "c", 1.0, None, "s", disturbed=0))


def test_a_side_runs_only_while_it_is_asked() -> None:
    with Side(list, ("a", "b", "b")) as side:
        assert side.ask("count", "b") == 2
        state = Path(f"/proc/{side.pid}/stat")
        if state.exists():
            assert state.read_text().rsplit(")", 1)[1].split()[0] == "T"
        assert side.ask("index", "b") == 1
        pid = side.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_side_whose_process_is_gone_ends_with_one_line() -> None:
    with Side(list, ("a", "b")) as side:
        os.kill(side.pid, signal.SIGKILL)
        with pytest.raises(SystemExit, match="an engine's process has ended"):
            side.ask("count", "b")


def test_what_a_token_costs_is_read_from_the_model(tiny: Files) -> None:
    costs = token_costs(tiny.model)
    with open_m_file(tiny.model) as file:
        config, head = file.config, file.tensors["lm_head"]
    attention = 2 * config.hidden_size * (config.q_size + config.kv_size)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    assert costs.multiplies == config.num_layers * layer
    assert costs.decode_bytes == costs.layer_bytes + head.nbytes


def test_a_token_costs_as_many_experts_as_it_uses(tmp_path: Path) -> None:
    config = tiny_config("qwen3_moe")
    write_tiny_model(tmp_path / "model.m", config)
    attention = 2 * config.hidden_size * (config.q_size + config.kv_size)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    layer = attention + config.num_experts * config.hidden_size + config.num_experts_per_tok * expert
    assert token_costs(tmp_path / "model.m").multiplies == config.num_layers * layer


def test_products_alone_disturb_nothing(tiny: Files) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with Engine.load(tiny.model, num_threads=2, max_batch_tokens=16) as engine:
        expected = [output.token_id for output in engine.generate([3, 4, 5], sampling)]
        said, node = [], engine._executor.node
        for output in engine.generate([3, 4, 5], sampling):
            said.append(output.token_id)
            assert node.time_products(1) > 0
            assert node.time_products(16) > 0
        assert said == expected
        for tokens in (0, 17):
            with pytest.raises(ValueError, match="1 to max_tokens"):
                node.time_products(tokens)
