"""Writing ``.m`` model files: as distributed-llama does where its keys say all of a model, else with keys of our own.

Tensors are asked for one by one in file order, taken in row chunks of any size, and encoded and written in small
pieces, so that a model larger than memory can be written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama.config import ModelConfig
from dllama.errors import BadFile, UsageError
from dllama.formats.checked_file import new_file
from dllama.formats.m_config import encode_config
from dllama.formats.m_header import EPS_OF_CODE, MAGIC, MOST_CONFIG_BYTES, Arch, Key, MHeader, RopeType, config_of
from dllama.formats.m_layout import is_rotated, tensors_in_order, total_nbytes
from dllama.formats.quants import LARGEST, RawRows, encode
from dllama.formats.tensor import TensorInfo, interleaved_from_halves

# Rows of one tensor in Hugging Face's order: all of them, or consecutive chunks. Floats [n, cols] (a vector may be
# [cols]) are encoded here; uint8 [n, row_bytes] is taken as encoded already.
TensorRows = npt.NDArray[Any] | Iterable[npt.NDArray[Any]]
TensorSource = Mapping[str, TensorRows] | Callable[[TensorInfo], TensorRows]

_PIECE_VALUES = 1 << 20  # values encoded at a time: temporaries of a few 4 MiB arrays


def write_m_file(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: TensorSource,
    on_tensor: Callable[[TensorInfo], None] | None = None,
    header: bytes | None = None,
) -> None:
    """Write a model as a ``.m`` file: matrices as ``config.weight_type``, embedding and norms as F32.

    The file appears at ``path`` when it is complete; until then, and after a failure, ``path`` is what it was.

    Args:
        path: Where to write.
        config: The model.
        tensors: Gives the rows of each tensor, in Hugging Face's order: a mapping of names to arrays, or a function
            that is called with the ``TensorInfo`` of each tensor in file order and returns an array or an iterable of
            row chunks. Names as in ``m_layout``. For a model with tied embeddings give ``embed_tokens`` as
            ``lm_head`` too.
        on_tensor: Called after each tensor is written, e.g. to show progress.
        header: The header, if it is not to be the one that ``build_header`` gives; it must say the same.

    Raises:
        UsageError: There can be no such model, or a tensor is missing, of another shape, or not finite.
        DllamaError: The disk is full or fails.
    """
    own, is_interleaved = _header_of(config)
    header = header or own
    rows_of = tensors if callable(tensors) else _from_mapping(tensors)
    with new_file(path, len(header) + total_nbytes(config)) as file:
        file.write(header)
        for info in tensors_in_order(config):
            head_dim = config.head_dim if is_interleaved and is_rotated(info.name) else 0
            for raw in _stored_rows(info, head_dim, rows_of(info)):
                file.write(raw.data)
            if on_tensor:
                on_tensor(info)


def _from_mapping(tensors: Mapping[str, TensorRows]) -> Callable[[TensorInfo], TensorRows]:
    def rows_of(info: TensorInfo) -> TensorRows:
        if info.name not in tensors:
            raise UsageError(f"{info.name}: this tensor is missing")
        return tensors[info.name]

    return rows_of


def _stored_rows(info: TensorInfo, head_dim: int, rows: TensorRows) -> Iterator[RawRows]:
    """Give a tensor's rows as the file holds them, in pieces; ``head_dim`` is 0 unless heads are interleaved."""
    done = 0
    for raw in _whole_heads(_encoded(info, rows), head_dim or 1):
        done += len(raw)
        yield np.ascontiguousarray(interleaved_from_halves(raw, head_dim) if head_dim else raw)
    if done != info.rows:
        raise UsageError(f"{info.name}: expected {info.rows} rows, found {done}")


def _encoded(info: TensorInfo, rows: TensorRows) -> Iterator[RawRows]:
    piece_rows = max(1, _PIECE_VALUES // info.cols)
    for chunk in [rows] if isinstance(rows, np.ndarray) else rows:
        chunk = np.atleast_2d(chunk)
        width = info.row_bytes if chunk.dtype == np.uint8 else info.cols
        if chunk.ndim != 2 or chunk.shape[1] != width:
            raise UsageError(f"{info.name}: expected rows of {width}, found an array of shape {list(chunk.shape)}")
        for begin in range(0, len(chunk), piece_rows):
            piece = chunk[begin : begin + piece_rows]
            yield piece if piece.dtype == np.uint8 else _encode_checked(info, piece)


def _encode_checked(info: TensorInfo, piece: npt.NDArray[Any]) -> RawRows:
    values = np.asarray(piece, dtype=np.float32)
    largest = float(np.abs(values).max())
    if not largest <= LARGEST[info.dtype]:  # written so that NaN fails
        raise UsageError(f"{info.name}: a value of magnitude {largest} cannot be stored as {info.dtype.name}")
    return encode(info.dtype, values)


def _whole_heads(chunks: Iterable[RawRows], head_dim: int) -> Iterator[RawRows]:
    """Cut and join chunks so that each ends where a head ends; the last may not."""
    rest: RawRows | None = None
    for chunk in chunks:
        joined = chunk if rest is None else np.concatenate([rest, chunk])
        whole = len(joined) - len(joined) % head_dim
        if whole:
            yield joined[:whole]
        rest = joined[whole:] if whole < len(joined) else None
    if rest is not None:
        raise UsageError(f"a tensor of heads of {head_dim} rows ends inside a head")


def build_header(config: ModelConfig) -> bytes:
    """Give all that stands before the first tensor: keys that distributed-llama reads, if they say all of the config.

    Raises:
        UsageError: There can be no such model.
    """
    return _header_of(config)[0]


def _header_of(config: ModelConfig) -> tuple[bytes, bool]:
    """Give the header, and whether rows of q and k lie as interleaved pairs behind it."""
    if problem := config.problem():
        raise UsageError(f"this model cannot be: {problem}")
    pairs = _peer_pairs(config)
    if pairs is not None:
        return _packed(pairs), MHeader("", 0, pairs).is_interleaved
    raw = encode_config(config)
    if len(raw) > MOST_CONFIG_BYTES:
        raise UsageError(f"a .m file can hold a config of {MOST_CONFIG_BYTES} bytes, and this one has {len(raw)}")
    return _packed({Key.version: 0, Key.arch_type: Arch.OWN, Key.config_bytes: len(raw)}) + raw, False


def _packed(pairs: Mapping[Key, int]) -> bytes:
    raw = struct.pack("<Ii", MAGIC, 8 + 8 * len(pairs))
    return raw + b"".join(struct.pack("<ii", key, value) for key, value in sorted(pairs.items()))


def _peer_pairs(config: ModelConfig) -> dict[Key, int] | None:
    """Give distributed-llama's keys of a model; None if something of it is lost when they are read again."""
    known_as = {"mistral": "llama"}.get(config.model_type, config.model_type)  # without windows they are the same
    try:
        pairs = dict(_pairs(replace(config, model_type=known_as)))
        found = config_of(MHeader("", 0, pairs))
    except (_NotWhole, KeyError, BadFile):
        return None
    return pairs if found == replace(config, model_type=known_as) else None


class _NotWhole(Exception):
    """A value that a key cannot hold."""


def _pairs(config: ModelConfig) -> Iterator[tuple[Key, int]]:
    arch = {"llama": Arch.LLAMA, "qwen3": Arch.QWEN3, "qwen3_moe": Arch.QWEN3_MOE}[config.model_type]
    has_experts = arch is Arch.QWEN3_MOE
    yield Key.version, 0
    yield Key.arch_type, arch
    yield Key.num_experts, config.num_experts if has_experts else 0
    yield Key.num_experts_per_tok, config.num_experts_per_tok if has_experts else 0
    if has_experts:
        yield Key.moe_intermediate_size, config.moe_intermediate_size
    yield Key.hidden_act, 1
    yield Key.rms_norm_eps, {eps: code for code, eps in EPS_OF_CODE.items()}[config.rms_norm_eps]
    yield Key.weight_type, config.weight_type
    for key in (Key.hidden_size, Key.intermediate_size, Key.num_layers, Key.num_heads, Key.num_kv_heads):
        yield key, getattr(config, key.name)
    for key in (Key.vocab_size, Key.max_seq_len, Key.head_dim):
        yield key, getattr(config, key.name)
    yield Key.rope_theta, _whole(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is None:
        yield Key.rope_type, RopeType.LLAMA if arch is Arch.LLAMA else RopeType.FALCON
        return
    yield Key.rope_type, RopeType.LLAMA3_1
    yield Key.rope_scaling_factor, _whole(scaling.factor)
    yield Key.rope_low_freq_factor, _whole(scaling.low_freq_factor)
    yield Key.rope_high_freq_factor, _whole(scaling.high_freq_factor)
    yield Key.rope_original_max_seq_len, _whole(scaling.original_max_seq_len)


def _whole(value: float) -> int:
    if value != int(value) or not 0 <= value < 1 << 31:
        raise _NotWhole
    return int(value)
