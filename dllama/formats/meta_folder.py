"""A folder of Meta's, ``params.json`` and ``consolidated.*.pth``, as a model.

Larger models come in several files, each with a slice of every matrix; rows are put together as they are read. Llama 1
and 2 cut the embedding's columns and Llama 3 its rows, so shapes alone say which way a matrix was cut.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dllama.config import DType, ModelConfig
from dllama.errors import BadFile
from dllama.families import describe
from dllama.formats.checked_file import CheckedFile
from dllama.formats.json_file import read_json
from dllama.formats.m_layout import is_rotated, tensors_in_order
from dllama.formats.meta_params import as_config
from dllama.formats.opened import OpenModel
from dllama.formats.pth_file import PthTensor, open_pth
from dllama.formats.quants import Floats, RawRows, check_magnitude, decode
from dllama.formats.recode import recode
from dllama.formats.tensor import TensorInfo, halves_from_interleaved

_MOST_FILES = 64
_NAMES = {"embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output"}
_LAYER_NAMES = {
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "gate_proj": "feed_forward.w1",
    "down_proj": "feed_forward.w2",
    "up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class MetaTensor(TensorInfo):
    """A tensor in the slices that the files hold.

    Attributes:
        slices: Its parts, in order.
        is_cut_by_columns: Whether each has some columns of all rows, rather than some rows.
        interleaved_head_dim: As in ``tensor.Tensor``.
    """

    slices: tuple[PthTensor, ...]
    is_cut_by_columns: bool
    interleaved_head_dim: int

    def read_rows(self, begin: int, end: int, out: RawRows | None = None) -> RawRows:
        """Read rows ``begin`` to ``end`` as ``dtype``, as ``StoredTensor`` has it."""
        out = self.room(begin, end, out)
        if begin == end:
            return out
        largest = recode(self._numbers(begin, end), self.slices[0].number_type, self.dtype, out)
        check_magnitude(self.slices[0].file, f"tensor {self.name}", self.dtype, largest)
        return out

    def read_floats(self, begin: int = 0, end: int | None = None) -> Floats:
        """Read rows ``begin`` to ``end`` (all of them by default) as float32 values ``[end - begin, cols]``."""
        return decode(self.dtype, self.read_rows(begin, self.rows if end is None else end))

    def _numbers(self, begin: int, end: int) -> RawRows:
        """Read rows as the checkpoint's numbers, in Hugging Face's order."""
        head_dim = self.interleaved_head_dim
        if not head_dim:
            return self._stored(begin, end)
        first, last = begin - begin % head_dim, end + -end % head_dim
        stored = self._stored(first, last)
        return np.ascontiguousarray(halves_from_interleaved(stored, head_dim)[begin - first : end - first])

    def _stored(self, begin: int, end: int) -> RawRows:
        if self.is_cut_by_columns:
            return np.concatenate([self._slice_rows(part, begin, end) for part in self.slices], axis=1)
        rows, pieces = self.rows // len(self.slices), []
        for index, part in enumerate(self.slices):
            low, high = max(begin, index * rows), min(end, (index + 1) * rows)
            if low < high:
                pieces.append(self._slice_rows(part, low - index * rows, high - index * rows))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _slice_rows(self, part: PthTensor, begin: int, end: int) -> RawRows:
        row_bytes = part.shape[-1] * part.number_type.num_bytes
        numbers = np.empty((end - begin, row_bytes), np.uint8)
        part.file.read_into(part.offset + begin * row_bytes, numbers.reshape(-1).data, f"tensor {self.name}")
        return numbers


class MetaModel(OpenModel[MetaTensor]):
    """An open checkpoint of Meta's.

    Attributes:
        params: The parsed ``params.json``.
    """

    def __init__(
        self,
        path: str,
        config: ModelConfig,
        tensors: dict[str, MetaTensor],
        files: Sequence[CheckedFile],
        params: dict[str, Any],
    ) -> None:
        super().__init__(path, config, tensors, files)
        self.params = params
        self._identity = "; ".join([config.weight_type.name, *(file.identity() for file in files)])

    def identity(self) -> str:
        """Say which files these are, as of when, and what their weights become."""
        return self._identity


def open_meta_folder(folder: str | os.PathLike[str], weight_type: DType) -> MetaModel:
    """Open a checkpoint.

    Args:
        folder: Where ``params.json`` and ``consolidated.*.pth`` are.
        weight_type: What matrices are read as.

    Raises:
        UsageError: A file is missing, or may not be opened.
        BadFile: A file is broken, or holds anything but tensors, or they do not fit together.
        UnsupportedModel: It is no plain Llama.
    """
    folder = Path(folder)
    files = [CheckedFile(folder / "params.json", "parameters")]
    try:
        params = read_json(files[0])
        if not isinstance(params, dict):
            raise files[0].bad("", "a JSON object", type(params).__name__)
        shards = []
        for path in _shard_paths(folder):
            file, tensors = open_pth(path)
            files.append(file)
            shards.append(tensors)
        config = replace(_config(params, folder, shards), weight_type=weight_type)
        found = {info.name: _merged(config, info, shards, folder) for info in tensors_in_order(config)}
        return MetaModel(str(folder), config, found, files, params)
    except BaseException:
        for file in files:
            file.close()
        raise


def _shard_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not 1 <= len(paths) <= _MOST_FILES:
        raise BadFile(folder, "", f"1 to {_MOST_FILES} files consolidated.NN.pth", f"{len(paths)}")
    return paths


def _config(params: dict[str, Any], folder: Path, shards: Sequence[Mapping[str, PthTensor]]) -> ModelConfig:
    """Give the model, with the sizes that only the checkpoint tells."""
    path = folder / "params.json"
    output = "output" if "output.weight" in shards[0] else "tok_embeddings"
    vocab_size, hidden = _whole_shape(shards, f"{output}.weight", folder)
    if output == "tok_embeddings" and hidden != params.get("dim"):  # cut by columns
        vocab_size //= len(shards)
    ffn_size, _ = _whole_shape(shards, "layers.0.feed_forward.w1.weight", folder)
    return describe(as_config(params, path, vocab_size, ffn_size), path).config


def _whole_shape(shards: Sequence[Mapping[str, PthTensor]], name: str, folder: Path) -> tuple[int, int]:
    """Give the sizes of a matrix whose rows are cut."""
    tensor = shards[0].get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise BadFile(folder, f"tensor {name}", "a matrix", "none")
    return tensor.shape[0] * len(shards), tensor.shape[1]


def _merged(
    config: ModelConfig, info: TensorInfo, shards: Sequence[Mapping[str, PthTensor]], folder: Path
) -> MetaTensor:
    """Find the slices of a tensor, and which way it was cut."""
    name = _meta_name(info.name, shards[0])
    slices = tuple(shard[name] for shard in shards if name in shard)
    place = f"tensor {name}"
    if len(slices) != len(shards):
        raise BadFile(folder, place, f"it in {len(shards)} files", f"{len(slices)}")
    count, shape = len(slices), slices[0].shape
    is_vector = len(info.shape) == len(shape) == 1
    is_by_rows = (shape[0] if is_vector else shape[0] * count, *shape[1:]) == info.shape
    is_by_columns = not is_vector and (*shape[:-1], shape[-1] * count) == info.shape
    kinds = {(part.shape, part.number_type) for part in slices}
    if len(kinds) != 1 or not (is_by_rows or is_by_columns):
        found = ", ".join(f"{part.number_type.name} {list(part.shape)}" for part in slices[:4])
        raise BadFile(folder, place, f"{count} equal slices of {list(info.shape)}", found)
    if is_vector:  # every file has all of it
        slices = slices[:1]
    head_dim = config.head_dim if is_rotated(info.name) else 0
    return MetaTensor(info.name, info.dtype, info.shape, slices, not is_by_rows, head_dim)


def _meta_name(name: str, shard: Mapping[str, PthTensor]) -> str:
    """Give a tensor's name in the checkpoint."""
    if name == "lm_head" and "output.weight" not in shard:
        name = "embed_tokens"
    if name in _NAMES:
        return f"{_NAMES[name]}.weight"
    _, layer, tensor = name.split(".")
    return f"layers.{layer}.{_LAYER_NAMES[tensor]}.weight"
