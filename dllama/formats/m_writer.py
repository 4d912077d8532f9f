"""Writing ``.m`` model files that distributed-llama reads too: its keys and its tensor order, nothing of our own.

Tensors are asked for one by one in file order, taken in row chunks of any size, and encoded and written in small
pieces, so that a model larger than memory can be written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama.config import ModelConfig, QkNorm
from dllama.errors import UsageError
from dllama.formats.checked_file import new_file
from dllama.formats.m_header import EPS_OF_CODE, MAGIC, Arch, Key, RopeType
from dllama.formats.m_layout import interleaved_head_dim, tensors_in_order, total_nbytes
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
) -> None:
    """Write a model as a ``.m`` file: matrices as ``config.weight_type``, embedding and norms as F32.

    The file appears at ``path`` when it is complete; until then, and after a failure, ``path`` is what it was.

    Args:
        path: Where to write.
        config: The model. Must be one that the format can hold: Llama, Qwen3 or Qwen3 MoE, ``rms_norm_eps`` 1e-5
            or 1e-6.
        tensors: Gives the rows of each tensor, in Hugging Face's order: a mapping of names to arrays, or a function
            that is called with the ``TensorInfo`` of each tensor in file order and returns an array or an iterable of
            row chunks. Names as in ``m_layout``. For a model with tied embeddings give ``embed_tokens`` as
            ``lm_head`` too.
        on_tensor: Called after each tensor is written, e.g. to show progress.

    Raises:
        UsageError: The format cannot hold the model, or a tensor is missing, of another shape, or not finite.
        DllamaError: The disk is full or fails.
    """
    header = build_header(config)
    rows_of = tensors if callable(tensors) else _from_mapping(tensors)
    with new_file(path, len(header) + total_nbytes(config)) as file:
        file.write(header)
        for info in tensors_in_order(config):
            for raw in _stored_rows(info, interleaved_head_dim(config, info.name), rows_of(info)):
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
    """Give the header of a file that distributed-llama reads too: no key of our own, whole numbers only.

    Raises:
        UsageError: The format cannot hold this model.
    """
    pairs = dict(_pairs(config))
    raw = struct.pack("<Ii", MAGIC, 8 + 8 * len(pairs))
    return raw + b"".join(struct.pack("<ii", key, value) for key, value in sorted(pairs.items()))


def _pairs(config: ModelConfig) -> Iterator[tuple[Key, int]]:
    problem = config.problem()
    if problem:
        raise UsageError(f"this model cannot be: {problem}")
    code = next((code for code, eps in EPS_OF_CODE.items() if eps == config.rms_norm_eps), None)
    if code is None:
        raise UsageError(f"rms_norm_eps: a .m file can hold 1e-05 and 1e-06, not {config.rms_norm_eps}")
    yield Key.version, 0
    yield Key.arch_type, arch_for(config)
    has_experts = arch_for(config) is Arch.QWEN3_MOE
    yield Key.num_experts, config.num_experts if has_experts else 0
    yield Key.num_experts_per_tok, config.num_experts_per_tok if has_experts else 0
    if has_experts:
        yield Key.moe_intermediate_size, config.moe_intermediate_size
    yield Key.hidden_act, 1
    yield Key.rms_norm_eps, code
    yield Key.weight_type, config.weight_type
    for key in (Key.hidden_size, Key.intermediate_size, Key.num_layers, Key.num_heads, Key.num_kv_heads):
        yield key, getattr(config, key.name)
    for key in (Key.vocab_size, Key.max_seq_len, Key.head_dim):
        yield key, getattr(config, key.name)
    yield Key.rope_theta, _whole("rope_theta", config.rope_theta)
    yield from _scaling_pairs(config)


def _scaling_pairs(config: ModelConfig) -> Iterator[tuple[Key, int]]:
    scaling = config.rope_scaling
    if scaling is None:
        yield Key.rope_type, RopeType.LLAMA if arch_for(config) is Arch.LLAMA else RopeType.FALCON
        return
    if arch_for(config) is not Arch.LLAMA:
        raise UsageError("rope_scaling: a .m file of a Qwen3 model cannot hold any")
    yield Key.rope_type, RopeType.LLAMA3_1
    yield Key.rope_scaling_factor, _whole("rope_scaling.factor", scaling.factor)
    yield Key.rope_low_freq_factor, _whole("rope_scaling.low_freq_factor", scaling.low_freq_factor)
    yield Key.rope_high_freq_factor, _whole("rope_scaling.high_freq_factor", scaling.high_freq_factor)
    yield Key.rope_original_max_seq_len, scaling.original_max_seq_len


def arch_for(config: ModelConfig) -> Arch:
    """Give the architecture under which a ``.m`` file holds a model."""
    kinds = {(layer.qk_norm, layer.has_experts) for layer in config.layers}
    if config.model_type in ("llama", "mistral") and kinds == {(QkNorm.NONE, False)}:
        return Arch.LLAMA
    if config.model_type == "qwen3" and kinds == {(QkNorm.HEAD, False)}:
        return Arch.QWEN3
    if config.model_type == "qwen3_moe" and kinds == {(QkNorm.HEAD, True)} and config.norm_topk_prob:
        return Arch.QWEN3_MOE
    raise UsageError(f"a .m file cannot hold a model of type {config.model_type!r}, only Llama, Qwen3 and Qwen3 MoE")


def _whole(name: str, value: float) -> int:
    if value != int(value) or not 0 < value < 1 << 31:
        raise UsageError(f"{name}: a .m file can hold whole numbers below 2^31, not {value}")
    return int(value)
