"""Hugging Face folders as models: ``config.json``, and weights in one or more ``.safetensors`` files.

Weights are converted to the stored types as they are read, row by row: nothing is loaded at opening, and every tensor
is found and its shape compared with the config's. What a config means is the business of ``dllama.families``.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from dllama.config import DType, ModelConfig
from dllama.errors import BadFile, UnsupportedModel, UsageError
from dllama.families import Part, describe
from dllama.formats.checked_file import CheckedFile
from dllama.formats.hf_shards import shard_names
from dllama.formats.json_file import read_json
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.opened import OpenModel
from dllama.formats.quants import Floats, RawRows, check_magnitude, decode
from dllama.formats.recode import FloatType, in_threads, recode
from dllama.formats.safetensors_file import StoredArray, open_safetensors
from dllama.formats.tensor import TensorInfo
from dllama.hub.folders import CONFIG, INDEX

_CHUNK_BYTES = 1 << 20  # of a checkpoint that one thread converts at a time
_FREQUENCIES = ".rotary_emb.inv_freq"  # the end of the names of tensors that are not read


@dataclass(frozen=True, slots=True)
class CheckpointTensor(TensorInfo):
    """A tensor of a checkpoint that is ``dtype`` when it is read.

    Attributes:
        number_type: What the checkpoint has.
        stored_name: Its name there.
        offset: Of its first byte in ``file``.
        added: Added to every number.
    """

    number_type: FloatType
    stored_name: str
    file: CheckedFile
    offset: int
    added: float

    def read_rows(self, begin: int, end: int, out: RawRows | None = None) -> RawRows:
        """Read and convert rows ``begin`` to ``end``, large ones in several threads; as ``Tensor.read_rows``.

        Raises:
            BadFile: The file no longer holds these rows, or ``dtype`` cannot hold a number in them.
            NotEnoughMemory: The system refused a thread.
        """
        out = self.room(begin, end, out)
        step = max(1, _CHUNK_BYTES // self._stored_row_bytes)
        chunks = [(first, min(first + step, end)) for first in range(begin, end, step)]
        tasks = [partial(self._convert, first, last, out[first - begin : last - begin]) for first, last in chunks]
        in_threads(tasks)
        return out

    def read_floats(self, begin: int = 0, end: int | None = None) -> Floats:
        """Read rows ``begin`` to ``end`` (all of them by default) as float32 values ``[end - begin, cols]``."""
        return decode(self.dtype, self.read_rows(begin, self.rows if end is None else end))

    @property
    def _stored_row_bytes(self) -> int:
        return self.cols * self.number_type.num_bytes

    def _convert(self, begin: int, end: int, out: RawRows) -> None:
        place = f"tensor {self.stored_name}"
        numbers = np.empty((end - begin, self._stored_row_bytes), np.uint8)
        self.file.read_into(self.offset + begin * self._stored_row_bytes, numbers.reshape(-1).data, place)
        largest = self._shift(numbers, out) if self.added else recode(numbers, self.number_type, self.dtype, out)
        check_magnitude(self.file, f"{place}, rows {begin} to {end - 1}", self.dtype, largest)

    def _shift(self, numbers: RawRows, out: RawRows) -> float:
        floats = np.empty((len(out), self.cols), np.float32)
        recode(numbers, self.number_type, DType.F32, floats.view(np.uint8))
        floats += np.float32(self.added)
        return recode(floats.view(np.uint8), FloatType.F32, self.dtype, out)


class HfModel(OpenModel[CheckpointTensor]):
    """An open Hugging Face folder.

    Attributes:
        path: The folder.
        config: The model, with the number types that tensors are read as.
        tensors: Every tensor by name.
    """

    def __init__(
        self, path: str, config: ModelConfig, tensors: dict[str, CheckpointTensor], files: Sequence[CheckedFile]
    ) -> None:
        super().__init__(path, config, tensors, files)
        self._checked_files = files

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        """Give the facts of a ``.m`` file, and what the weights become."""
        stored = sorted({tensor.number_type.name for tensor in self.tensors.values()})
        return super().summary(max_seq_len) | {
            "WeightType": f"{self.config.weight_type.name}, from {', '.join(stored)}"
        }

    def identity(self) -> str:
        """Say which files these are, as of when, what is read from where in them, and what it becomes."""
        return "; ".join([self._reading, *(file.identity() for file in self._checked_files)])

    @cached_property
    def _reading(self) -> str:
        """Hash how tensors are read: another version may know better."""
        total = hashlib.sha256()
        for tensor in self.tensors.values():
            total.update(f"{tensor.name} {tensor.dtype} {tensor.stored_name} {tensor.offset} {tensor.added}\n".encode())
        return total.hexdigest()


def open_hf_folder(path: str | os.PathLike[str], weight_type: DType) -> HfModel:
    """Open a folder and check that its files hold every tensor of a model that dllama runs.

    Args:
        path: The folder.
        weight_type: What matrices become; vectors and embeddings become F32.

    Raises:
        UsageError: There is no such folder, or it may not be opened.
        BadFile: It is not a sound Hugging Face model.
        UnsupportedModel: It is sound and of a model that dllama cannot run.
    """
    path = os.fspath(path)
    names = _names(path)
    if CONFIG not in names:
        raise BadFile(path, "", f"a {CONFIG}, as Hugging Face models have", _advice(names))
    files = [CheckedFile(Path(path, CONFIG), "configuration")]
    try:
        checkpoint = describe(read_json(files[0]), files[0].path)
        config = replace(checkpoint.config, weight_type=weight_type)
        arrays = _open_shards(path, names, files)
        tensors = {
            info.name: _tensor(path, info, checkpoint.tensors[info.name], arrays) for info in tensors_in_order(config)
        }
        _refuse_unknown(config, arrays, checkpoint.tensors.values())
    except BaseException:
        for file in files:
            file.close()
        raise
    return HfModel(path, config, tensors, files)


def _names(path: str) -> list[str]:
    try:
        return sorted(entry.name for entry in Path(path).iterdir())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: cannot open this model folder: {reason}") from None


def _advice(names: Sequence[str]) -> str:
    """Say what a folder is that is no Hugging Face model."""
    for name in names:
        if name.endswith((".m", ".gguf")):
            return f"a directory without it; name the file itself: {name}"
    return "a directory without it; is the download complete, and is it this one?" if names else "an empty directory"


def _open_shards(path: str, names: Sequence[str], files: list[CheckedFile]) -> dict[str, StoredArray]:
    """Open all shards, adding them to ``files``; give all their tensors by name."""
    arrays: dict[str, StoredArray] = {}
    for name in shard_names(path, names):
        if name not in names:
            found = "no such file; fetch it again, or all of the model"
            raise BadFile(path, "weights", f"{name}, which {INDEX} lists", found)
        file, found_in_it = open_safetensors(Path(path, name))
        files.append(file)
        twice = arrays.keys() & found_in_it.keys()
        if twice:
            raise file.bad(
                f"tensor {min(twice)!r:.200}",
                "every tensor once",
                f"one in {Path(arrays[min(twice)].file.path).name} too",
            )
        arrays |= found_in_it
    return arrays


def _tensor(path: str, info: TensorInfo, part: Part, arrays: Mapping[str, StoredArray]) -> CheckpointTensor:
    name = part.own_name if part.own_name and part.own_name in arrays else part.name
    place, array = f"tensor {name}", arrays.get(name)
    if array is None:
        raise BadFile(path, place, "it in a .safetensors file", "none of this name; is the download complete?")
    if array.number_type not in FloatType.__members__:
        known = ", ".join(FloatType.__members__)
        raise UnsupportedModel(array.file.path, place, f"{known}, the number types supported", array.number_type)
    shape = (part.total_rows or info.shape[0], *info.shape[1:])
    if array.shape != shape:
        raise array.file.bad(place, f"shape {list(shape)}, as config.json says", f"shape {list(array.shape)}")
    number_type = FloatType[array.number_type]
    offset = array.offset + part.first_row * math.prod(info.shape[1:]) * number_type.num_bytes
    return CheckpointTensor(info.name, info.dtype, info.shape, number_type, name, array.file, offset, part.added)


def _refuse_unknown(config: ModelConfig, arrays: Mapping[str, StoredArray], parts: Iterable[Part]) -> None:
    """Refuse a model whose layers have tensors with which nothing here computes, but for rotary frequencies.

    Those are what old versions of transformers saved, and follow from the config.
    """
    unknown = arrays.keys() - {part.name for part in parts}
    named = [name for name in sorted(unknown) if name.startswith("model.layers.") and not name.endswith(_FREQUENCIES)]
    if named:
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        expected = f"those of a {config.model_type} model of {config.num_layers} layers that dllama runs"
        raise UnsupportedModel(arrays[named[0]].file.path, "tensors", expected, f"{named[0]!r:.200}{more}")
