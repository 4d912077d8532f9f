"""A model that lies in memory, made of random weights: what features need that no file format holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from dllama.config import ModelConfig
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.quants import Floats, RawRows, decode, encode
from dllama.formats.tensor import TensorInfo


@dataclass(frozen=True, slots=True)
class MemoryTensor(TensorInfo):
    """A tensor with its rows, uint8 ``[rows, row_bytes]``."""

    raw: RawRows

    def read_rows(self, begin: int, end: int, out: RawRows | None = None) -> RawRows:
        if out is None:
            return self.raw[begin:end]
        out[...] = self.raw[begin:end]
        return out

    def read_floats(self, begin: int = 0, end: int | None = None) -> Floats:
        return decode(self.dtype, self.raw[begin:end])


class MemoryModel:
    """A model source (``dllama.formats.source``) of random weights, the same for the same seed."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.path, self.config = "memory", config
        self.tensors = {info.name: _random_tensor(rng, info) for info in tensors_in_order(config)}

    def embedding_rows(self, token_ids: Sequence[int]) -> Floats:
        return self.tensors["embed_tokens"].read_floats()[np.asarray(token_ids)]

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        return {}

    def identity(self) -> str:
        return self.path

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def random_values(rng: np.random.Generator, info: TensorInfo) -> Floats:
    """Give random weights that are scaled so that attention is peaked and no feature is lost in noise."""
    values = rng.standard_normal(info.shape, dtype=np.float32)
    kind = info.name.rpartition(".")[2]
    if kind.endswith("_bias"):
        return values * np.float32(0.5)
    if len(info.shape) == 1:
        return values * np.float32(0.3) + np.float32(1.5 if kind in ("q_norm", "k_norm") else 1.0)
    if kind == "embed_tokens":
        return values * np.float32(0.05)
    gains = {"q_proj": 1.6, "k_proj": 1.6, "o_proj": 0.3, "down_proj": 0.3, "lm_head": 2.0, "router": 2.0}
    return values * np.float32(gains.get(kind, 1.2) / np.sqrt(info.cols))


def _random_tensor(rng: np.random.Generator, info: TensorInfo) -> MemoryTensor:
    raw = encode(info.dtype, random_values(rng, info)).reshape(info.rows, info.row_bytes)
    return MemoryTensor(info.name, info.dtype, info.shape, raw)
