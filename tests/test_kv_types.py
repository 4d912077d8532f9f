"""Keys and values as Q80: what they cost, how little they change, and that every node has them."""

import json

import numpy as np
import pytest
from cluster_world import WorkerProcess, load, setup_of  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.cli import main
from dllama.cluster.addresses import Address
from dllama.cluster.session import check_setup
from dllama.config import DType
from dllama.engine import Engine
from dllama.errors import UsageError

STORY = (
    "Once upon a time, there was a shy badger called Bella in a village near the sea. Bella had a blue bag with many "
    "pockets, and she loved baking sweet bread. Bella had never seen the waterfall. One gray morning, she decided to "
    "go there. Bella took a bag with warm milk and waved goodbye. On the way, she met Lottie, a dreamy rabbit."
)
HERE = [Address("127.0.0.1", 9)]
IDS = [5, 6, 7, 8] * 40


def write(folder, head_dim=32, weight_type=DType.F32):
    path = folder / "model.m"
    write_tiny_model(path, tiny_config(weight_type=weight_type, head_dim=head_dim, max_seq_len=256))
    return path


@pytest.mark.parametrize("head_dim", [16, 24, 32, 64])
@pytest.mark.parametrize(("kv_type", "bits", "scale"), [(DType.F32, 32, 0), (DType.F16, 16, 0), (DType.Q80, 8, 4)])
def test_memory_is_a_scale_and_a_byte_per_value(tmp_path, head_dim, kv_type, bits, scale):
    with Engine.load(write(tmp_path, head_dim), num_threads=1, kv_type=kv_type, kv_tokens=256) as engine:
        heads = engine.config.num_layers * engine.config.num_kv_heads
        assert engine.memory.kv == 256 * heads * 2 * (head_dim * bits // 8 + scale)
        assert engine.kv_type is kv_type
        assert np.isfinite(engine.logits(IDS)).all()


def test_perplexity_of_the_bundled_model_hardly_moves(capsys):
    """A value is rounded to steps of 1/127 of its head's largest, by 0.3 steps on average: 1 % of a typical one."""
    found = {}
    for kv_type in ("f32", "f16", "q80"):
        assert main(["perplexity", "--model", "demo", "--prompt", STORY, "--kv-type", kv_type, "--json"]) == 0
        found[kv_type] = json.loads(capsys.readouterr().out)["perplexity"]
    assert found["q80"] != found["f16"] != found["f32"]
    assert found["q80"] == pytest.approx(found["f16"], rel=0.005)


def test_bench_and_plan_know_the_type(tmp_path, capsys):
    model = str(write(tmp_path))
    assert main(["bench", "-m", model, "-p", "0", "-n", "2", "-r", "1", "--kv-type", "q80", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)[0]
    assert (record["type_k"], record["type_v"]) == ("q80", "q80")
    kv_bytes = []
    for kv_type in ("f32", "q80"):
        assert main(["plan", "--model", model, "--nodes", "2", "--kv-type", kv_type, "--json"]) == 0
        kv_bytes.append(json.loads(capsys.readouterr().out)["nodes"][0]["kv_bytes"])
    assert kv_bytes[1] * 4 * 32 == kv_bytes[0] * (32 + 4)


def test_two_nodes_give_what_one_gives(tmp_path):
    model = write(tmp_path)
    with Engine.load(model, num_threads=1, kv_type=DType.Q80) as engine:
        expected, exact = engine.logits(IDS), engine.memory.kv
    worker = WorkerProcess(tmp_path / "cache")
    try:
        with load(model, [worker], wire_type=DType.F32, kv_type=DType.Q80) as engine:
            logits = engine.logits(IDS)
            assert engine.memory.kv * 2 == exact
    finally:
        worker.stop()
    # A key that lies on the border of two steps may fall to either side: few do.
    error = np.abs(logits - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(error) < 1e-5
    assert error.max() < 0.02


def test_a_worker_takes_the_types_that_pages_have(tmp_path):
    model = write(tmp_path)
    _, options, size = check_setup(setup_of(model, HERE, kv_type=DType.Q80), 1)
    assert options.kv_type is DType.Q80
    assert size.memory.kv < check_setup(setup_of(model, HERE), 1)[2].memory.kv
    with pytest.raises(UsageError, match="kv_type: expected F16, F32 or Q80"):
        check_setup(setup_of(model, HERE, kv_type=DType.Q40), 1)
