"""The numpy codecs against the formats' definitions, written out value by value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dllama.config import DType
from dllama.formats.quants import LARGEST, decode, encode

F32 = np.float32
BLOCKS = hnp.arrays(np.float32, (1, 32), elements=st.floats(-3e4, 3e4, width=32))
TINY_BLOCKS = hnp.arrays(np.float32, (1, 32), elements=st.floats(-(2.0**-122), 2.0**-122, width=32))


def reciprocal(scale: np.float32) -> np.float32:
    return F32(1) / scale if abs(scale) >= F32(2.0**-126) else F32(0)


def q40_block(values: np.ndarray) -> bytes:
    top = max(values, key=abs)
    if -top in values:
        top = abs(top)
    scale = (top + F32(0)) / F32(-8)
    quants = [min(15, max(0, int(value * reciprocal(scale) + F32(8.5)))) for value in values]
    return np.float16(scale).tobytes() + bytes(quants[j] | quants[j + 16] << 4 for j in range(16))


def q80_block(values: np.ndarray) -> bytes:
    scale = max(abs(values)) / F32(127)
    quants = [round(float(value * reciprocal(scale))) for value in values]  # Python rounds halves to even
    return np.float16(scale).tobytes() + np.array(quants, np.int8).tobytes()


@given(BLOCKS | TINY_BLOCKS)
def test_q40_is_its_definition(values):
    assert encode(DType.Q40, values).tobytes() == q40_block(values[0])


@given(BLOCKS | TINY_BLOCKS)
def test_q80_is_its_definition(values):
    assert encode(DType.Q80, values).tobytes() == q80_block(values[0])


def test_q40_nibbles_lie_in_halves():
    values = np.zeros((1, 32), F32)
    values[0, 0], values[0, 1], values[0, 17] = -8, 1, 7
    raw = encode(DType.Q40, values)[0]
    assert raw[:2].tobytes() == np.float16(1).tobytes()
    assert list(raw[2:6]) == [0x80, 0xF9, 0x88, 0x88]
    assert (decode(DType.Q40, raw[None]) == values).all()


@pytest.mark.parametrize(("first", "second"), [(4.0, -4.0), (-4.0, 4.0)])
def test_q40_takes_the_positive_extreme_of_two(first, second):
    values = np.zeros((1, 32), F32)
    values[0, 3], values[0, 9] = first, second
    assert encode(DType.Q40, values)[0, :2].view("<f2")[0] == -0.5


def test_q80_rounds_halves_to_even():
    values = np.zeros((1, 32), F32)
    values[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    assert list(encode(DType.Q80, values)[0, 2:8].view(np.int8)) == [127, 0, 2, 2, 0, -2]


@pytest.mark.parametrize("dtype", [DType.Q40, DType.Q80])
def test_zeros_of_either_sign_give_the_same_bytes(dtype):
    zeros = np.zeros((2, 32), F32)
    zeros[1] = -zeros[1]
    zeros[1, 5] = 0
    raw = encode(dtype, zeros)
    assert (raw[0] == raw[1]).all()
    assert (decode(dtype, raw) == 0).all()


@pytest.mark.parametrize("dtype", list(DType))
def test_the_largest_values_stay_finite(dtype):
    largest = np.zeros((1, 32), F32)
    largest[0, 0] = F32(LARGEST[dtype])
    decoded = decode(dtype, encode(dtype, largest))
    # Q40 has no quant for plus 8 steps, but the sign is on the scale.
    assert decoded[0, 0] == pytest.approx(LARGEST[dtype], rel=1e-6)


# The step between neighbouring values is the scale: largest / 8 or / 127; an error is at most half of it, a whole one
# at the end that Q40 cannot reach (7 instead of 8), plus the rounding of the scale (2^-11) on the largest value.
@pytest.mark.parametrize(
    ("dtype", "relative"), [(DType.F32, 0), (DType.F16, 2**-11), (DType.Q80, 0.5 / 127 + 2**-11), (DType.Q40, 0.126)]
)
@given(values=hnp.arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32)))
def test_decoding_gives_values_back_within_a_step(dtype, relative, values):
    raw = encode(dtype, values)
    assert raw.shape == (3, dtype.row_bytes(64))
    blocks = values.reshape(-1, 32)
    errors = np.abs(decode(dtype, raw).reshape(-1, 32) - blocks)
    # Scales below the smallest half, 2^-24, are lost: 8 or 127 of them.
    assert (errors <= relative * np.abs(blocks).max(axis=1, keepdims=True) + 127 * 2.0**-24).all()


@pytest.mark.parametrize("dtype", list(DType))
def test_rows_are_encoded_one_by_one(dtype):
    values = np.random.default_rng(0).standard_normal((5, 96), F32)
    rows = [encode(dtype, row[None]) for row in values]
    assert (encode(dtype, values) == np.concatenate(rows)).all()
    assert (encode(dtype, np.asfortranarray(values, np.float64)) == np.concatenate(rows)).all()
