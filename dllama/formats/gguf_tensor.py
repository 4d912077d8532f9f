"""Tensors of GGUF files as models read them, and which number types a model gets from those that its file stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dllama.config import DType, ModelConfig
from dllama.formats.gguf_arch import Stored
from dllama.formats.gguf_quants import SAME, convert
from dllama.formats.gguf_types import GGML_TYPES, GgmlType
from dllama.formats.quants import RawRows, check_magnitude
from dllama.formats.recode import in_threads
from dllama.formats.tensor import Tensor, TensorInfo

_FLOATS = ("F32", "F16", "BF16")
_SIX_BITS = ("Q8_0", "Q6_K")
_PIECE_BYTES = 1 << 20  # stored bytes that a thread reads and converts at a time


@dataclass(frozen=True, slots=True)
class GgufTensor(Tensor):
    """A tensor inside an open file that may hold it as another type: ``dtype`` is what comes out."""

    stored: GgmlType = GGML_TYPES[0]

    def _read_stored(self, begin: int, out: RawRows) -> None:
        if SAME.get(self.stored.name) is self.dtype:
            Tensor._read_stored(self, begin, out)
            return
        step = max(1, _PIECE_BYTES // self._stored_row_bytes)
        pieces = [
            partial(self._convert, begin + first, out[first : first + step]) for first in range(0, len(out), step)
        ]
        in_threads(pieces)

    @property
    def _stored_row_bytes(self) -> int:
        return self.cols // self.stored.block_size * self.stored.block_bytes

    def _convert(self, begin: int, out: RawRows) -> None:
        """Read and convert rows ``begin`` onward, as many as ``out`` has."""
        place, row_bytes = f"tensor {self.name}", self._stored_row_bytes
        raw = np.empty((len(out), row_bytes), np.uint8)
        self.file.read_into(self.offset + begin * row_bytes, raw.reshape(-1).data, place)
        largest = convert(self.stored, raw, self.dtype, out)
        check_magnitude(self.file, place, self.dtype, largest)


def with_types(config: ModelConfig, stored_types: Mapping[Stored, GgmlType]) -> ModelConfig:
    """Give the config with the number types that the matrices are read in."""
    kinds = {_type_name(part): kind.name for stored, kind in stored_types.items() for part in _matrices(stored.parts)}
    if set(kinds.values()) <= set(_FLOATS):
        is_half = set(kinds.values()) == {"F16"}
        return replace(config, weight_type=DType.F16 if is_half else DType.F32)
    precise = {name for name, kind in kinds.items() if kind in (*_FLOATS, *_SIX_BITS)}
    if len(precise) == len(kinds):
        return replace(config, weight_type=DType.Q80)
    return replace(config, weight_type=DType.Q40, q80_tensors=tuple(sorted(precise)))


def requantized(config: ModelConfig, stored_types: Mapping[Stored, GgmlType]) -> Counter[tuple[str, DType]]:
    """Count the stored tensors that lose precision as they are read, by what they are and what they become."""
    counts: Counter[tuple[str, DType]] = Counter()
    for stored, kind in stored_types.items():
        dtypes = {config.matrix_type(part.name) for part in _matrices(stored.parts)}
        counts.update((kind.name, dtype) for dtype in dtypes if dtype.is_quantized and SAME.get(kind.name) is not dtype)
    return counts


def _matrices(parts: Iterable[TensorInfo]) -> Iterable[TensorInfo]:
    """Pick those whose type the config names."""
    return (part for part in parts if len(part.shape) == 2 and not part.name.endswith(("embed_tokens", ".router")))


def _type_name(part: TensorInfo) -> str:
    """Give the name under which ``q80_tensors`` has a matrix: that of experts without their number."""
    prefix, dot, rest = part.name.partition(".experts.")
    return f"{prefix}{dot}{rest.partition('.')[2]}" if dot else part.name
