"""From the numbers of checkpoints to the stored types: the core gives the bytes of the numpy codecs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dllama.config import DType
from dllama.formats.quants import encode
from dllama.formats.recode import FloatType, in_threads, recode

BITS = hnp.arrays(np.uint16, st.integers(1, 200).map(lambda blocks: blocks * 32), elements=st.integers(0, 0xFFFF))


def numbers_of(bits: np.ndarray, number_type: FloatType) -> tuple[np.ndarray, np.ndarray]:
    """Give stored numbers with these patterns, none of them huge, and their float32 values."""
    if number_type is FloatType.BF16:
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        bits = np.where(np.abs(values) < 30000, bits, 0).astype(np.uint16)  # NaN too
        return bits.view(np.uint8), (bits.astype(np.uint32) << 16).view(np.float32)
    halves = bits.view(np.float16)
    halves = np.where(np.isfinite(halves), halves, 0).astype(np.float16)
    values = halves.astype(np.float32)
    return (halves.view(np.uint8), values) if number_type is FloatType.F16 else (values.view(np.uint8), values)


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("number_type", list(FloatType))
@given(bits=BITS)
def test_the_bytes_of_the_codecs(number_type, dtype, bits):
    numbers, values = numbers_of(bits, number_type)
    expected = encode(dtype, values[None])
    out = np.empty_like(expected)
    assert recode(numbers[None], number_type, dtype, out) == np.abs(values).max()
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("number_type", list(FloatType))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen_wherever_it_is(number_type, value):
    for place in (0, 31, 2047, 2048, 4095):
        values = np.ones(4096, np.float32)
        values[place] = value
        raw = {
            FloatType.F32: lambda values=values: values,
            FloatType.F16: lambda values=values: values.astype(np.float16),
            FloatType.BF16: lambda values=values: (values.view(np.uint32) >> 16).astype(np.uint16),
        }[number_type]().view(np.uint8)
        largest = recode(raw, number_type, DType.Q40, np.empty(4096 // 32 * 18, np.uint8))
        assert np.isnan(largest) if np.isnan(value) else largest == np.inf


def test_unfit_arguments_are_refused():
    out = np.empty(18, np.uint8)
    numbers = np.zeros(64, np.uint8)
    assert recode(numbers, FloatType.BF16, DType.Q40, out) == 0
    for bad in [
        (numbers, 3, DType.Q40, out),
        (numbers, -1, DType.Q40, out),
        (numbers, FloatType.BF16, 4, out),
        (numbers[:62], FloatType.BF16, DType.Q40, out),
        (numbers[:63], FloatType.BF16, DType.F32, out),
        (numbers, FloatType.F32, DType.Q40, out),
        (numbers, FloatType.BF16, DType.Q80, out),
        (numbers, FloatType.BF16, DType.Q40, np.empty(19, np.uint8)[1:]),
    ]:
        with pytest.raises(ValueError, match="must"):
            recode(*bad)  # type: ignore[arg-type]
    read_only = out.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writ"):
        recode(numbers, FloatType.BF16, DType.Q40, read_only)


def test_tasks_run_and_the_first_failure_is_raised():
    done: list[int] = []

    def fail(text: str) -> None:
        raise ValueError(text)

    in_threads([partial(done.append, number) for number in range(20)])
    assert sorted(done) == list(range(20))
    with pytest.raises(ValueError, match="first"):
        in_threads([lambda: done.append(1), lambda: fail("first"), lambda: fail("second")])
