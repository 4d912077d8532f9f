"""Model sizes: what fits together, and the rotary frequencies."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from model_files import LLAMA3_SCALING, tiny_config  # type: ignore[import-not-found]

from dllama.config import DType, LayerSpec, RopeScaling

YARN = RopeScaling(4.0, original_max_seq_len=64, kind="yarn", beta_fast=32.0, beta_slow=1.0)


def test_a_sound_model_has_no_problem():
    for model_type in ("llama", "qwen3"):
        assert tiny_config(model_type).problem() is None


def test_derived_sizes():
    config = tiny_config("qwen3")
    assert (config.q_size, config.kv_size, config.group_size) == (128, 64, 2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_size": 0}, "hidden_size: expected 1 to 1048576, found 0"),
        ({"vocab_size": 1 << 25}, "vocab_size: expected 1 to 16777216, found 33554432"),
        ({"max_seq_len": -1}, "max_seq_len: expected 1 to"),
        ({"num_kv_heads": 3}, "num_heads: expected a multiple of num_kv_heads=3, found 4"),
        ({"head_dim": 9}, "head_dim: expected an even number, found 9"),
        ({"hidden_size": 60}, "hidden_size: expected a multiple of 32, found 60"),
        ({"intermediate_size": 33}, "intermediate_size: expected a multiple of 32, found 33"),
        ({"head_dim": 4}, "q_size: expected a multiple of 32, found 16"),
        ({"layers": ()}, "layers: expected 2 layer specs, found 0"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps: expected a number from 1e-30 to 1, found 0.0"),
        ({"rope_theta": math.inf}, "rope_theta: expected a number from 1e-30 to 1e+30, found inf"),
        ({"rope_theta": math.nan}, "rope_theta: expected a number from 1e-30 to 1e+30, found nan"),
        ({"rope_scaling": RopeScaling(0.0, 1.0, 4.0, 8192)}, "rope_scaling: expected"),
        ({"rope_scaling": RopeScaling(math.nan, 1.0, 4.0, 8192)}, "rope_scaling: expected"),
        ({"rope_scaling": RopeScaling(8.0, 4.0, 4.0, 8192)}, "rope_scaling: expected"),
        ({"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 0)}, "rope_scaling: expected"),
        ({"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 1 << 2000)}, "rope_scaling: expected"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta: expected"),
        ({"rope_scaling": replace(YARN, beta_fast=1e300)}, "rope_scaling: expected"),
        ({"rope_scaling": replace(YARN, beta_slow=1e-320)}, "rope_scaling: expected"),
        ({"rope_scaling": RopeScaling(1e-20, kind="linear"), "rope_theta": 1e-29}, "rope_scaling: expected angles"),
        ({"rms_norm_eps": 1e-39}, "rms_norm_eps: expected a number from 1e-30 to 1, found 1e-39"),
        ({"logits_softcap": 1e-39}, "logits_softcap: expected 0 or a number from 1e-30 to 1e+30, found 1e-39"),
        ({"embedding_multiplier": 1e39}, "embedding_multiplier: expected"),
        ({"layers": (LayerSpec(has_input_norms=False),) * 2}, "layers: expected norms before or behind"),
        ({"num_experts": -1}, "num_experts: expected 0, as no layer has experts, found -1"),
        ({"num_experts_per_tok": 1 << 64}, "num_experts_per_tok: expected 0"),
    ],
)
def test_what_does_not_fit_is_named(changes, text):
    with warnings.catch_warnings(action="error"):
        problem = replace(tiny_config(), **changes).problem()
    assert problem is not None
    assert str(problem).startswith(text)
    assert str(problem).endswith(f": expected {problem.expected}, found {problem.found}")


@pytest.mark.parametrize(("dtype", "expected"), [(DType.F32, 256), (DType.F16, 128), (DType.Q40, 36), (DType.Q80, 68)])
def test_bytes_of_a_row(dtype, expected):
    assert dtype.row_bytes(64) == expected


# First, middle and last frequencies as transformers 5.4 computes them in float32 (three units in the last place apart
# at most); the Llama 3.2 1B case has unscaled, blended and scaled ones.
FROM_TRANSFORMERS = [
    (16, 1e4, None, [0.3162277638912201, 0.009999999776482582, 0.0003162277571391314]),
    (128, 1e6, None, [0.8058421611785889, 0.0010000000474974513, 1.2409377632138785e-06]),
    (64, 5e5, LLAMA3_SCALING, [0.6636012196540833, 0.00042955679236911237, 9.418306490260875e-08]),
    (128, 5e5, replace(LLAMA3_SCALING, factor=8.0), [0.8146172165870667, 0.000524846138432622, 3.068925877869333e-07]),
]


@pytest.mark.parametrize(("head_dim", "theta", "scaling", "expected"), FROM_TRANSFORMERS)
def test_frequencies_are_those_of_transformers(head_dim, theta, scaling, expected):
    config = replace(tiny_config(), head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    frequencies = config.rope_frequencies()
    assert frequencies.dtype == np.float32
    assert frequencies.shape == (head_dim // 2,)
    assert frequencies[0] == 1
    found = frequencies[[1, head_dim // 4, head_dim // 2 - 1]]
    np.testing.assert_array_max_ulp(found, np.array(expected, np.float32), maxulp=3)


def test_scaling_changes_only_long_wavelengths():
    plain = replace(tiny_config(), head_dim=64, rope_theta=5e5)
    scaled = replace(plain, rope_scaling=LLAMA3_SCALING).rope_frequencies()
    frequencies = plain.rope_frequencies()
    wavelengths = 2 * math.pi / frequencies
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    assert (scaled[short] == frequencies[short]).all()
    np.testing.assert_allclose(scaled[long], frequencies[long] / 32, rtol=1e-6)
    between = ~(short | long)
    assert between.any()
    assert ((scaled[between] < frequencies[between]) & (scaled[between] > frequencies[between] / 32)).all()
