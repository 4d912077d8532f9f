"""The comparison of `test_golden.py` live, on configurations drawn at random, if torch and transformers are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from family_models import FOLDER  # type: ignore[import-not-found]
from test_golden import MAX_FACTOR, MEAN_FACTOR, root_mean_square  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine import Engine

LENGTH = 150
TOOLS = Path(__file__).parents[1] / "tools" / "golden"

pytestmark = [
    pytest.mark.skipif(not (find_spec("torch") and find_spec("transformers")), reason="needs torch and transformers"),
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]


@pytest.fixture
def hf_models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The model builder of the golden files; imported here so that collecting the tests does not import torch."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return import_module("hf_models")


def random_settings(rng: np.random.Generator, model_type: str) -> dict[str, Any]:
    """Draw a configuration that both transformers and a `.m` file can hold."""
    kv_heads, group = int(rng.choice([1, 2, 4])), int(rng.choice([1, 2, 4]))
    heads = kv_heads * group
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(rng.choice([10000, 500000, 1000000]))}
    if model_type == "llama" and rng.integers(2):
        low = int(rng.integers(1, 3))
        rope |= {"rope_type": "llama3", "factor": float(rng.choice([2, 8, 32])), "low_freq_factor": float(low)}
        rope |= {"high_freq_factor": float(low + rng.integers(1, 8)), "original_max_position_embeddings": 256}
    return {
        "vocab_size": int(rng.integers(50, 200)),
        "hidden_size": int(rng.choice([64, 96, 128])) if heads < 16 else 64,
        "intermediate_size": int(rng.choice([32, 96, 160])),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 32 // min(heads, 4) * int(rng.integers(1, 4)),
        "max_position_embeddings": 512,
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "rope_parameters": rope,
        "tie_word_embeddings": bool(rng.integers(2)),
    }


def resized(rng: np.random.Generator, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw other sizes for a model of `tests/golden/families`, whose heads have 16 values if it does not say."""
    heads = int(rng.choice([4, 6, 8]))
    return {
        **settings,
        "vocab_size": int(rng.integers(50, 200)),
        "hidden_size": heads * 16,
        "intermediate_size": int(rng.choice([32, 96, 160])),
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([size for size in (1, 2, 3, 4, 8) if heads % size == 0])),
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_random_family(name: str, seed: int, hf_models: ModuleType, tmp_path: Path) -> None:
    make_families = import_module("make_families")
    case = make_families.CASES[name]
    case = replace(case, seed=seed, settings=resized(np.random.default_rng([seed, len(name)]), case.settings))
    model, theirs = make_families.make_model(case, tmp_path)
    ids = hf_models.token_ids(seed, LENGTH, model.config["vocab_size"])
    exact = hf_models.logits_float64(theirs, ids)
    spread = np.abs(hf_models.logits_float32(theirs, ids) - exact).max(axis=1)
    with Engine.load(tmp_path, weight_type=DType.F32, max_seq_len=case.max_seq_len, max_batch_tokens=32) as engine:
        errors = np.abs(engine.logits(ids.tolist()) - exact).max(axis=1)
    assert errors.max() <= MAX_FACTOR * spread.max(), case.settings
    assert root_mean_square(errors) <= MEAN_FACTOR * root_mean_square(spread), case.settings


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_random_model(model_type: str, seed: int, hf_models: ModuleType, tmp_path: Path) -> None:
    settings = random_settings(np.random.default_rng([seed, len(model_type)]), model_type)
    model = hf_models.Case(model_type, seed, settings).build()
    config = hf_models.export(model, tmp_path / "live.m")
    ids = hf_models.token_ids(seed, LENGTH, config.vocab_size)
    exact = hf_models.logits_float64(model, ids)
    spread = np.abs(hf_models.logits_float32(model, ids) - exact).max(axis=1)
    with Engine.load(tmp_path / "live.m", max_batch_tokens=32) as engine:
        errors = np.abs(engine.logits(ids.tolist()) - exact).max(axis=1)
    assert errors.max() <= MAX_FACTOR * spread.max(), settings
    assert root_mean_square(errors) <= MEAN_FACTOR * root_mean_square(spread), settings
