"""Models with experts: the engine against the numpy reference, on one rank and on several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]
from ranks import ranks  # type: ignore[import-not-found]
from reference import Reference  # type: ignore[import-not-found]
from test_engine_ranks import TOLERANCES, error  # type: ignore[import-not-found]
from test_golden import MAX_FACTOR  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine import Engine, SamplingParams

TOKEN_IDS = np.random.default_rng(3).integers(0, 320, 120).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts") / "model.m"
    write_tiny_model(path, tiny_config("qwen3_moe", DType.F32))
    return path


@pytest.mark.parametrize("num_threads", [1, 2])
def test_logits_are_those_of_the_reference(model: Path, num_threads: int) -> None:
    expected, wrong = Reference(model).logits(TOKEN_IDS), Reference(model)
    for i in range(wrong.config.num_layers):  # as if every expert were another
        wrong.weights[f"layers.{i}.router"] = wrong.weights[f"layers.{i}.router"][::-1]
    spread = np.abs(Reference(model, dtype=np.float32).logits(TOKEN_IDS) - expected).max()
    with Engine.load(model, num_threads=num_threads) as engine:
        assert np.abs(engine.logits(TOKEN_IDS) - expected).max() <= MAX_FACTOR * spread
    assert np.abs(wrong.logits(TOKEN_IDS) - expected).max() > 1000 * MAX_FACTOR * spread


@pytest.mark.parametrize("scatter_from", [0, 1])
@pytest.mark.parametrize("wire_type", [DType.F32, DType.F16])
def test_ranks_together_compute_what_one_computes(model: Path, wire_type: DType, scatter_from: int) -> None:
    with Engine.load(model) as engine:
        expected = engine.logits(TOKEN_IDS)
    with ranks(model, 3, scatter_from=scatter_from, wire_type=wire_type) as engine:
        found = engine.logits(TOKEN_IDS)
    per_row = [error(row, wanted) for row, wanted in zip(found, expected, strict=True)]
    assert np.median(per_row) < TOLERANCES[wire_type]  # a rounding may tip the choice of an expert, which is rare
    assert max(per_row) < (TOLERANCES[wire_type] if wire_type is DType.F32 else 1)


@pytest.mark.parametrize("weight_type", [DType.F32, DType.Q40])
def test_bits_of_ranks_depend_on_neither_chunks_nor_exchange(tmp_path: Path, weight_type: DType) -> None:
    write_tiny_model(tmp_path / "model.m", tiny_config("qwen3_moe", weight_type))
    with ranks(tmp_path / "model.m", 3) as engine:
        expected = engine.logits(TOKEN_IDS)
    for scatter_from, max_batch_tokens, num_threads in ((0, 7, 2), (1, 64, 1), (1, 1, 2)):
        options = {"max_batch_tokens": max_batch_tokens, "num_threads": num_threads}
        with ranks(tmp_path / "model.m", 3, scatter_from=scatter_from, **options) as engine:
            np.testing.assert_array_equal(engine.logits(TOKEN_IDS), expected)


def test_answers_of_several_ranks_are_those_of_one(model: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=30)
    with Engine.load(model) as engine:
        expected = [output.token_id for output in engine.generate(TOKEN_IDS[:20], params)]
    with ranks(model, 3, wire_type=DType.F32) as engine:
        assert [output.token_id for output in engine.generate(TOKEN_IDS[:20], params)] == expected
