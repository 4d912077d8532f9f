"""The compiled codecs against the numpy ones: the same bytes, whatever the level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dllama import _native
from dllama.config import DType
from dllama.formats.quants import decode, encode

TINY = 2.0**-122  # scales of such values are subnormal, where the codecs give up
VALUES = hnp.arrays(np.float32, (3, 64), elements=st.floats(-3e4, 3e4, width=32) | st.floats(-TINY, TINY, width=32))
QUANTIZED = pytest.mark.parametrize("dtype", [DType.Q40, DType.Q80])


@QUANTIZED
@given(VALUES)
def test_both_codecs_give_the_same_bytes(dtype, values):
    expected = encode(dtype, values)
    assert _native.quantize(values, int(dtype)).tobytes() == expected.tobytes()
    assert _native.dequantize(expected.reshape(-1), int(dtype)).tobytes() == decode(dtype, expected).tobytes()


@QUANTIZED
def test_half_way_values_round_alike(dtype):
    scale = np.float32(127 if dtype is DType.Q80 else -8)
    values = np.full((1, 32), scale)
    values[0, 1:] = np.arange(31, dtype=np.float32) / 2 - 7.5
    assert _native.quantize(values, int(dtype)).tobytes() == encode(dtype, values).tobytes()


def test_what_is_no_block_is_refused():
    with pytest.raises(ValueError, match="whole blocks of 32"):
        _native.quantize(np.zeros(33, np.float32), int(DType.Q40))
    with pytest.raises(ValueError, match="whole blocks"):
        _native.dequantize(np.zeros(19, np.uint8), int(DType.Q40))
    with pytest.raises(ValueError, match="Q40"):
        _native.quantize(np.zeros(32, np.float32), int(DType.F16))
