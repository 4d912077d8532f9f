"""What a worker checks of a root's plan before it agrees to anything."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from cluster_world import (  # type: ignore[import-not-found]
    setup_of,
)
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama import machine
from dllama.cluster.addresses import Address
from dllama.cluster.opening import settle_cluster
from dllama.cluster.protocol import Facts, Setup
from dllama.cluster.session import check_setup
from dllama.cluster.tiles import num_tiles, tiles_of
from dllama.config import DType, LayerSpec, RopeScaling
from dllama.engine.sizing import NodeOptions, settle_sizes
from dllama.errors import ClusterError, DllamaError, NotEnoughMemory
from dllama.plan import make_plan

if TYPE_CHECKING:
    from dllama.cluster import Cluster

HERE = [Address("127.0.0.1", 9)]


def of_config(setup: Setup, **changes: object) -> Setup:
    config = replace(setup.config, **changes)  # type: ignore[arg-type]
    with suppress(Exception):
        return msgspec.structs.replace(setup, config=config, plan=make_plan(config, len(setup.names)).digest())
    return msgspec.structs.replace(setup, config=config)


@pytest.fixture
def setup(tiny) -> Setup:
    return setup_of(tiny.model, HERE)


def test_a_sound_setup_is_accepted(setup):
    plan, options, size = check_setup(setup, 3)
    assert plan.digest() == setup.plan
    assert (options.num_threads, size.max_seq_len, size.num_pages) == (3, 64, 1)


@pytest.mark.parametrize("rank", [-1, 0, 2, 1 << 40])
def test_ranks_out_of_range(setup, rank):
    with pytest.raises(ClusterError, match=f"the root sent rank {rank} of 2 nodes at 1 addresses"):
        check_setup(msgspec.structs.replace(setup, rank=rank), 1)


@pytest.mark.parametrize(("names", "hosts"), [(0, 0), (1, 0), (2, 0), (2, 2), (3, 1), (1025, 1024)])
def test_worlds_that_cannot_be(setup, names, hosts):
    with pytest.raises(ClusterError, match=f"the root sent rank 1 of {names} nodes at {hosts} addresses"):
        check_setup(msgspec.structs.replace(setup, names=["x"] * names, hosts=[("h", 1)] * hosts), 1)


@pytest.mark.parametrize(
    "shares", [[1.0], [1.0] * 3, [0.0, 1.0], [-1.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]]
)
def test_shares_that_cannot_be(setup, shares):
    with pytest.raises(DllamaError, match="shares: expected 2 positive numbers"):
        check_setup(msgspec.structs.replace(setup, shares=shares), 1)


def test_another_plan(setup):
    for other in (
        msgspec.structs.replace(setup, plan="0" * 64),
        msgspec.structs.replace(setup, shares=[3.0, 1.0]),
        msgspec.structs.replace(setup, plan=""),
    ):
        with pytest.raises(ClusterError, match="root and worker compute different plans; install the same version"):
            check_setup(other, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"hidden_size": -64},
        {"hidden_size": 1 << 62},
        {"hidden_size": 65},
        {"num_layers": 0},
        {"num_layers": 1 << 40},
        {"num_layers": 3},
        {"layers": ()},
        {"num_heads": 0},
        {"num_kv_heads": 0},
        {"num_kv_heads": 3},
        {"head_dim": 7},
        {"vocab_size": 0},
        {"vocab_size": 1 << 40},
        {"max_seq_len": 0},
        {"intermediate_size": 1 << 50},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": 0.0},
        {"rope_theta": float("inf")},
        {"rope_scaling": RopeScaling(0.0, 1.0, 4.0, 8192)},
    ],
)
def test_models_that_cannot_be(setup, changes):
    with pytest.raises(ClusterError, match="the root sent a model that cannot be: "):
        check_setup(of_config(setup, **changes), 1)


@pytest.mark.parametrize("name", ["max_seq_len", "kv_tokens", "max_batch_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1 << 40, 1 << 63])
def test_sizes_out_of_range(setup, name, value):
    with pytest.raises(DllamaError, match=f"{name}: expected a whole number from 1 to"):
        check_setup(msgspec.structs.replace(setup, **{name: value}), 1)


LARGEST = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "num_heads": 4096,
    "num_kv_heads": 4096,
    "head_dim": 4096,
    "vocab_size": 1 << 24,
    "max_seq_len": 1 << 28,
}


def test_products_do_not_overflow(setup):
    """The largest sizes that each are allowed: refused for the size of the lists, or the memory, in a moment."""
    begin = time.monotonic()
    largest = of_config(setup, **LARGEST, num_layers=4096, layers=(LayerSpec(),) * 4096)
    with pytest.raises(ClusterError, match="the root sent a model of 279223738433 tiles"):
        check_setup(largest, 1)
    wide = of_config(setup, hidden_size=1 << 17, vocab_size=1 << 24)
    with pytest.raises(NotEnoughMemory, match=r"needs \d+ MiB of memory .* but \d+ MiB are free"):
        check_setup(msgspec.structs.replace(wide, max_seq_len=1 << 24, kv_tokens=1 << 24, max_batch_tokens=4096), 1)
    assert time.monotonic() - begin < 2


def test_tiles_are_counted_as_they_are_cut():
    for changes in ({}, {"vocab_size": 5000, "intermediate_size": 8192}, {"hidden_size": 4096, "num_layers": 1}):
        config = tiny_config(weight_type=DType.F32, **changes)
        config = replace(config, layers=config.layers[: config.num_layers])
        assert num_tiles(config) == len(tiles_of(config))


def test_a_context_that_memory_limits_is_one_that_the_worker_takes(setup, monkeypatch):
    """Free memory is looked at twice, seconds apart, and a worker needs some for lists."""
    layers = (LayerSpec(),) * 16
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64}
    config = replace(setup.config, **sizes, num_layers=16, layers=layers, max_seq_len=1 << 17)
    plan, options = make_plan(config, 2), NodeOptions(max_seq_len=2048)
    free = max(size.memory.total for size in settle_sizes(config, plan, options, [None, None])) + (64 << 20)
    monkeypatch.setattr(machine, "available_memory", lambda: free)
    peer = SimpleNamespace(facts=Facts("commit", "avx2", 1, free))
    cluster = SimpleNamespace(world_size=2, shares=None, names=["the root", "worker"], peers=[peer])
    context = settle_cluster(config, NodeOptions(), cast("Cluster", cluster))[1][0].max_seq_len
    assert 2048 < context < 8192
    asked = msgspec.structs.replace(setup, config=config, plan=plan.digest(), max_seq_len=context, kv_tokens=context)
    asked = msgspec.structs.replace(asked, max_batch_tokens=512, kv_type=options.kv_type_for(config))
    monkeypatch.setattr(machine, "available_memory", lambda: free - (8 << 20))
    assert check_setup(asked, 1)[2].max_seq_len == context
