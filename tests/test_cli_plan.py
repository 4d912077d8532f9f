"""``dllama plan``: its tables, its JSON, and plans that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.cli import main, plan
from dllama.config import DType
from dllama.engine.sizing import NodeOptions, settle_sizes
from dllama.plan import make_plan

CONFIG = tiny_config(num_heads=8, num_kv_heads=2, head_dim=32, intermediate_size=128, max_seq_len=4096)
OPTIONS = NodeOptions()
SWAPPED = {"sent_bytes": "received_bytes", "received_bytes": "sent_bytes"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.m"
    write_tiny_model(path, CONFIG)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def describe(world_size: int, available: list[int | None] | None = None, **more: Any) -> dict[str, Any]:
    return plan.describe(CONFIG, make_plan(CONFIG, world_size), OPTIONS, available or [None] * world_size, **more)


def sizes_of(node: dict[str, Any]) -> list[int]:
    return [node[part]["end"] - node[part]["begin"] for part in ("heads", "kv_heads", "ffn_columns", "vocabulary")]


def test_tables(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "--model", model, "--nodes", 3, "--shares", "2,1,1", "--max-seq-len", 1024).splitlines()
    assert lines[0] == "context: 1024 tokens, of 4096 that the model can have"
    assert lines[2].split() == ["heads", "KV", "heads", "FFN", "columns", "vocabulary"]
    assert lines[3].split()[1:] == ["root", "4", "1", "64", "160"]
    assert lines[4].split() == ["worker", "1", "2", "1", "32", "96"]
    assert lines[5].split() == ["worker", "2", "2", "1", "32", "64"]
    assert lines[7].split() == ["MiB", "weights", "KV", "buffers", "total"]
    assert len(lines[8].split()) == 6
    # Generated: 4 exchanges of 32 + 68 bytes to each of two, and a step frame of 32 + 28 + 40 + 68, or 64 back.
    assert lines[13].split()[1:4] == ["root", f"{2 * (4 * 100 + 168) / 1024:.1f}", f"{2 * (4 * 100 + 64) / 1024:.1f}"]
    assert lines[-1] == "held by several nodes, who share their query heads: KV heads 1"
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)


def test_one_node_sends_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--model", model, "--nodes", 1)
    assert "KiB per token" not in text
    assert "held by several" not in text


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "--model", model, "--nodes", 2, "--buffer-float-type", "f32", "--json"))
    assert (facts["wire_type"], facts["context"], facts["problem"]) == ("f32", 4096, None)
    root, worker = facts["nodes"]
    assert (root["name"], sizes_of(root), sizes_of(worker)) == ("the root", [4, 1, 64, 160], [4, 1, 64, 160])
    assert root["decode"]["sent_bytes"] == 4 * (32 + 256) + 32 + 28 + 24 + 16 + 256
    assert root["prompt"]["sent_bytes"] == (7 * 128 + 512 * (4 * 128 + 3 * 40) + 32 + 28 + 9 * 12 + 512 * 256) / 512
    assert worker["decode"] == {name: root["decode"][other] for name, other in SWAPPED.items()}
    assert worker["prompt"] == {name: root["prompt"][other] for name, other in SWAPPED.items()}
    sizes = settle_sizes(CONFIG, make_plan(CONFIG, 2), NodeOptions(wire_type=DType.F32), [None, None])
    assert root["weights_bytes"] == sizes[0].memory.weights
    assert root["kv_bytes"] == sizes[0].memory.kv


def test_threads_need_buffers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (
        json.loads(run(capsys, "--model", model, "--nodes", 2, "--nthreads", count, "--json"))["nodes"][1]
        for count in (1, 8)
    )
    assert few["buffers_bytes"] < many["buffers_bytes"]


def test_prompts_go_the_way_with_fewer_bytes() -> None:
    config = tiny_config(num_layers=32, num_heads=8, num_kv_heads=4, intermediate_size=128)
    plans = [make_plan(config, world_size) for world_size in (2, 4)]
    facts = [plan.describe(config, parts, OPTIONS, [None] * len(parts.shards)) for parts in plans]
    assert [each["prompt_exchange"] for each in facts] == ["direct", "reduce-scatter"]


def test_plans_that_cannot_be(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "--model", model, "--nodes", 5)
    assert "expected 1 to 4, as this model has 4 blocks of 32 FFN columns to share out, found 5" in error
    assert "expected 3 positive numbers" in fails(capsys, "--model", model, "--nodes", 3, "--shares", "1,2")
    assert "found '0'" in fails(capsys, "--model", model, "--nodes", 2, "--shares", "1,0")
    assert "'x'" in fails(capsys, "--model", model, "--nodes", 2, "--shares", "1,x")
    assert "--nodes" in fails(capsys, "--model", model)
    assert "found '0'" in fails(capsys, "--model", model, "--nodes", 0)
    assert "no such model file" in fails(capsys, "--model", "nonsense", "--nodes", 2)


def test_nodes_that_do_not_fit_are_marked() -> None:
    needs = [node["total_bytes"] for node in describe(2)["nodes"]]
    facts = describe(2, [needs[0], 1 << 20], names=["root", "10.0.0.2:9999"])
    assert [node["fits"] for node in facts["nodes"]] == [True, False]
    assert facts["problem"].startswith("10.0.0.2:9999 needs ")
    lines = plan.lines(facts)
    begin = next(index for index, line in enumerate(lines) if line.startswith("MiB"))
    assert lines[begin].endswith("  free")
    root, worker = lines[begin + 1 : begin + 3]
    assert root.endswith(f"  {needs[0] >> 20}")
    assert worker.split()[-4:] == ["1", "does", "not", "fit"]


def test_the_context_is_what_all_nodes_have_room_for() -> None:
    needs = [node["total_bytes"] for node in describe(2)["nodes"]]
    facts = describe(2, [None, needs[1] - 1])
    assert (facts["context"], facts["problem"]) == (4032, None)
    assert [node["fits"] for node in facts["nodes"]] == [None, True]


def test_an_impossible_need_of_memory_is_shown_and_fails(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = describe(2, [1 << 20, None])
    monkeypatch.setattr(plan, "describe", lambda *_: facts)
    assert main(["plan", "--model", str(model), "--nodes", "2"]) == 5
    out, err = capsys.readouterr()
    assert "does not fit" in out
    assert err.startswith("🚨 the root needs ")
    assert err.count("\n") == 1


def test_nodes_without_attention_are_named() -> None:
    config = tiny_config(num_heads=2, num_kv_heads=1, head_dim=32)
    facts = plan.describe(config, make_plan(config, 3), OPTIONS, [None] * 3)
    assert facts["nodes"][2]["kv_bytes"] == 0
    assert plan.lines(facts)[-1] == "no attention, as all heads are given out: worker 2"
