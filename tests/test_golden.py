"""The engine against logits that Hugging Face transformers gave: `tests/golden`, made by `tools/golden/make_golden.py`.

The tolerance. The golden logits are those of a float64 evaluation; with each position comes the largest difference that
transformers' own float32 evaluation had from them. The engine does the same float32 operations in other orders of
summation, so its errors are as large, drawn anew: over all positions their largest may be a few times the largest of
the other sample, and their root mean square, which thousands of roundings average, hardly more than the other's. Hence
the factors 4 and 2. `test_wrong_setting_is_seen` shows what they tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from reference import Array, Reference  # type: ignore[import-not-found]

from dllama.config import ModelConfig, RopeScaling
from dllama.engine import Engine, SamplingParams
from dllama.formats.m_file import open_m_file, write_m_file

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
MAX_FACTOR, MEAN_FACTOR = 4.0, 2.0
CHUNKS = (1, 7, 32, 512)


@dataclass(frozen=True)
class Golden:
    """What transformers gave for one model."""

    model: Path
    token_ids: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]
    float32_error: npt.NDArray[np.float32]  # by position
    inv_freq: npt.NDArray[np.float32]

    @classmethod
    def load(cls, name: str) -> Golden:
        with np.load(FOLDER / f"{name}.npz") as arrays:
            return cls(FOLDER / f"{name}.m", **{key: arrays[key] for key in arrays.files})

    @property
    def tolerance(self) -> float:
        """Largest error allowed in a logit."""
        return MAX_FACTOR * float(self.float32_error.max())

    def excess(self, logits: Array) -> float:
        """Give the errors in units of what is allowed: at most 1 for logits that agree."""
        errors = np.abs(logits - self.logits.astype(np.float64)).max(axis=1)
        mean = MEAN_FACTOR * root_mean_square(self.float32_error)
        return max(float(errors.max()) / self.tolerance, root_mean_square(errors) / mean)


def root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def engine_logits(model: Path, token_ids: npt.NDArray[np.int32], max_batch_tokens: int = 512) -> Array:
    with Engine.load(model, max_batch_tokens=max_batch_tokens) as engine:
        return engine.logits(token_ids.tolist())


@pytest.mark.parametrize("max_batch_tokens", CHUNKS)
@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str, max_batch_tokens: int) -> None:
    golden = Golden.load(name)
    logits = engine_logits(golden.model, golden.token_ids, max_batch_tokens)
    assert logits.shape == golden.logits.shape
    assert logits.dtype == np.float32
    assert golden.excess(logits) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_scores(name: str) -> None:
    """A log-probability moves by at most twice what the logits move: its own logit, and the log of the sum."""
    golden = Golden.load(name)
    with Engine.load(golden.model, max_batch_tokens=32) as engine:
        scores = engine.score(golden.token_ids.tolist())
    exact = golden.logits[:-1].astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    expected = np.take_along_axis(exact, golden.token_ids[1:, None], axis=1)[:, 0]
    assert np.abs(scores - expected).max() <= 2 * golden.tolerance


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(name: str) -> None:
    """Each token is the float64 reference's choice after the tokens before it, wherever that has a margin."""
    golden = Golden.load(name)
    prompt = golden.token_ids[:100].tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    with Engine.load(golden.model) as engine:
        tokens = [output.token_id for output in engine.generate(prompt, sampling)]
    assert len(tokens) == 64
    logits = Reference(golden.model).logits(prompt + tokens[:-1])[len(prompt) - 1 :]
    second, first = np.sort(logits, axis=1)[:, -2:].T
    decided = first - second > 2 * golden.tolerance
    assert decided.sum() >= 56
    assert np.array_equal(np.array(tokens)[decided], logits.argmax(axis=1)[decided])


@pytest.mark.parametrize("name", NAMES)
def test_rope_frequencies(name: str) -> None:
    """transformers takes theta to a rounded power in float32: that error grows with log(theta); a few ulps besides."""
    golden = Golden.load(name)
    with open_m_file(golden.model) as model:
        config = model.config
    tolerance = (np.log(config.rope_theta) + 8) * 2.0**-24
    np.testing.assert_allclose(config.rope_frequencies(), golden.inv_freq, rtol=tolerance)


def scaling(config: ModelConfig) -> RopeScaling:
    assert config.rope_scaling is not None
    return config.rope_scaling


# Settings a little or wholly wrong, each with the golden model that shows it.
WRONG = {
    "eps": ("llama_gqa", lambda c: replace(c, rms_norm_eps=1e-5)),
    "eps of a tied model": ("llama_tied", lambda c: replace(c, rms_norm_eps=1e-6)),
    "eps of q/k norm": ("qwen3", lambda c: replace(c, rms_norm_eps=1e-5)),
    "theta by 1 %": ("llama", lambda c: replace(c, rope_theta=c.rope_theta * 1.01)),
    "no scaling": ("llama31_rope", lambda c: replace(c, rope_scaling=None)),
    "low frequencies": ("llama31_rope", lambda c: replace(c, rope_scaling=replace(scaling(c), factor=9.0))),
    "end of the blend": ("llama31_rope", lambda c: replace(c, rope_scaling=replace(scaling(c), low_freq_factor=2.0))),
    "start of the blend": (
        "llama31_rope",
        lambda c: replace(c, rope_scaling=replace(scaling(c), high_freq_factor=9.0)),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_setting_is_seen(what: str, tmp_path: Path) -> None:
    """The goldens tell a right engine from one with a setting misread: its errors are far above what is allowed."""
    name, change = WRONG[what]
    golden = Golden.load(name)
    with open_m_file(golden.model) as model:
        tensors = {key: tensor.read_floats() for key, tensor in model.tensors.items()}
        write_m_file(tmp_path / "wrong.m", change(model.config), tensors)
    assert golden.excess(engine_logits(tmp_path / "wrong.m", golden.token_ids)) > 10


@pytest.mark.parametrize("name", ["llama", "llama_head_dim", "qwen3"])
def test_swapped_rotary_halves_are_seen(name: str, tmp_path: Path) -> None:
    """Swapping the halves of every query and key head turns the rotation around."""
    golden = Golden.load(name)
    with open_m_file(golden.model) as model:
        config = model.config
        tensors = {key: tensor.read_floats() for key, tensor in model.tensors.items()}
    for key in (key for key in tensors if key.endswith((".q_proj", ".k_proj", ".q_norm", ".k_norm"))):
        halves = tensors[key].reshape(-1, 2, config.head_dim // 2, tensors[key].shape[1] if "proj" in key else 1)
        tensors[key] = halves[:, ::-1].reshape(tensors[key].shape)
    write_m_file(tmp_path / "swapped.m", config, tensors)
    assert golden.excess(engine_logits(tmp_path / "swapped.m", golden.token_ids)) > 10
