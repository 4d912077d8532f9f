"""Which stored types of GGUF files can be read, and how they become ours."""

from __future__ import annotations

import numpy as np

from dllama.config import DType
from dllama.formats.gguf_types import GgmlType
from dllama.formats.quants import RawRows, decode, encode
from dllama.formats.recode import FloatType, recode, recode_blocks

# Types whose stored bytes are ours.
SAME = {"F32": DType.F32, "F16": DType.F16, "Q4_0": DType.Q40, "Q8_0": DType.Q80}
BLOCKS = ("Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
READABLE = (*SAME, "BF16", *BLOCKS)


def convert(kind: GgmlType, raw: RawRows, dtype: DType, out: RawRows) -> float:
    """Write stored rows as ``dtype``, quickly; any number of threads may do so at once.

    Args:
        kind: What the rows are, one of ``READABLE``.
        raw: Contiguous bytes of whole rows.
        dtype: What they become.
        out: Contiguous bytes of as many rows of ``dtype``.

    Returns:
        The largest magnitude of the values, NaN if one is none. Above ``quants.LARGEST[dtype]`` what was written is of
        no use.
    """
    if kind.name in FloatType.__members__:
        return recode(raw, FloatType[kind.name], dtype, out)
    if kind.name in BLOCKS:
        return recode_blocks(raw, kind.id, dtype, out)
    values = decode(SAME[kind.name], raw)
    out[:] = encode(dtype, values)
    return float(np.abs(values).max(initial=0))
