"""One model on several ranks, in one process: each rank its own node in a thread, linked by socket pairs."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama import _native
from dllama.config import DType
from dllama.engine import Engine, EngineStopped, SamplingParams, sizing
from dllama.engine.loading import load_weights
from dllama.engine.sizing import NodeOptions, make_node_config, settle_size
from dllama.formats.m_file import open_m_file
from dllama.plan import Exchange, make_plan, step_traffic

TOKEN_IDS = np.random.default_rng(3).integers(0, 320, 150).tolist()


def make_groups(world_size: int) -> list[_native.Group]:
    links: list[dict[int, socket.socket]] = [{} for _ in range(world_size)]
    for a, b in combinations(range(world_size), 2):
        links[a][b], links[b][a] = socket.socketpair()
    groups = [_native.Group(rank, [link[peer].fileno() for peer in sorted(link)]) for rank, link in enumerate(links)]
    for link in links:
        for end in link.values():
            end.close()
    return groups


@contextmanager
def ranks(path, world_size: int, shares=None, scatter_from: int = 0, **options) -> Iterator[Engine]:
    """An engine on rank 0, with followers in threads; it must end all of them."""
    node_options = NodeOptions(**options)
    file = open_m_file(path)
    plan = make_plan(file.config, world_size, shares)
    size = settle_size(file.config, plan, 0, node_options, 1 << 40)
    config = make_node_config(file.config, plan, node_options, size.num_pages, size.num_slots)
    nodes = [_native.Node(config, group) for group in make_groups(world_size)]
    for node, shard in zip(nodes, plan.shards, strict=True):
        load_weights(node, file, shard)
    nodes[0].scatter_from = scatter_from
    threads = [threading.Thread(target=node.follow) for node in nodes[1:]]
    for thread in threads:
        thread.start()
    try:
        with Engine(nodes[0], file, None, node_options, size) as engine:
            yield engine
    finally:
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "model.m"
    sizes = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 160, "vocab_size": 330, "max_seq_len": 256}
    write_tiny_model(path, tiny_config(weight_type=DType.F32, **sizes))
    return path


@pytest.fixture(scope="module")
def logits(model):
    with Engine.load(model, num_threads=1) as engine:
        return engine.logits(TOKEN_IDS)


def error(logits: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, as a part of that of ``expected``."""
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


# What the wire adds. Each exchange rounds the sums it carries: F32 by 2^-24, F16 by 2^-11, Q80 to steps of 1/127 of a
# block's largest value, about 1/100 of its root mean square. Four exchanges of two layers double that.
TOLERANCES = {DType.F32: 1e-6, DType.F16: 2e-3, DType.Q80: 0.03}


@pytest.mark.parametrize("wire_type", TOLERANCES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_together_compute_what_one_computes(model, logits, world_size, wire_type):
    with ranks(model, world_size, wire_type=wire_type) as engine:
        ours = engine.logits(TOKEN_IDS)
        assert error(ours, logits) < TOLERANCES[wire_type]
        assert (engine.counters()["sent_bytes"] > 0) == (world_size > 1)
        if world_size == 1:
            np.testing.assert_array_equal(ours, logits)


@pytest.mark.parametrize("wire_type", TOLERANCES)
@pytest.mark.parametrize("max_batch_tokens", [1, 7])
def test_bits_do_not_depend_on_chunks(model, max_batch_tokens, wire_type):
    with ranks(model, 2, wire_type=wire_type) as engine:
        expected = engine.logits(TOKEN_IDS[:70])
    with ranks(model, 2, wire_type=wire_type, max_batch_tokens=max_batch_tokens) as engine:
        np.testing.assert_array_equal(engine.logits(TOKEN_IDS[:70]), expected)


def test_every_rank_has_room_for_its_part_of_the_logits(model, monkeypatch):
    with open_m_file(model) as file:
        config, plan = file.config, make_plan(file.config, 2)

    def buffers(rank, rows):
        monkeypatch.setattr(sizing, "LOGITS_BYTES", rows * 4 * 330)
        return settle_size(config, plan, rank, NodeOptions(), 1 << 40).memory.buffers

    assert plan.shards[1].vocab.size < 192
    assert buffers(0, 10) - buffers(0, 1) == 9 * 4 * 384
    assert buffers(1, 10) - buffers(1, 1) == 9 * 4 * 192


def test_uneven_shares(model, logits):
    with ranks(model, 3, shares=[1, 3, 1], wire_type=DType.F32) as engine:
        assert error(engine.logits(TOKEN_IDS), logits) < TOLERANCES[DType.F32]


@pytest.mark.parametrize(("world_size", "shares"), [(3, None), (4, None), (4, [1, 3, 2, 2]), (8, None)])
def test_more_ranks_than_kv_heads(tmp_path, world_size, shares):
    sizes = {"num_heads": 16, "num_kv_heads": 2, "intermediate_size": 256, "max_seq_len": 256}
    write_tiny_model(tmp_path / "model.m", tiny_config(weight_type=DType.F32, **sizes))
    with Engine.load(tmp_path / "model.m", num_threads=1) as engine:
        expected = engine.logits(TOKEN_IDS)
    with ranks(tmp_path / "model.m", world_size, shares, wire_type=DType.F32) as engine:
        assert error(engine.logits(TOKEN_IDS), expected) < TOLERANCES[DType.F32]


@pytest.mark.parametrize(("exchange", "scatter_from"), [(Exchange.DIRECT, 0), (Exchange.REDUCE_SCATTER, 1)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_plan_counts_what_the_root_sends(model, world_size, exchange, scatter_from):
    with ranks(model, world_size, scatter_from=scatter_from, wire_type=DType.Q80) as engine:
        engine.add(TOKEN_IDS[:128], SamplingParams(temperature=0.0, max_tokens=4))
        sent = [0]
        for _ in range(3):  # the prompt, a token that opens a page, and one that does not
            engine.step()
            sent.append(engine.counters()["sent_bytes"])
        for step, num_tokens in ((0, 128), (2, 1)):
            counted = step_traffic(engine.config, world_size, DType.Q80, exchange, num_tokens, 1)[0].sent
            assert sent[step + 1] - sent[step] == counted


def test_scores(model):
    with Engine.load(model, num_threads=1) as engine:
        expected = engine.score(TOKEN_IDS)
    with ranks(model, 3, wire_type=DType.F32) as engine:
        assert error(engine.score(TOKEN_IDS), expected) < TOLERANCES[DType.F32]


def test_quantized_models_on_two_ranks(tmp_path):
    write_tiny_model(tmp_path / "q40.m", tiny_config())
    with Engine.load(tmp_path / "q40.m") as engine:
        expected = engine.logits(TOKEN_IDS[:60])
    with ranks(tmp_path / "q40.m", 2) as engine:
        assert error(engine.logits(TOKEN_IDS[:60]), expected) < 2 * TOLERANCES[DType.Q80]  # weights add their own


def test_requests_share_steps_and_survive_preemption(model):
    params = SamplingParams(temperature=0.0, max_tokens=100)
    prompts = [TOKEN_IDS[:60], TOKEN_IDS[60:100], TOKEN_IDS[100:]]
    with ranks(model, 2, wire_type=DType.F32, kv_tokens=1024) as engine:
        expected = [[output.token_id for output in engine.generate(prompt, params)] for prompt in prompts]
    with ranks(model, 2, wire_type=DType.F32, kv_tokens=320) as engine:
        tokens: dict[int, list[int | None]] = {engine.add(prompt, params): [] for prompt in prompts}
        while engine.has_work:
            for output in engine.step():
                tokens[output.request_id].append(output.token_id)
        assert list(tokens.values()) == expected


def test_an_aborted_group_stops_the_engine(model):
    file = open_m_file(model)
    plan, options = make_plan(file.config, 2), NodeOptions()
    size = settle_size(file.config, plan, 0, options, 1 << 40)
    config = make_node_config(file.config, plan, options, size.num_pages, size.num_slots)
    groups = make_groups(2)
    engine = Engine(_native.Node(config, groups[0]), file, None, options, size)  # nobody follows
    timer = threading.Timer(0.3, groups[0].abort, ["worker 10.0.0.2 is gone"])
    timer.start()
    with engine, pytest.raises(EngineStopped, match=r"a step failed: .*worker 10\.0\.0\.2 is gone"):
        engine.logits([1, 2, 3])
    timer.join()
