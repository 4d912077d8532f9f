"""llama.cpp's blocks are decoded to the very bits of its own decoders, and requantized by the project's."""

from __future__ import annotations

import numpy as np
import pytest
from ggml_reference import DECODERS, decode_rows  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.formats.gguf_quants import BLOCKS, READABLE, SAME, convert
from dllama.formats.gguf_types import GGML_TYPES
from dllama.formats.quants import decode, encode

KINDS = {kind.name: kind for kind in GGML_TYPES.values()}
HALVES = {
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
}
HALVES |= {"Q6_K": (208,), "Q4_0": (0,), "Q8_0": (0,)}  # where a block has its F16 numbers


def random_rows(name: str, num_rows: int = 6, num_cols: int = 2560, seed: int = 0) -> np.ndarray:
    """Give stored rows of any bits, but for scales, which are finite and of either sign."""
    rng, kind = np.random.default_rng(seed), KINDS[name]
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((num_rows, num_cols)).astype(np.float32)
        if name == "BF16":
            return np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8)
        return values.astype("<f2" if name == "F16" else "<f4").view(np.uint8)
    blocks = rng.integers(0, 256, (num_rows * num_cols // kind.block_size, kind.block_bytes), np.uint8)
    for begin in HALVES[name]:
        scales = (rng.standard_normal(len(blocks)) / 64).astype("<f2")
        blocks[:, begin : begin + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(num_rows, -1)


def converted(name: str, rows: np.ndarray, dtype: DType) -> np.ndarray:
    num_cols = rows.shape[1] // KINDS[name].block_bytes * KINDS[name].block_size
    out = np.empty((len(rows), dtype.row_bytes(num_cols)), np.uint8)
    convert(KINDS[name], rows, dtype, out)
    return out


@pytest.mark.parametrize("name", BLOCKS)
def test_values_are_those_of_the_formulas(name):
    rows = random_rows(name)
    np.testing.assert_array_equal(decode(DType.F32, converted(name, rows, DType.F32)), decode_rows(name, rows))


@pytest.mark.parametrize("name", DECODERS)
def test_values_are_those_of_the_oracle(name):
    gguf = pytest.importorskip("gguf")
    rows = random_rows(name, seed=1)
    theirs = gguf.dequantize(rows, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(decode(DType.F32, converted(name, rows, DType.F32)), theirs)


@pytest.mark.parametrize("dtype", [DType.F16, DType.Q40, DType.Q80])
@pytest.mark.parametrize("name", [*BLOCKS, "BF16"])
def test_requantizing_is_decoding_and_encoding(name, dtype):
    rows = random_rows(name, seed=2)
    values = decode(DType.F32, converted(name, rows, DType.F32))
    np.testing.assert_array_equal(converted(name, rows, dtype), encode(dtype, values))


@pytest.mark.parametrize("name", SAME)
def test_our_types_as_floats(name):
    rows = random_rows(name)
    np.testing.assert_array_equal(decode(DType.F32, converted(name, rows, DType.F32)), decode(SAME[name], rows))


@pytest.mark.parametrize("name", READABLE)
def test_the_largest_magnitude_is_told(name):
    rows = random_rows(name)
    values = decode(DType.F32, converted(name, rows, DType.F32))
    out = np.empty(values.shape, np.float32).view(np.uint8)
    assert convert(KINDS[name], rows, DType.F32, out) == np.abs(values).max()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_scale_that_is_no_number_is_told(name):
    rows = random_rows(name)
    rows[0, HALVES[name][0] : HALVES[name][0] + 2] = np.array([np.nan], "<f2").view(np.uint8)
    out = np.empty((len(rows), 4 * 2560), np.uint8)
    assert np.isnan(convert(KINDS[name], rows, DType.F32, out))
