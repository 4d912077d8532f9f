"""llama.cpp's blocks decoded in numpy: the readable twin of ``csrc/quant/ggml``, which gives the same bits.

Each decoder takes blocks uint8 ``[n, block_bytes]`` and gives float32 ``[n, block_size]``. ``d`` is a scale and ``m`` a
minimum in F16. In blocks of 256 the scales and minima of groups of 16 or 32 values are small whole numbers, themselves
multiplied by ``d`` and ``m``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dllama.formats.gguf_types import GGML_TYPES
from dllama.formats.quants import Floats, RawRows

_Quants = npt.NDArray[np.uint8]


def decode_rows(name: str, raw: RawRows) -> Floats:
    """Give the float32 values ``[rows, cols]`` of stored rows, uint8 ``[rows, row_bytes]``."""
    kind = next(kind for kind in GGML_TYPES.values() if kind.name == name)
    blocks = np.ascontiguousarray(raw).reshape(-1, kind.block_bytes)
    return DECODERS[name](blocks).reshape(len(raw), -1)


def _half(blocks: RawRows, begin: int) -> Floats:
    """Give the F16 number at byte ``begin`` of each block, ``[n, 1]``."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float32)


def _bits(packed: RawRows, width: int, run: int) -> _Quants:
    """Unpack numbers of ``width`` bits, uint8 ``[n, count]``.

    Of each run of bytes the lowest bits come first, one number per byte, then those above them, and so on.
    """
    parts = 8 // width
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> shifts) & np.uint8((1 << width) - 1)).reshape(len(packed), packed.shape[1] * parts)


def _fifth_bits(packed: RawRows) -> _Quants:
    """Give bit j of 32 as 16 or 0, uint8 ``[n, 32]``."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _scaled(quants: npt.NDArray[np.uint8 | np.int8], scales: Floats, minima: Floats | None = None) -> Floats:
    """Multiply groups of values by their scales ``[n, groups]``, and take minima off."""
    groups = quants.reshape(*scales.shape, -1).astype(np.float32)
    groups *= scales[:, :, None]
    if minima is not None:
        groups -= minima[:, :, None]
    return groups.reshape(len(quants), -1)


def _bf16(blocks: RawRows) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q4_1(blocks: RawRows) -> Floats:
    return _scaled(_bits(blocks[:, 4:], 4, 16), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: RawRows) -> Floats:
    quants = _bits(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6])
    return _scaled(quants.view(np.int8) - np.int8(16), _half(blocks, 0))


def _q5_1(blocks: RawRows) -> Floats:
    quants = _bits(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8])
    return _scaled(quants, _half(blocks, 0), -_half(blocks, 2))


def _q2_k(blocks: RawRows) -> Floats:
    scales, minima = blocks[:, :16] & np.uint8(15), blocks[:, :16] >> np.uint8(4)
    return _scaled(_bits(blocks[:, 16:80], 2, 32), _half(blocks, 80) * scales, _half(blocks, 82) * minima)


def _q3_k(blocks: RawRows) -> Floats:
    """Two low bits, and a third bit that takes 4 off where it is 0; 16 scales of 6 bits, less 32."""
    low, high = _bits(blocks[:, 32:96], 2, 32), _bits(blocks[:, :32], 1, 32)
    quants = (low | (high << np.uint8(2))).view(np.int8) - np.int8(4)
    scales = _bits(blocks[:, 96:104], 4, 8) | (_bits(blocks[:, 104:108], 2, 4) << np.uint8(4))
    return _scaled(quants, _half(blocks, 108) * (scales.view(np.int8) - np.int8(32)))


def _scales_and_minima(blocks: RawRows) -> tuple[Floats, Floats]:
    """Unpack the head of a Q4_K or Q5_K block: 8 scales and 8 minima of 6 bits in bytes 4 to 16.

    The first four of each are the low bits of bytes 0 to 8; of the others four bits lie in bytes 8 to 12, and two in
    the high bits of bytes 0 to 8.
    """
    packed = blocks[:, 4:16]
    first, high, low = packed[:, :8] & np.uint8(63), packed[:, :8] >> np.uint8(6), packed[:, 8:]
    scales = np.concatenate([first[:, :4], (low & np.uint8(15)) | (high[:, :4] << np.uint8(4))], axis=1)
    minima = np.concatenate([first[:, 4:], (low >> np.uint8(4)) | (high[:, 4:] << np.uint8(4))], axis=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _q4_k(blocks: RawRows) -> Floats:
    return _scaled(_bits(blocks[:, 16:], 4, 32), *_scales_and_minima(blocks))


def _q5_k(blocks: RawRows) -> Floats:
    quants = _bits(blocks[:, 48:], 4, 32) | (_bits(blocks[:, 16:48], 1, 32) << np.uint8(4))
    return _scaled(quants, *_scales_and_minima(blocks))


def _q6_k(blocks: RawRows) -> Floats:
    quants = _bits(blocks[:, :128], 4, 64) | (_bits(blocks[:, 128:192], 2, 32) << np.uint8(4))
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return _scaled(quants.view(np.int8) - np.int8(32), scales)


DECODERS: dict[str, Callable[[RawRows], Floats]] = {
    "BF16": _bf16,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
