"""Clusters of real processes give what one node gives: tokens, logits, scores, whatever the nodes and their CPUs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cluster_world import WorkerProcess, load  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama import _native
from dllama.cli import main
from dllama.config import DType, LayerSpec
from dllama.engine import Engine, SamplingParams
from dllama.hub.folders import bundled_model

PROMPT = [5, 6, 7, 8]
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
STORY = (
    "Once upon a time, there was a shy badger called Bella in a village near the sea. Bella had a blue bag with many "
    "pockets, and she loved baking sweet bread. Bella had never seen the waterfall. One gray morning, she decided to "
    "go there. Bella took a bag with warm milk and waved goodbye. On the way, she met Lottie, a dreamy rabbit."
)
DEMO = bundled_model()
# What exchanges add to logits, relative to their root mean square. F32: 24 bits, about 2 * 6 layers of sums. Q80: each
# sum is rounded to steps of 1/127 of a block's largest value, an error of 1/127/sqrt(12) of about three times its root
# mean square, 0.7 %; the eight sums of four layers add up like a random walk.
F32_TOLERANCE, Q80_TOLERANCE = 2e-6, 0.02


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Seven workers; the first computes with the plainest kernels."""
    folder, started = tmp_path_factory.mktemp("right"), []
    try:
        for index in range(7):
            env = {"DLLAMA_ISA": "generic"} if index == 0 else {}
            started.append(WorkerProcess(folder / f"cache-{index}", env=env))
        yield started
    finally:
        for worker in started:
            worker.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An F32 model with fewer KV heads than the largest cluster has nodes."""
    path = tmp_path_factory.mktemp("models") / "model.m"
    sizes = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 32, "intermediate_size": 288, "max_seq_len": 256}
    config = tiny_config(weight_type=DType.F32, num_layers=6, layers=(LayerSpec(),) * 6, **sizes)
    write_tiny_model(path, config, seed=3)
    return path


def tokens(engine: Engine, prompt=PROMPT, params: SamplingParams = GREEDY) -> list[int]:
    return [output.token_id for output in engine.generate(prompt, params) if output.token_id is not None]


def error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8])
def test_any_number_of_nodes_gives_the_same_tokens(model, nodes, world_size):
    with Engine.load(model, num_threads=1) as engine:
        expected, logits = tokens(engine), engine.logits(PROMPT * 10)
    with load(model, nodes[1:world_size] if world_size < 8 else nodes, wire_type=DType.F32) as engine:
        assert tokens(engine) == expected
        assert error(engine.logits(PROMPT * 10), logits) < F32_TOLERANCE
        names = [str(node["name"]) for node in engine.nodes()]
    assert len(names) == world_size
    assert names[0] == "the root"


def test_uneven_shares_give_the_same_tokens(model, nodes):
    with Engine.load(model, num_threads=1) as engine:
        expected = tokens(engine)
    with load(model, nodes[1:3], wire_type=DType.F32, shares=[3, 1, 1]) as engine:
        assert tokens(engine) == expected


@pytest.mark.parametrize("params", [
    SamplingParams(temperature=0.9, top_p=0.9, seed=4, max_tokens=40),
    SamplingParams(temperature=1.5, top_p=1.0, seed=5, max_tokens=40),
    SamplingParams(temperature=1.0, top_k=7, seed=6, max_tokens=40, repeat_penalty=1.3),
    SamplingParams(temperature=1.2, top_p=1.0, min_p=0.05, seed=7, max_tokens=40, logit_bias={9: 3.0, 11: -2.0}),
    SamplingParams(temperature=2.0, top_p=1.0, seed=8, max_tokens=40, presence_penalty=0.5, logprobs=3),
])  # fmt: skip
def test_seeds_give_the_same_tokens(model, nodes, params):
    with Engine.load(model, num_threads=1) as engine:
        expected = list(engine.generate(PROMPT, params))
    with load(model, nodes[1:3], wire_type=DType.F32) as engine:
        outputs = list(engine.generate(PROMPT, params))
    assert [output.token_id for output in outputs] == [output.token_id for output in expected]
    for ours, theirs in zip(outputs, expected, strict=True):
        if params.logprobs and ours.top_logprobs and theirs.top_logprobs:
            assert [token for token, _ in ours.top_logprobs] == [token for token, _ in theirs.top_logprobs]
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("weight_type", [DType.F16, DType.Q80, DType.Q40])
def test_weights_of_every_type(nodes, tmp_path, model_type, weight_type):
    """Quantized products round their inputs too, so a sum that differs in its last bit can move one by a step."""
    write_tiny_model(tmp_path / "model.m", tiny_config(model_type, weight_type, intermediate_size=192))
    with Engine.load(tmp_path / "model.m", num_threads=1) as engine:
        expected = engine.logits(PROMPT * 10)
    with load(tmp_path / "model.m", nodes[1:3], wire_type=DType.F32) as engine:
        logits = engine.logits(PROMPT * 10)
    assert error(logits, expected) < (Q80_TOLERANCE if weight_type.is_quantized else F32_TOLERANCE)


def test_quantized_models_choose_the_same_where_it_is_clear(nodes):
    with Engine.load(DEMO.model, DEMO.tokenizer, num_threads=1) as engine:
        assert engine.tokenizer is not None
        token_ids = engine.tokenizer.encode(STORY)
        expected = engine.logits(token_ids)
    for count in (1, 3):
        with load(DEMO.model, nodes[1 : count + 1]) as engine:
            logits = engine.logits(token_ids)
        assert 0 < error(logits, expected) < Q80_TOLERANCE
        best = np.sort(expected, axis=1)[:, -2:]
        is_clear = best[:, 1] - best[:, 0] > 8 * Q80_TOLERANCE * np.sqrt(np.mean(expected**2))
        assert is_clear.sum() > len(token_ids) / 2
        np.testing.assert_array_equal(logits.argmax(1)[is_clear], expected.argmax(1)[is_clear])


def test_perplexity_moves_by_less_than_a_five_hundredth(nodes, capsys):
    found = []
    for count in (0, 1, 3):
        addresses = ["--workers", *(worker.address for worker in nodes[1 : count + 1])] if count else []
        assert main(["perplexity", "--model", "demo", "--prompt", STORY, "--nthreads", "1", "--json", *addresses]) == 0
        found.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=0.002)


def test_nodes_of_different_levels_agree(model, nodes):
    """The first worker has no vector instructions; sums, codecs and norms have the same bits there."""
    if _native.isa() == "generic":
        pytest.skip("this machine has no other level than generic")
    with load(model, nodes[1:2], wire_type=DType.F32) as engine:
        expected = tokens(engine)
    with load(model, nodes[:1], wire_type=DType.F32) as engine:
        assert tokens(engine) == expected
    with load(DEMO.model, nodes[1:2]) as engine:
        expected = tokens(engine)
    with load(DEMO.model, nodes[:1]) as engine:
        assert tokens(engine) == expected


def test_small_steps_on_many_nodes(model, nodes):
    with Engine.load(model, num_threads=1) as engine:
        expected = tokens(engine)
    with load(model, nodes[1:3], wire_type=DType.F32, max_batch_tokens=3) as engine:
        assert tokens(engine) == expected


def test_requests_share_the_steps_of_a_cluster(model, nodes):
    prompts = [PROMPT, [9] * 100, [7, 8, 9]]
    with load(model, nodes[1:3], wire_type=DType.F32) as engine:
        alone = [tokens(engine, prompt) for prompt in prompts]
    with load(model, nodes[1:3], wire_type=DType.F32, kv_tokens=1024) as engine:
        together: dict[int, list[int]] = {engine.add(prompt, GREEDY): [] for prompt in prompts}
        while engine.has_work:
            for output in engine.step():
                together[output.request_id].append(output.token_id)
    assert list(together.values()) == alone


def test_what_inference_says_of_the_nodes(nodes, capsys):
    addresses = [worker.address for worker in nodes[1:3]]
    command = [
        "inference",
        "--model",
        "demo",
        "--prompt",
        STORY,
        "--steps",
        "8",
        "--nthreads",
        "1",
        "--temperature",
        "0",
    ]
    assert main([*command, "--workers", *addresses, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    root, *others = result["nodes"]
    assert [node["name"] for node in others] == [f"worker {address}" for address in addresses]
    assert result["slowest"] in [node["name"] for node in result["nodes"]]
    assert sum(node["sent_bytes"] for node in result["nodes"]) == sum(
        node["received_bytes"] for node in result["nodes"]
    )
    assert all(node["steps"] == root["steps"] for node in others)
    assert main([*command, "--workers", *addresses]) == 0
    out = capsys.readouterr().out
    assert "⭕ Network is initialized" in out
    assert re.search(rf"^   worker {addresses[1]} +\d+ ms +\d+ ms +\d+ kB +\d+ kB$", out, re.MULTILINE)
    assert re.search(r"^   slowest: ", out, re.MULTILINE)
    sent = [int(kb) for kb in re.findall(r"^🔶 Pred.*Sent +(\d+) kB", out, re.MULTILINE)]
    assert sum(sent) > 0
