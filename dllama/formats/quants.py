"""Codecs of the stored number types, in numpy: the readable twin of ``csrc/quant``, which it matches bit for bit.

A Q40 block is 18 bytes for 32 values: an F16 scale ``d``, then 16 bytes of which byte j holds value j in its low and
value j + 16 in its high half, each as ``value / d + 8``. A Q80 block is 34 bytes: an F16 scale and 32 signed bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dllama.config import BLOCK_SIZE, DType
from dllama.formats.checked_file import CheckedFile

Floats = npt.NDArray[np.float32]
RawRows = npt.NDArray[np.uint8]

# Scales below the smallest normal number are taken as 0: their reciprocal overflows, and CPUs that flush such numbers
# to zero must give the same bits as those that do not.
_SMALLEST_NORMAL = np.float32(2.0**-126)
_F16_MAX = 65504.0
# The largest magnitude that a type can hold: a block's scale must fit F16.
LARGEST = {
    DType.F32: float(np.finfo(np.float32).max),
    DType.F16: _F16_MAX,
    DType.Q40: 8 * _F16_MAX,
    DType.Q80: 127 * _F16_MAX,
}


def check_magnitude(file: CheckedFile, place: str, dtype: DType, largest: float) -> None:
    """Raise BadFile if ``dtype`` cannot hold numbers read at ``place`` whose largest magnitude this is."""
    if not largest <= LARGEST[dtype]:  # written so that NaN fails
        raise file.bad(place, f"numbers that {dtype.name} can hold", f"one of magnitude {largest}")


def encode(dtype: DType, values: npt.NDArray[Any]) -> RawRows:
    """Store rows of values as ``dtype``.

    Args:
        dtype: The type to store.
        values: ``[rows, cols]``, taken as float32, magnitudes at most ``LARGEST[dtype]``; ``cols`` a multiple of
            ``BLOCK_SIZE`` for the quantized types.

    Returns:
        uint8 ``[rows, dtype.row_bytes(cols)]``.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype is DType.F32:
        return values.astype("<f4", copy=False).view(np.uint8)
    if dtype is DType.F16:
        return values.astype("<f2").view(np.uint8)
    blocks = values.reshape(-1, BLOCK_SIZE)
    raw = _encode_q40(blocks) if dtype is DType.Q40 else _encode_q80(blocks)
    return raw.reshape(len(values), dtype.row_bytes(values.shape[1]))


def decode(dtype: DType, raw: RawRows) -> Floats:
    """Give the float32 values ``[rows, cols]`` of rows stored as ``dtype`` (uint8 ``[rows, row_bytes]``)."""
    raw = np.ascontiguousarray(raw)
    if dtype is DType.F32:
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype is DType.F16:
        return raw.view("<f2").astype(np.float32)
    blocks = raw.reshape(-1, dtype.row_bytes(BLOCK_SIZE))
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    quants = _nibbles(blocks[:, 2:]) if dtype is DType.Q40 else blocks[:, 2:].view(np.int8)
    values: Floats = quants.astype(np.float32) * scales
    return values.reshape(len(raw), -1)


def _encode_q40(blocks: Floats) -> RawRows:
    """Quantize float32 ``[n, 32]`` to uint8 ``[n, 18]``."""
    largest, smallest = blocks.max(axis=1), blocks.min(axis=1)
    # Adding 0 makes a block of negative zeros the same as one of zeros.
    extreme = np.where(largest >= -smallest, largest, smallest) + np.float32(0)
    scales = extreme / np.float32(-8)
    shifted = blocks * _reciprocals(scales)[:, None]
    shifted += np.float32(8.5)
    np.minimum(shifted, np.float32(15), out=shifted)
    quants = np.maximum(shifted, np.float32(0), out=shifted).astype(np.uint8)
    half = BLOCK_SIZE // 2
    return _blocks(scales, quants[:, :half] | (quants[:, half:] << 4))


def _encode_q80(blocks: Floats) -> RawRows:
    """Quantize float32 ``[n, 32]`` to uint8 ``[n, 34]``; halves round to even."""
    scales = np.abs(blocks).max(axis=1) / np.float32(127)
    quants = np.rint(blocks * _reciprocals(scales)[:, None]).astype(np.int8)
    return _blocks(scales, quants.view(np.uint8))


def _reciprocals(scales: Floats) -> Floats:
    """Give 1 / scale, taken before the scale is rounded to F16, or 0 for scales that are taken as 0."""
    usable = np.abs(scales) >= _SMALLEST_NORMAL
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=usable)


def _blocks(scales: Floats, quants: RawRows) -> RawRows:
    raw = np.empty((len(scales), 2 + quants.shape[1]), np.uint8)
    raw[:, :2] = scales.astype("<f2")[:, None].view(np.uint8)
    raw[:, 2:] = quants
    return raw


def _nibbles(packed: RawRows) -> npt.NDArray[np.int8]:
    """Unpack uint8 ``[n, 16]`` to the signed quants ``[n, 32]``."""
    both = np.concatenate([packed & 15, packed >> 4], axis=1)
    return both.view(np.int8) - np.int8(8)
