"""Tiles: every byte of a tensor is in exactly one, whatever the plan, and a shard's tiles hold all that it owns."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.cluster.reading import TileReader
from dllama.cluster.tiles import Tile, num_tiles, overlap, tiles_for, tiles_of
from dllama.config import DType, ModelConfig
from dllama.formats.m_file import open_m_file
from dllama.formats.m_layout import tensors_in_order
from dllama.plan import Range, make_plan, max_world_size, tensor_slice


def llama_1b(**changes) -> ModelConfig:
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64}
    return tiny_config(**(sizes | {"vocab_size": 128256} | changes))


@st.composite
def configs(draw) -> ModelConfig:
    group_size, head_dim = draw(st.integers(1, 6)), 2 * draw(st.integers(1, 48))
    num_kv_heads = 32 // math.gcd(32, group_size * head_dim) * draw(st.integers(1, 6))
    model_type = draw(st.sampled_from(["llama", "qwen3", "qwen3_moe"]))
    config = tiny_config(
        model_type=model_type,
        weight_type=draw(st.sampled_from(DType)),
        num_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_size=32 * draw(st.integers(1, 140)),
        intermediate_size=32 * draw(st.integers(1, 300)),
        moe_intermediate_size=32 * draw(st.integers(1, 30)) if model_type == "qwen3_moe" else 0,
        vocab_size=draw(st.integers(1, 9000)),
    )
    assert config.problem() is None
    return config


def by_tensor(tiles) -> dict[str, list[Tile]]:
    tensors: dict[str, list[Tile]] = {}
    for tile in tiles:
        tensors.setdefault(tile.tensor, []).append(tile)
    return tensors


@settings(max_examples=40)
@given(configs())
def test_tiles_make_up_every_tensor_in_order(config):
    infos = {info.name: info for info in tensors_in_order(config) if info.name != "embed_tokens"}
    tensors = by_tensor(tiles_of(config))
    assert list(tensors) == list(infos)
    for name, tiles in tensors.items():
        info = infos[name]
        assert sum(tile.num_bytes for tile in tiles) == info.nbytes
        row, column = 0, 0  # where the next tile must begin
        for tile in tiles:
            assert (tile.rows.begin, tile.columns.begin) == (row, column)
            column = tile.columns.end % info.cols
            row = row if column else tile.rows.end
        assert (row, column) == (info.rows, 0)


@settings(max_examples=40)
@given(configs(), st.data())
def test_the_tiles_of_a_shard_are_those_that_it_needs(config, data):
    world_size = data.draw(st.integers(1, max_world_size(config)))
    tiles = tiles_of(config)
    for shard in make_plan(config, world_size).shards:
        needed = set(tiles_for(config, shard, tiles))
        covered: dict[str, int] = {}
        for index, tile in enumerate(tiles):
            part = tensor_slice(config, shard, tile.tensor)
            rows, columns = overlap(tile.rows, part.rows), overlap(tile.columns, part.columns)
            area = max(rows.size, 0) * max(columns.size, 0)
            assert (area > 0) == (index in needed)
            covered[tile.tensor] = covered.get(tile.tensor, 0) + area
        for name, area in covered.items():
            part = tensor_slice(config, shard, name)
            assert area == part.rows.size * part.columns.size


def test_sizes_of_a_real_model():
    tensors = by_tensor(tiles_of(llama_1b()))
    first = {name.rpartition(".")[2]: (tiles[0].rows.size, tiles[0].columns.size) for name, tiles in tensors.items()}
    assert first["q_proj"] == first["k_proj"] == first["v_proj"] == (64, 2048)
    assert first["o_proj"] == (2048, 64)
    assert first["gate_proj"] == first["up_proj"] == (128, 2048)
    assert first["down_proj"] == (2048, 128)
    assert first["lm_head"] == (1024, 2048)
    assert first["norm"] == (1, 2048)
    assert len(tensors["layers.0.down_proj"]) == 64


def test_experts_are_cut_into_few_tiles():
    config = tiny_config("qwen3_moe", hidden_size=2048, moe_intermediate_size=768)
    tensors = by_tensor(tiles_of(config))
    sizes = {name: [(tile.rows.size, tile.columns.size) for tile in tiles] for name, tiles in tensors.items()}
    assert sizes["layers.0.experts.7.gate_proj"] == sizes["layers.0.experts.7.up_proj"] == [(128, 2048)] * 6
    assert sizes["layers.0.experts.7.down_proj"] == [(2048, 128)] * 6
    assert sizes["layers.0.router"] == [(8, 2048)]
    assert num_tiles(config) == sum(map(len, tensors.values()))


def test_long_routers_are_cut_into_blocks_of_rows():
    config = tiny_config("qwen3_moe", hidden_size=1 << 16, num_experts=100)
    routers = by_tensor(tiles_of(config))["layers.0.router"]
    assert [(tile.rows, tile.columns.size) for tile in routers] == [(Range(0, 64), 1 << 16), (Range(64, 100), 1 << 16)]


def test_small_heads_are_cut_between_blocks():
    tiles = by_tensor(tiles_of(tiny_config()))["layers.0.o_proj"]
    assert [tile.columns for tile in tiles] == [Range(0, 32), Range(32, 64)]


def test_blocks_of_long_rows_have_fewer_of_them():
    config = llama_1b(hidden_size=8192, intermediate_size=28672, weight_type=DType.F32)
    row_bytes = {info.name: info.row_bytes for info in tensors_in_order(config)}
    cut = [tile for tile in tiles_of(config) if tile.tensor.endswith(("o_proj", "down_proj"))]
    assert {tile.rows.size for tile in cut if tile.tensor.endswith("down_proj")} == {128}
    assert all(tile.rows.begin % 64 == 0 and tile.rows.size * row_bytes[tile.tensor] <= 16 << 20 for tile in cut)


def test_an_owner_of_nothing_needs_only_norms():
    config = tiny_config()
    empty = Range(0, 0)
    shard = make_plan(config).shards[0].__class__(heads=empty, kv_heads=empty, ffn=empty, vocab=empty)
    tiles = tiles_of(config)
    assert {tiles[index].tensor.rpartition("norm")[1] for index in tiles_for(config, shard, tiles)} == {"norm"}


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_moe"])
def test_the_bytes_of_tiles_are_those_of_the_rows(tmp_path, model_type):
    write_tiny_model(tmp_path / "model.m", tiny_config(model_type, intermediate_size=160))
    with open_m_file(tmp_path / "model.m") as file:
        reader = TileReader(file)
        read = {tile: reader.read(tile) for tile in tiles_of(file.config)}  # kept: none may share memory with the next
        for tile, data in read.items():
            tensor = file.tensors[tile.tensor]
            begin, end = (tensor.dtype.row_bytes(column) for column in (tile.columns.begin, tile.columns.end))
            expected = tensor.read_rows(tile.rows.begin, tile.rows.end)[:, begin:end]
            np.testing.assert_array_equal(np.asarray(data).reshape(expected.shape), expected)
