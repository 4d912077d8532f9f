"""The numpy reference against the golden files, and the engine against the reference on quantized weights.

Rounding activations to 8 bits is a step: where an activation lies on the border of two quants, the last bit of a float
decides, and from there on two right evaluations differ by a whole quant and drift apart. So there are two comparisons.
Short sequences in which no activation comes near a border must agree as float32 does. Long ones, over several pages,
may drift, but not beyond an evaluation that rounds at random: that is what two right evaluations come to which have
drifted apart entirely. The same holds, on a smaller scale, for keys and values rounded to F16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from reference import Array, Reference, write_random_model  # type: ignore[import-not-found]
from test_golden import MAX_FACTOR, MEAN_FACTOR, NAMES, Golden, root_mean_square  # type: ignore[import-not-found]

from dllama.config import BLOCK_SIZE, DType, LayerSpec, ModelConfig
from dllama.engine import Engine

LONG = 200
QUANTIZED = (DType.Q40, DType.Q80)


def sizes(model_type: str, weight_type: DType) -> ModelConfig:
    """Give sizes that no power of two divides evenly: heads of 24, a vocabulary of 92."""
    return ModelConfig(
        model_type=model_type,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=8 if model_type == "qwen3" else 4,
        num_kv_heads=2,
        head_dim=32 if model_type == "qwen3" else 24,
        vocab_size=92,
        max_seq_len=512,
        rms_norm_eps=1e-6 if model_type == "qwen3" else 1e-5,
        rope_theta=10000.0,
        weight_type=weight_type,
        layers=(LayerSpec(has_qk_norm=model_type == "qwen3"),) * 2,
    )


@pytest.fixture
def random_model(tmp_path: Path) -> Callable[[str, DType], Path]:
    def write(model_type: str, weight_type: DType) -> Path:
        path = tmp_path / "random.m"
        write_random_model(path, sizes(model_type, weight_type), seed=11)
        return path

    return write


@pytest.mark.parametrize("name", NAMES)
def test_float64_reference_is_transformers(name: str) -> None:
    """Only the float32 rounding of frequencies and golden logits is left: less than a whole float32 evaluation errs."""
    golden = Golden.load(name)
    errors = np.abs(Reference(golden.model).logits(golden.token_ids) - golden.logits)
    assert errors.max() <= golden.float32_error.max() / 2


@pytest.mark.parametrize("name", NAMES)
def test_float32_reference_is_transformers(name: str) -> None:
    golden = Golden.load(name)
    assert golden.excess(Reference(golden.model, dtype=np.float32).logits(golden.token_ids)) <= 1


def random_ids(config: ModelConfig, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, config.vocab_size, shape)


def is_clear(exact: Reference, single: Reference) -> bool:
    """Whether no number came so near a border between two steps that float32 could round it to the other side.

    After both references evaluated the same tokens: near is within twice the largest difference between the two.
    """
    for (numbers, steps), (float32_numbers, _) in zip(exact.rounded, single.rounded, strict=True):
        units = numbers / steps
        to_border = np.abs(units - np.floor(units) - 0.5) * steps
        if to_border.min() <= 2 * np.abs(float32_numbers - numbers).max():
            return False
    return True


class Float16Scales(Reference):
    """A wrong evaluation: scales of activations rounded as stored Q80 blocks have them."""

    def quantized(self, x: Array) -> Array:
        scales = np.repeat(np.abs(x.reshape(len(x), -1, BLOCK_SIZE)).max(axis=-1), BLOCK_SIZE, axis=-1) / 127
        return super().quantized(x) / scales * scales.astype(np.float16)


class OtherCache(Reference):
    """A wrong evaluation: the cache rounds when it should not, and does not when it should."""

    def cached(self, x: Array) -> Array:
        return x if self.kv_type is DType.F16 else x.astype(np.float16).astype(self.dtype)


@pytest.mark.parametrize("wrong_class", [Float16Scales, OtherCache])
@pytest.mark.parametrize("kv_type", [DType.F16, DType.F32])
@pytest.mark.parametrize("weight_type", [DType.F16, DType.Q40, DType.Q80])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_short(model_type, weight_type: DType, kv_type, wrong_class, random_model: Callable[[str, DType], Path]) -> None:
    path = random_model(model_type, weight_type)
    exact, single = Reference(path, kv_type), Reference(path, kv_type, np.float32)
    wrong = wrong_class(path, kv_type)
    spread, engine_errors, wrong_errors = [], [], []
    with Engine.load(path, kv_type=kv_type) as engine:
        for ids in random_ids(exact.config, (192, 2)).tolist():
            logits, float32_logits = exact.logits(ids), single.logits(ids)
            if is_clear(exact, single):
                spread.append(np.abs(float32_logits - logits).max())
                engine_errors.append(np.abs(engine.logits(ids) - logits).max())
                wrong_errors.append(np.abs(wrong.logits(ids) - logits).max())
    print(model_type, weight_type,kv_type,wrong_class,len(spread), max(spread), max(engine_errors), min(wrong_errors))


class RandomRounding(Reference):
    """Rounds up or down by chance, the nearer value more often: activations to quants, keys and values to F16."""

    rng = np.random.default_rng(17)

    def quantized(self, x: Array) -> Array:
        scales = np.repeat(np.abs(x.reshape(len(x), -1, 32)).max(axis=-1), 32, axis=-1) / 127
        return np.rint(x / scales + self.rng.uniform(-0.5, 0.5, x.shape)) * scales

    def cached(self, x: Array) -> Array:
        steps = 2.0 ** (np.floor(np.log2(np.abs(x))) - 10)  # between neighbours in F16
        return super().cached(x + steps * self.rng.uniform(-0.5, 0.5, x.shape)) if self.kv_type is DType.F16 else x


def errors_of(logits: Array, exact: Array) -> Array:
    """Largest error at each position."""
    errors: Array = np.abs(logits - exact).max(axis=1)
    return errors


@pytest.mark.parametrize("kv_type", [DType.F16, DType.F32])
@pytest.mark.parametrize("weight_type", DType)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_long(model_type: str, weight_type: DType, kv_type: DType, random_model: Callable[[str, DType], Path]) -> None:
    path = random_model(model_type, weight_type)
    exact, single, drifted = (
        Reference(path, kv_type),
        Reference(path, kv_type, np.float32),
        RandomRounding(path, kv_type),
    )
    ids = random_ids(exact.config, (LONG,)).tolist()
    logits = exact.logits(ids)
    spread, drift = errors_of(single.logits(ids), logits), errors_of(drifted.logits(ids), logits)
    with Engine.load(path, kv_type=kv_type, max_batch_tokens=32) as engine:
        errors = errors_of(engine.logits(ids), logits)
    if not (weight_type.is_quantized or kv_type is DType.F16):
        assert np.abs(drift).max() == 0
    assert errors.max() <= max(MAX_FACTOR * spread.max(), drift.max())
    assert root_mean_square(errors) <= max(MEAN_FACTOR * root_mean_square(spread), root_mean_square(drift))
    print(spread.max(), drift.max(), root_mean_square(spread), root_mean_square(drift))


def test_kv_cache_rounds_to_f16(random_model: Callable[[str, DType], Path]) -> None:
    """The long comparison cannot take one type of cache for the other."""
    path = random_model("llama", DType.F16)
    ids = random_ids(sizes("llama", DType.F16), (LONG,)).tolist()
    whole = Reference(path)
    logits = whole.logits(ids)
    spread = errors_of(Reference(path, dtype=np.float32).logits(ids), logits)
    rounded = errors_of(Reference(path, DType.F16).logits(ids), logits)
    assert root_mean_square(rounded) > 10 * MEAN_FACTOR * root_mean_square(spread)


def test_wrong_group_order_is_seen() -> None:
    """Query heads that use the other KV head are far outside the tolerance of the golden files."""
    golden = Golden.load("llama_gqa")
    reference = Reference(golden.model)
    reference.config = replace(reference.config, num_kv_heads=2)
    original = reference.cached
    reference.cached = lambda x: original(x)[::-1]
    assert golden.excess(reference.logits(golden.token_ids)) > 10
