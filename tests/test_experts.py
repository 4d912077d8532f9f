"""Layers with experts: the engine against the numpy reference, on one rank and on several, and its bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_model import MemoryModel  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]
from ranks import ranks  # type: ignore[import-not-found]
from reference import Reference  # type: ignore[import-not-found]
from test_engine_features import SIZES, TOKEN_IDS, excess  # type: ignore[import-not-found]

from dllama.config import Activation, DType, LayerSpec, QkNorm
from dllama.engine import SamplingParams

EXPERTS = LayerSpec(has_experts=True)
KINDS: dict[str, dict[str, object]] = {
    "qwen3": {"layers": (LayerSpec(QkNorm.HEAD, has_experts=True),) * 2},
    "two of eight": {"layers": (EXPERTS, EXPERTS), "num_experts_per_tok": 2},
    "weights of all": {"layers": (EXPERTS, EXPERTS), "norm_topk_prob": False},
    "in one layer": {"layers": (EXPERTS, LayerSpec()), "num_experts": 100, "num_experts_per_tok": 9},
    "one": {"layers": (LayerSpec(), EXPERTS), "num_experts": 1, "num_experts_per_tok": 1},
    "all of three": {"layers": (EXPERTS, EXPERTS), "num_experts": 3, "num_experts_per_tok": 3},
    "with other features": {
        "layers": (LayerSpec(has_output_norms=True, has_experts=True),) * 2,
        "activation": Activation.GELU_TANH,
        "residual_multiplier": 0.5,
    },
}


def model_of(name: str, **changes: object) -> MemoryModel:
    sizes = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 160, "intermediate_size": 96}
    config = tiny_config(**(SIZES | sizes | KINDS[name] | changes))
    assert config.problem() is None
    return MemoryModel(config)


@pytest.mark.parametrize("name", KINDS)
def test_logits(name: str) -> None:
    model = model_of(name)
    exact, single = (Reference(model, dtype=dtype).logits(TOKEN_IDS) for dtype in (np.float64, np.float32))
    with ranks(model, 1, num_threads=2) as engine:
        assert excess(engine.logits(TOKEN_IDS), exact, single) <= 1
    with ranks(model, 3, wire_type=DType.F32) as engine:
        assert excess(engine.logits(TOKEN_IDS), exact, single) <= 1


@pytest.mark.parametrize("name", ["qwen3", "two of eight", "weights of all"])
def test_wrong_experts_and_wrong_weights_are_seen(name: str) -> None:
    model = model_of(name)
    exact, single, others, weights = (
        Reference(model, dtype=dtype) for dtype in (np.float64, np.float32, np.float64, np.float64)
    )
    logits, spread = exact.logits(TOKEN_IDS), single.logits(TOKEN_IDS)
    router = others.weights["layers.1.router"]
    others.weights["layers.1.router"] = router[::-1]
    assert excess(others.logits(TOKEN_IDS), logits, spread) > 100
    weights.config = replace(model.config, norm_topk_prob=not model.config.norm_topk_prob)
    assert excess(weights.logits(TOKEN_IDS), logits, spread) > 100


@pytest.mark.parametrize("q80_tensors", [(), ("layers.0.experts.down_proj", "layers.1.experts.up_proj")])
@pytest.mark.parametrize("world_size", [1, 3])
def test_quantized_experts(world_size: int, q80_tensors: tuple[str, ...]) -> None:
    """Single tokens, few of whose activations lie near a border between quants: half of them agree as floats do."""
    model = model_of("qwen3", weight_type=DType.Q40, q80_tensors=q80_tensors)
    exact = Reference(model)
    with ranks(model, world_size, wire_type=DType.F32, kv_type=DType.F32) as engine:
        errors = [np.abs(engine.logits([token]) - exact.logits([token])).max() for token in range(40)]
    assert np.median(errors) < 1e-5


@pytest.mark.parametrize("weight_type", [DType.F32, DType.Q40])
@pytest.mark.parametrize("world_size", [1, 3])
def test_bits_depend_on_neither_chunks_nor_threads_nor_exchange(world_size: int, weight_type: DType) -> None:
    model = model_of("in one layer", weight_type=weight_type)
    with ranks(model, world_size) as engine:
        expected = engine.logits(TOKEN_IDS)
    for num_threads, max_batch_tokens, scatter_from in ((1, 7, 0), (2, 1, 1), (2, 64, 0), (3, 512, 1)):
        options = {"num_threads": num_threads, "max_batch_tokens": max_batch_tokens, "scatter_from": scatter_from}
        with ranks(model, world_size, **options) as engine:
            np.testing.assert_array_equal(engine.logits(TOKEN_IDS), expected)


@pytest.mark.parametrize("world_size", [1, 3])
def test_bits_do_not_depend_on_neighbours(world_size: int) -> None:
    with ranks(model_of("qwen3", weight_type=DType.Q40), world_size, kv_tokens=2048) as engine:
        expected = engine.logits(TOKEN_IDS)
        for seed in range(3):
            engine.add(TOKEN_IDS[40 * seed :], SamplingParams(max_tokens=100, seed=seed))
        for _ in range(3):
            engine.step()
        np.testing.assert_array_equal(engine.logits(TOKEN_IDS), expected)


def test_products_are_timed() -> None:
    with ranks(model_of("in one layer"), 1) as engine:
        assert all(engine._executor.node.time_products(tokens) > 0 for tokens in (1, 64, 512))


def test_a_token_reads_its_own_experts_alone() -> None:
    model = model_of("qwen3", weight_type=DType.Q40)
    experts = [tensor.nbytes for name, tensor in model.tensors.items() if ".experts." in name]
    with ranks(model, 1) as engine:
        assert engine.memory.weights - engine.token_weights == sum(experts) * 5 // 8
