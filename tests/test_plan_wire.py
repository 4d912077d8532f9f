"""Bytes between nodes, against numbers counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama import _native
from dllama.config import DType, LayerSpec, ModelConfig
from dllama.plan import Exchange, Traffic, step_traffic, wire

KIB = 1024


def one_layer(hidden_size=64, weight_type=DType.Q40) -> ModelConfig:
    return tiny_config(hidden_size=hidden_size, num_layers=1, weight_type=weight_type)


def llama_1b() -> ModelConfig:
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64}
    return tiny_config(**sizes, num_layers=16, layers=(LayerSpec(),) * 16, vocab_size=128256)


def test_pages_are_the_cores():
    assert wire.PAGE_SIZE == _native.PAGE_SIZE


def test_llama_1b_on_two_nodes():
    root, worker = step_traffic(llama_1b(), 2, DType.Q80, Exchange.DIRECT, 1, 1)
    sums, headers = 32 * 64 * 34, 32 * 32  # 32 exchanges of 64 blocks
    frame = 32 + 28 + 2 * 12 + 16 + 64 * 34
    assert (sums, frame) == (68 * KIB, 2276)
    assert root == Traffic(sums + headers + frame, sums + headers + 64)
    assert worker == Traffic(root.received, root.sent)
    assert root.sent <= 78 * KIB
    assert root.received <= 80 * KIB


@pytest.mark.parametrize(("wire_type", "row"), [(DType.Q80, 2 * 34), (DType.F16, 64 * 2), (DType.F32, 64 * 4)])
def test_direct_exchange_of_a_prompt(wire_type, row):
    root, *workers = step_traffic(one_layer(), 3, wire_type, Exchange.DIRECT, 130, 0)
    message, frame = 2 * 32 + 130 * row, 32 + 28 + 3 * 12 + 130 * row  # in two pieces; a span and two page changes
    assert root == Traffic(2 * 2 * message + 2 * frame, 2 * 2 * message)
    assert workers == [Traffic(2 * 2 * message, 2 * 2 * message + frame)] * 2


@pytest.mark.parametrize(
    ("weight_type", "block"), [(DType.Q40, 36), (DType.Q80, 36), (DType.F16, 128), (DType.F32, 128)]
)
def test_reduce_scatter_by_hand(weight_type, block):
    root, worker = step_traffic(one_layer(96, weight_type), 2, DType.F16, Exchange.REDUCE_SCATTER, 1, 1)
    frame = 32 + 28 + 2 * 12 + 16 + 96 * 2
    # Of three blocks the root owns one: it sends two as partial sums, then its own as activations, twice per layer.
    assert root.sent == 2 * ((32 + 2 * 64) + (32 + block + 4)) + frame
    assert root.received == 2 * ((32 + 64) + (32 + 2 * block + 4)) + 64
    assert worker == Traffic(root.received, root.sent)


def test_the_last_totals_are_only_for_tokens_that_are_sampled():
    few, many = (step_traffic(one_layer(), 2, DType.Q80, Exchange.REDUCE_SCATTER, 256, wants) for wants in (0, 3))
    assert few[0].sent == 2 * (4 * 32 + 256 * 34) + (4 * 32 + 256 * 40) + 32 + 28 + 5 * 12 + 256 * 68
    assert many[0].sent - few[0].sent == 32 + 3 * 40 + 3 * (12 + 16)
    assert many[1].sent - few[1].sent == 32 + 3 * 40 + 3 * 64


def test_more_ranks_than_blocks_of_the_hidden_size():
    *_, last = step_traffic(one_layer(32), 3, DType.Q80, Exchange.REDUCE_SCATTER, 1, 0)
    assert last.sent == 2 * 2 * 32 + 2 * (32 + 36 + 4)
    assert last.received == 2 * 2 * (32 + 34) + 2 * (32 + 4) + (32 + 28 + 12 + 34)


@given(
    st.integers(1, 9),
    st.sampled_from([DType.Q80, DType.F16, DType.F32]),
    st.sampled_from(Exchange),
    st.integers(1, 512),
    st.integers(0, 2),
)
def test_what_is_sent_is_received(world_size, wire_type, exchange, num_tokens, num_wants):
    traffic = step_traffic(llama_1b(), world_size, wire_type, exchange, num_tokens, num_wants)
    assert len(traffic) == world_size
    assert sum(one.sent for one in traffic) == sum(one.received for one in traffic)
    assert (traffic[0].sent > 0) == (world_size > 1)


def test_four_nodes_read_prompts_with_fewer_bytes():
    direct, scattered = (step_traffic(llama_1b(), 4, DType.Q80, exchange, 512, 0) for exchange in Exchange)
    assert all(few.sent <= 0.6 * many.sent for few, many in zip(scattered, direct, strict=True))
