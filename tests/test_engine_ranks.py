"""One model on several ranks, in one process: each rank its own node in a thread, linked by socket pairs."""

import socket
import struct
import threading
import time

import numpy as np
import pytest
from engines import SAMPLINGS  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]
from ranks import make_groups, ranks  # type: ignore[import-not-found]

from dllama import _native
from dllama.config import DType
from dllama.engine import Engine, EngineStopped, SamplingParams, sampling, sizing
from dllama.engine.sizing import NodeOptions, make_node_config, settle_size
from dllama.errors import WorkerLost
from dllama.formats.m_file import open_m_file
from dllama.plan import Exchange, make_plan, step_traffic

TOKEN_IDS = np.random.default_rng(3).integers(0, 320, 150).tolist()


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
    query = 16  # each row may be asked for as logits or as candidates, whose slice is kept beside them
    assert buffers(0, 10) - buffers(0, 1) == 9 * (4 * (384 + 256) + query)
    assert buffers(1, 10) - buffers(1, 1) == 9 * (4 * (192 + 192) + query)


def test_what_samplers_ask_of_a_step_is_what_nodes_have_room_for():
    per_row = SamplingParams(top_k=sampling._MAX_TOP_K)
    query = sampling.Sampler(per_row, 1, 100_000).query([1])
    assert query
    assert sizing._MAX_SLOTS * max(query.count, 100) <= _native.MAX_CANDIDATES
    assert sizing._MAX_SLOTS * sampling._MAX_IDS <= _native.MAX_QUERY_IDS


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
    config = make_node_config(file.config, plan, options, size.max_seq_len, size.num_pages, size.num_slots)
    groups = make_groups(2)
    engine = Engine(_native.Node(config, groups[0]), file, None, options, size)  # nobody follows
    timer = threading.Timer(0.3, groups[0].abort, ["worker 10.0.0.2 is gone"])
    timer.start()
    with engine, pytest.raises(EngineStopped, match=r"a step failed: .*worker 10\.0\.0\.2 is gone"):
        engine.logits([1, 2, 3])
    timer.join()


@pytest.mark.parametrize("scatter_from", [0, 1])
@pytest.mark.parametrize("world_size", [2, 4])
def test_tokens_of_every_sampling_are_those_of_one_node(model, world_size, scatter_from):
    def outputs(engine, values):
        params = SamplingParams(max_tokens=25, seed=11, logprobs=3, **values)
        return list(engine.generate(TOKEN_IDS[:20], params))

    with (
        Engine.load(model, num_threads=1) as one,
        ranks(model, world_size, wire_type=DType.F32) as several,
    ):
        several._executor.node.scatter_from = scatter_from
        for values in SAMPLINGS.values():
            expected, ours = outputs(one, values), outputs(several, values)
            assert [output.token_id for output in ours] == [output.token_id for output in expected]
            for output, other in zip(ours, expected, strict=True):
                assert output.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert [top[0] for top in output.top_logprobs] == [top[0] for top in other.top_logprobs]


@pytest.mark.parametrize("wire_type", TOLERANCES)
def test_scatter_gives_the_bits_of_direct_exchange(model, wire_type):
    with ranks(model, 3, wire_type=wire_type) as engine:
        node = engine._executor.node
        expected = engine.logits(TOKEN_IDS)
        assert all(node.probe(count, scatter) > 0 for count in (1, 100) for scatter in (False, True))
        node.scatter_from = 2
        np.testing.assert_array_equal(engine.logits(TOKEN_IDS), expected)


class WideNodes:
    """Nodes with exchanges as those of Llama 3.2 1B on two nodes, and next to no weights, all of them zero."""

    def __init__(self, groups: list[_native.Group]) -> None:
        shards = [
            _native.Shard(
                num_heads=1, num_kv_heads=1, intermediate_size=32, vocab_begin=begin, vocab_end=begin + 64_128
            )
            for begin in (0, 64_128)
        ]
        config = _native.NodeConfig(
            hidden_size=2048,
            head_dim=64,
            vocab_size=128_256,
            rms_norm_eps=1e-5,
            rope_frequencies=np.ones(32, np.float32),
            layers=[_native.LayerSpec()] * 16,
            weight_type=DType.Q40,
            kv_type=DType.F16,
            wire_type=DType.Q80,
            shards=shards,
            num_threads=1,
            max_tokens=64,
            max_rows=1,
            num_pages=2,
            num_slots=1,
        )
        self.root, self.other = (_native.Node(config, group) for group in groups)
        self.thread = threading.Thread(target=self.other.follow)
        self.thread.start()

    def step(self, first: int, count: int, queries: list[_native.CandidateQuery]) -> dict[str, int]:
        """Run a step; give what it cost."""
        before = self.root.counters()
        wants = [[count - 1, _native.WANT_CANDIDATES, 0]] if queries else np.empty((0, 3))
        spans, pages = np.array([[0, first, count]], np.int32), np.array([[0, 0, 0], [0, 1, 1]], np.int32)
        self.root.step(np.ones((count, 2048), np.float32), spans, pages, np.array(wants, np.int32), queries)
        return {name: value - before[name] for name, value in self.root.counters().items()}

    def stop(self) -> None:
        self.root.stop()
        self.thread.join(10)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def bytes_received(end: socket.socket) -> int:
    """What the system counted: ``tcpi_bytes_received`` of ``struct tcp_info``."""
    return struct.unpack_from("<Q", end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 128)[0]


def test_bytes_of_a_token_and_of_a_prompt():
    ends = tcp_pair()
    nodes = WideNodes([_native.Group(rank, [end.fileno()]) for rank, end in enumerate(ends)])
    query = _native.CandidateQuery(1, 128_256, 1.0, np.empty(0, np.int32))
    prompt, token = nodes.step(0, 64, []), nodes.step(64, 1, [query])
    assert token["sent_bytes"] <= 78 * 1024
    assert token["received_bytes"] <= 80 * 1024
    assert prompt["received_bytes"] <= 64 * token["received_bytes"]  # no logits
    assert token["sync_us"] + token["compute_us"] > 0
    nodes.stop()
    counters = nodes.root.counters()
    assert counters["sent_bytes"] == bytes_received(ends[1])
    assert counters["received_bytes"] == bytes_received(ends[0])
    for end in ends:
        end.close()


def test_an_idle_group_uses_no_cpu(model):
    with ranks(model, 3) as engine:
        engine.logits([1, 2, 3])
        time.sleep(0.02)  # followers look out for the next step for a moment
        begin = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - begin < 0.03


class FailingNode:
    """A node that computes, but whose group fails while a token is drawn."""

    def __init__(self, node, error: Exception) -> None:
        self.step, self.stop, self._error = node.step, node.stop, error

    def draw(self, index, coin):
        raise self._error


ANY_TOKEN = SamplingParams(temperature=1.0, top_p=1.0)


def test_a_node_lost_while_a_token_is_drawn_stops_the_engine(model, monkeypatch):
    with ranks(model, 2) as engine:
        lost = _native.GroupFailedError("worker 10.0.0.2 is gone")
        monkeypatch.setattr(engine._executor, "_node", FailingNode(engine._executor._node, lost))
        with pytest.raises(EngineStopped, match=r"a step failed: worker 10\.0\.0\.2 is gone; load"):
            list(engine.generate([1, 2, 3], ANY_TOKEN))
        with pytest.raises(EngineStopped, match=r"worker 10\.0\.0\.2 is gone"):
            engine.check()


def test_later_calls_name_the_node_that_was_lost_while_a_token_was_drawn(model, monkeypatch):
    def explain(error):
        return WorkerLost("10.0.0.2:9999", "it is silent")

    with ranks(model, 2) as engine:
        failing = FailingNode(engine._executor._node, _native.GroupFailedError("rank 1 closed its connection"))
        monkeypatch.setattr(engine._executor, "_node", failing)
        monkeypatch.setattr(engine._executor, "_explain", explain)
        with pytest.raises(WorkerLost, match=r"10\.0\.0\.2:9999.* it is silent"):
            list(engine.generate([1, 2, 3], ANY_TOKEN))
        with pytest.raises(EngineStopped, match=r"10\.0\.0\.2:9999.* it is silent"):
            engine.check()


def test_logits_that_are_no_numbers_do_not_blame_the_root_s_file_alone(model, monkeypatch):
    with ranks(model, 2) as engine:
        failing = FailingNode(engine._executor._node, ValueError("its logits are not finite numbers"))
        monkeypatch.setattr(engine._executor, "_node", failing)
        for _ in range(2):
            with pytest.raises(EngineStopped, match="numbers; is the model file or a node damaged"):
                list(engine.generate([1, 2, 3], ANY_TOKEN))


def test_errors_name_the_peer():
    root, other = socket.socketpair()
    group = _native.Group(0, [root.fileno()], ["worker 10.0.0.2:9999"])
    other.close()
    config = tiny_config(weight_type=DType.F32)
    node_config = make_node_config(config, make_plan(config, 2), NodeOptions(max_batch_tokens=8), 64, 1, 1)
    node = _native.Node(node_config, group)
    failed_before = group.failed_rank
    with pytest.raises(_native.GroupFailedError, match=r"worker 10\.0\.0\.2:9999"):
        node.probe(1, scatter=False)
    assert (failed_before, group.failed_rank) == (None, 1)
    root.close()
