"""Assembling slices from tiles gives a node what loading them from the file gives it."""

import socket
from dataclasses import replace

import numpy as np
import pytest
from cluster_nodes import FakeNode, assert_same_weights, loaded_node  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama import _native
from dllama.cluster import assembly as module
from dllama.cluster import tiles as tiles_module
from dllama.cluster.assembly import Assembly
from dllama.cluster.reading import TileReader
from dllama.config import DType
from dllama.engine import Engine
from dllama.engine.sizing import NodeOptions, make_node_config, settle_size
from dllama.formats.m_file import open_m_file
from dllama.plan import Range, make_plan

SIZES = {
    "hidden_size": 160,
    "num_heads": 12,
    "num_kv_heads": 4,
    "head_dim": 32,
    "intermediate_size": 32 * 70,
    "vocab_size": 9001,
}


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe"])
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("assembly") / "model.m"
    experts = {"moe_intermediate_size": 160} if request.param == "qwen3_moe" else {}
    write_tiny_model(path, tiny_config(request.param, num_layers=1, **SIZES, **experts))
    with open_m_file(path) as file:
        yield file


@pytest.fixture
def small_pieces(monkeypatch):
    """Make slices take many pieces, and tiles many blocks of rows."""
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    monkeypatch.setattr(tiles_module, "_BLOCK_ROWS", 128)
    tiles_module.tiles_of.cache_clear()
    yield
    tiles_module.tiles_of.cache_clear()


def assemble(file, shard, node) -> Assembly:
    assembly, reader = Assembly(file.config, shard, node), TileReader(file)
    for index in assembly.needed:
        assert not assembly.is_complete
        assembly.take(index, reader.read(assembly.tiles[index]))
    assert assembly.is_complete
    return assembly


@pytest.mark.parametrize(("world_size", "shares"), [(1, None), (2, None), (3, [3, 1, 1]), (4, [1, 5, 2, 2])])
def test_rows_are_those_of_the_file(file, world_size, shares):
    for shard in make_plan(file.config, world_size, shares).shards:
        node = FakeNode(file.config, shard)
        assemble(file, shard, node)
        assert_same_weights(node, loaded_node(file, shard))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_rows_are_those_of_the_file_in_small_pieces(file, world_size):
    for shard in make_plan(file.config, world_size).shards:
        node = FakeNode(file.config, shard)
        assemble(file, shard, node)
        assert_same_weights(node, loaded_node(file, shard))


@pytest.mark.parametrize("ranges", [{"vocab": Range(33, 1090)}, {"kv_heads": Range(1, 2)}, {"ffn": Range(32, 128)}])
def test_slices_that_begin_and_end_inside_tiles(file, ranges):
    shard = replace(make_plan(file.config).shards[0], **ranges)
    node = FakeNode(file.config, shard)
    assemble(file, shard, node)
    assert_same_weights(node, loaded_node(file, shard))


@pytest.mark.usefixtures("small_pieces")
def test_rows_that_remain_of_a_tile_have_room_beside_the_next(tmp_path):
    sizes = {"hidden_size": 160, "num_heads": 2, "head_dim": 32, "intermediate_size": 64, "vocab_size": 9001}
    write_tiny_model(tmp_path / "model.m", tiny_config(**sizes))  # tiles of lm_head are the largest, 128 rows
    with open_m_file(tmp_path / "model.m") as file:
        shard = replace(make_plan(file.config).shards[0], vocab=Range(32, 9001))
        node = FakeNode(file.config, shard)
        assemble(file, shard, node)
        assert_same_weights(node, loaded_node(file, shard))


def test_a_node_without_attention(file):
    shard = replace(make_plan(file.config, 2).shards[1], heads=Range(0, 0), kv_heads=Range(0, 0))
    node, expected = FakeNode(file.config, shard), FakeNode(file.config, shard)
    for name in ("q_norm", "k_norm"):  # norms of heads that the node does not have
        del node.weights[f"layers.0.{name}"]
    assemble(file, shard, node)
    assert node.is_whole
    assert set(expected.weights) - set(node.weights) == {"layers.0.q_norm", "layers.0.k_norm"}
    assert not any("q_proj" in name or "o_proj" in name for name in node.weights)


def test_what_is_not_next_is_refused(file):
    shard = make_plan(file.config, 2).shards[1]
    assembly, reader = Assembly(file.config, shard, FakeNode(file.config, shard)), TileReader(file)
    first, second = assembly.needed[:2]
    data = reader.read(assembly.tiles[first])
    with pytest.raises(ValueError, match=f"tile {second} is not the next"):
        assembly.take(second, reader.read(assembly.tiles[second]))
    for wrong in (data[:-1], bytes(len(data) + 1), b""):
        with pytest.raises(ValueError, match=f"has {len(data)} bytes, not {len(wrong)}"):
            assembly.take(first, wrong)
    assembly.take(first, data)
    with pytest.raises(ValueError, match="is not the next"):
        assembly.take(first, data)
    with pytest.raises(ValueError, match="is not the next"):
        assemble(file, shard, FakeNode(file.config, shard)).take(first, data)


@pytest.mark.parametrize("weight_type", DType)
def test_a_real_node_computes_the_same(tmp_path, weight_type):
    write_tiny_model(tmp_path / "model.m", tiny_config(weight_type=weight_type, vocab_size=1500))
    options = NodeOptions()
    with Engine.load(tmp_path / "model.m", num_threads=1) as engine:
        expected = engine.logits([1, 2, 3])
    file = open_m_file(tmp_path / "model.m")
    plan = make_plan(file.config)
    size = settle_size(file.config, plan, 0, options, 1 << 40)
    config = make_node_config(file.config, plan, options, size.max_seq_len, size.num_pages, size.num_slots)
    node = _native.Node(config, _native.Group())
    assemble(file, plan.shards[0], node)
    with Engine(node, file, None, options, size) as engine:
        np.testing.assert_array_equal(engine.logits([1, 2, 3]), expected)


def test_a_real_node_takes_every_slice_of_a_plan(file):
    plan, options = make_plan(file.config, 3, [3, 1, 1]), NodeOptions()
    for rank, shard in enumerate(plan.shards):
        size = settle_size(file.config, plan, rank, options, 1 << 40)
        config = make_node_config(file.config, plan, options, size.max_seq_len, size.num_pages, size.num_slots)
        pairs = [socket.socketpair() for _ in range(2)]
        assemble(file, shard, _native.Node(config, _native.Group(rank, [pair[0].fileno() for pair in pairs])))
        for end in (end for pair in pairs for end in pair):
            end.close()
