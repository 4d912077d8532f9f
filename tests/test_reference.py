"""The numpy reference against the golden files, and the engine against the reference on quantized weights.

Rounding activations to 8 bits is a step: where an activation lies on the border of two quants, the last bit of a float
decides, and from there on two right evaluations differ by a whole quant and drift apart. So there are two comparisons.
Short sequences in which no activation comes near a border must agree as float32 does. Long ones, over several pages,
may drift, but not beyond an evaluation that rounds at random: that is what two right evaluations come to which have
drifted apart entirely. The same holds, on a smaller scale, for keys and values rounded to F16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from reference import Array, Reference, write_random_model  # type: ignore[import-not-found]
from test_golden import MAX_FACTOR, MEAN_FACTOR, NAMES, Golden, root_mean_square  # type: ignore[import-not-found]

from dllama.config import BLOCK_SIZE, DType, LayerSpec, ModelConfig, QkNorm
from dllama.engine import Engine

LONG = 200


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
        layers=(LayerSpec(QkNorm.HEAD if model_type == "qwen3" else QkNorm.NONE),) * 2,
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
    """Whether no activation came so near a border between quants that float32 could round it to the other side.

    After both references evaluated the same tokens: near is within twice the largest difference between the two.
    """
    for (blocks, scales), (float32_blocks, _) in zip(exact.rounded, single.rounded, strict=True):
        units = blocks / scales
        to_border = np.abs(units - np.floor(units) - 0.5) * scales
        if to_border.min() <= 2 * np.abs(float32_blocks - blocks).max():
            return False
    return True


class Float16Scales(Reference):
    """A wrong evaluation: scales of activations rounded as stored Q80 blocks have them."""

    def quantized(self, x: Array) -> Array:
        scales = block_scales(x)
        return super().quantized(x) / scales * scales.astype(np.float16)


def block_scales(x: Array) -> Array:
    amax = np.abs(x.reshape(len(x), -1, BLOCK_SIZE)).max(axis=-1)
    return np.repeat(amax / 127, BLOCK_SIZE, axis=-1)


@pytest.mark.parametrize("weight_type", [DType.Q40, DType.Q80])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_quantized_short(model_type: str, weight_type: DType, random_model: Callable[[str, DType], Path]) -> None:
    """Sequences without an activation near a border agree as float32 does, in every logit."""
    path = random_model(model_type, weight_type)
    exact, single, wrong = Reference(path), Reference(path, dtype=np.float32), Float16Scales(path)
    spread, errors, wrong_errors = [], [], []
    with Engine.load(path, kv_type=DType.F32) as engine:
        for ids in random_ids(exact.config, (96, 4)).tolist():
            logits, float32_logits = exact.logits(ids), single.logits(ids)
            if is_clear(exact, single):
                spread.append(np.abs(float32_logits - logits).max())
                errors.append(np.abs(engine.logits(ids) - logits).max())
                wrong_errors.append(np.abs(wrong.logits(ids) - logits).max())
    assert len(errors) >= 24
    assert max(errors) <= MAX_FACTOR * max(spread)
    assert min(wrong_errors) > 10 * MAX_FACTOR * max(spread)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_f16_cache_short(model_type: str, random_model: Callable[[str, DType], Path]) -> None:
    """Few keys and values of a short sequence lie on a border of F16: half of the sequences hardly differ."""
    path = random_model(model_type, DType.F16)
    exact, single, wrong = Reference(path, DType.F16), Reference(path, DType.F16, np.float32), Reference(path)
    spread, errors, wrong_errors = [], [], []
    with Engine.load(path) as engine:
        for ids in random_ids(exact.config, (96, 4)).tolist():
            logits = exact.logits(ids)
            spread.append(np.abs(single.logits(ids) - logits).max())
            errors.append(np.abs(engine.logits(ids) - logits).max())
            wrong_errors.append(np.abs(wrong.logits(ids) - logits).max())
    tolerance = MAX_FACTOR * np.median(spread)
    assert np.median(errors) <= tolerance
    assert np.median(wrong_errors) > 10 * tolerance


class RandomRounding(Reference):
    """Rounds up or down by chance, the nearer value more often: activations to quants, keys and values as cached."""

    rng = np.random.default_rng(17)

    def quantized(self, x: Array) -> Array:
        scales = block_scales(x)
        return np.rint(x / scales + self.rng.uniform(-0.5, 0.5, x.shape)) * scales

    def cached(self, x: Array) -> Array:
        if self.kv_type is DType.F32:
            return x
        if self.kv_type is DType.Q80:
            steps = np.abs(x).max(axis=-1, keepdims=True) / 127
            return np.rint(x / steps + self.rng.uniform(-0.5, 0.5, x.shape)) * steps
        steps = 2.0 ** (np.floor(np.log2(np.abs(x))) - 10)  # between neighbours in F16
        return super().cached(x + steps * self.rng.uniform(-0.5, 0.5, x.shape))


def errors_of(logits: Array, exact: Array) -> Array:
    """Largest error at each position."""
    errors: Array = np.abs(logits - exact).max(axis=1)
    return errors


@pytest.mark.parametrize("kv_type", [DType.F16, DType.F32, DType.Q80])
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
    if kv_type is DType.F32 and not weight_type.is_quantized:
        assert np.abs(drift).max() == 0
    assert errors.max() <= max(MAX_FACTOR * spread.max(), drift.max())
    assert root_mean_square(errors) <= max(MEAN_FACTOR * root_mean_square(spread), root_mean_square(drift))


class OtherGroup(Reference):
    """A wrong evaluation: query heads use the keys and values of another group."""

    def cached(self, x: Array) -> Array:
        return super().cached(x)[::-1]


def test_wrong_group_is_seen() -> None:
    golden = Golden.load("llama_gqa")
    assert golden.excess(OtherGroup(golden.model).logits(golden.token_ids)) > 10
