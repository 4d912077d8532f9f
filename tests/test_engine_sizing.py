"""One context for all nodes of a cluster, as each node's memory allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama import _native
from dllama.config import ModelConfig
from dllama.engine import sizing
from dllama.engine.sizing import NodeOptions, settle_size, settle_sizes
from dllama.errors import NotEnoughMemory
from dllama.plan import Shard, make_plan

CONFIG = tiny_config(num_heads=8, num_kv_heads=4, max_seq_len=4096)
PLAN = make_plan(CONFIG, 2, [3, 1])
OPTIONS = NodeOptions()


def totals(kv_tokens: int) -> list[int]:
    """Bytes that each rank needs with room for so many tokens."""
    sizes = settle_sizes(CONFIG, PLAN, NodeOptions(max_seq_len=kv_tokens), [None, None])
    return [size.memory.total for size in sizes]


def test_the_plan_is_uneven():
    assert [shard.kv_heads.size for shard in PLAN.shards] == [3, 1]
    assert totals(64)[0] > totals(64)[1]


def test_all_that_is_wanted_fits():
    sizes = settle_sizes(CONFIG, PLAN, OPTIONS, totals(4096))
    assert [(size.max_seq_len, size.num_pages) for size in sizes] == [(4096, 64)] * 2
    assert [size.memory.total for size in sizes] == totals(4096)


@given(st.integers(256, 4095), st.integers(0, 1))
def test_the_scarcest_node_decides_for_all(kv_tokens, rank):
    free: list[int | None] = [None, None]
    free[rank] = totals(kv_tokens)[rank]
    sizes = settle_sizes(CONFIG, PLAN, OPTIONS, free)
    assert len({(size.max_seq_len, size.num_pages, size.num_slots) for size in sizes}) == 1
    assert sizes[rank].memory.total <= totals(kv_tokens)[rank]
    assert sizes[0].max_seq_len == -(-kv_tokens // 64) * 64  # a page is whole
    assert settle_size(CONFIG, PLAN, rank, OPTIONS, totals(kv_tokens)[rank]) == sizes[rank]


def test_several_scarce_nodes():
    free = [totals(1024)[0], totals(512)[1]]
    assert [size.max_seq_len for size in settle_sizes(CONFIG, PLAN, OPTIONS, free)] == [512, 512]


def test_the_node_that_lacks_memory_is_named():
    asked = NodeOptions(max_seq_len=2048)
    free = [totals(1024)[0], totals(512)[1]]
    with pytest.raises(NotEnoughMemory, match=r"^worker 1 needs \d+ MiB .*; it fits with a context of 512 tokens"):
        settle_sizes(CONFIG, PLAN, asked, free)
    with pytest.raises(NotEnoughMemory, match=r"^the root needs .*; it fits with a context of 1024 tokens"):
        settle_sizes(CONFIG, PLAN, asked, [free[0], None])
    with pytest.raises(NotEnoughMemory, match=r"^10\.0\.0\.2:9999 needs "):
        settle_sizes(CONFIG, PLAN, asked, free, ["root", "10.0.0.2:9999"])
    with pytest.raises(NotEnoughMemory, match=r"^worker 1 needs .* 1 MiB are free; free some, or use a smaller model$"):
        settle_sizes(CONFIG, PLAN, OPTIONS, [totals(1024)[0], 1 << 20])


def test_a_node_alone_has_no_name():
    with pytest.raises(NotEnoughMemory, match=r"^needs \d+ MiB"):
        settle_sizes(CONFIG, make_plan(CONFIG), OPTIONS, [1 << 20])


def test_a_context_that_was_asked_for_is_not_made_shorter():
    with pytest.raises(NotEnoughMemory, match=r"it fits with room for 1024 tokens$"):
        settle_sizes(CONFIG, PLAN, NodeOptions(kv_tokens=2048), [totals(1024)[0], None])
    with pytest.raises(NotEnoughMemory, match="a context of 192 tokens"):  # shorter than anybody would expect
        settle_sizes(CONFIG, PLAN, OPTIONS, [None, totals(192)[1]])


def test_weights_are_measured_once_of_each_rank_that_is_asked_for(monkeypatch):
    measured = []

    def idle_bytes(_: ModelConfig, shard: Shard) -> int:
        measured.append(shard)
        return 0

    monkeypatch.setattr(sizing, "idle_bytes", idle_bytes)
    free = totals(512)
    measured.clear()
    settle_sizes(CONFIG, PLAN, OPTIONS, free)
    assert measured == list(PLAN.shards)
    measured.clear()
    settle_size(CONFIG, PLAN, 1, OPTIONS, free[1])
    assert measured == [PLAN.shards[1]]


@pytest.mark.parametrize("name", ["weight_type", "kv_type", "wire_type"])
def test_the_core_is_told_every_number_type(monkeypatch, name):
    make = _native.NodeConfig

    def without(**given):
        return make(**{each: value for each, value in given.items() if each != name})

    monkeypatch.setattr(_native, "NodeConfig", without)
    with pytest.raises(TypeError, match=f"^{name} must be given$"):
        sizing.make_node_config(CONFIG, PLAN, OPTIONS, 64, 1, 1)
