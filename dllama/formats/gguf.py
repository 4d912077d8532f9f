"""Reading GGUF files as models: llama.cpp's format, in one file or in parts.

Q4_0 is our Q40 and Q8_0 our Q80, byte for byte; F32 and F16 are as they are, and BF16 becomes F32. Other types are
converted as they are read: those of 6 bits to Q80, those of fewer to Q40, which costs some precision. Where some
matrices have blocks, floats among the others become Q80.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dllama.config import DType, ModelConfig
from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.checked_file import CheckedFile
from dllama.formats.gguf_arch import (
    EMBEDDING,
    HEAD,
    ROPE_TENSORS,
    GgufArch,
    Stored,
    interleaved_head_dim,
    stored_tensors,
)
from dllama.formats.gguf_config import arch_of, model_config
from dllama.formats.gguf_parts import Placed, open_parts
from dllama.formats.gguf_quants import READABLE
from dllama.formats.gguf_tensor import GgufTensor, requantized, with_types
from dllama.formats.opened import OpenModel
from dllama.formats.quants import Floats

_UNUSED = re.compile(r"blk\.[0-9]+\.attn_rot_embd\.weight")  # of old files: frequencies, which follow from the keys
_READING = "gguf 1"  # part of a model's identity: to be changed with what comes out of a file


class GgufModel(OpenModel[GgufTensor]):
    """An open GGUF model.

    Attributes:
        metadata: Values by key, as ``GgufContainer`` has them; the tokenizer's among them.
        requantized: How many matrices were converted with a loss, by stored type and what it became.
    """

    def __init__(
        self,
        files: Sequence[CheckedFile],
        config: ModelConfig,
        tensors: Mapping[str, GgufTensor],
        metadata: Mapping[str, object],
        requantized: Counter[tuple[str, DType]],
    ) -> None:
        super().__init__(files[0].path, config, tensors, files)
        self.metadata, self.requantized, self._parts = metadata, requantized, files

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        """Give the facts of every model, and what was requantized."""
        counts = [f"{count} {kind} to {dtype.name}" for (kind, dtype), count in sorted(self.requantized.items())]
        return super().summary(max_seq_len) | ({"Requantized": ", ".join(counts)} if counts else {})

    def identity(self) -> str:
        """Say which files these are, as of when, and how they are read."""
        return " ".join([*(file.identity() for file in self._parts), _READING])


def open_gguf(path: str | os.PathLike[str]) -> GgufModel:
    """Open a GGUF file, or the first of several parts with all others beside it.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound GGUF file of such a model, or a part is missing.
        UnsupportedModel: It is sound and of a model that dllama cannot run.
    """
    files: list[CheckedFile] = []
    try:
        metadata, parts = open_parts(path, files)
        return _open_model(files, metadata, parts)
    except BaseException:
        for file in files:
            file.close()
        raise


def _open_model(files: Sequence[CheckedFile], metadata: Mapping[str, object], found: Mapping[str, Placed]) -> GgufModel:
    path, arch = files[0].path, arch_of(files[0].path, metadata)
    infos = {name: placed.info for name, placed in found.items()}
    config = model_config(path, metadata, infos, lambda name: _read_vector(found[name]))
    for stored in _landmarks(config):
        _find(path, stored, found)
    lies_at = {stored: _find(path, stored, found) for stored in stored_tensors(config, arch)}
    _refuse_unknown(path, arch, set(found) - {placed.info.name for placed in lies_at.values()})
    types = {stored: placed.info.type for stored, placed in lies_at.items()}
    config = with_types(config, types)
    tensors = [tensor for stored, placed in lies_at.items() for tensor in _tensors(config, arch, stored, placed)]
    tensors.sort(key=lambda tensor: (files.index(tensor.file), tensor.offset))
    return GgufModel(files, config, {each.name: each for each in tensors}, metadata, requantized(config, types))


def _landmarks(config: ModelConfig) -> Iterator[Stored]:
    """Give tensors that show whether there are as many layers and experts as is said, before all are listed."""
    last = config.num_layers - 1
    yield Stored(f"blk.{last}.attn_output.weight", (config.hidden_size, config.q_size), ())
    if config.has_experts:
        yield Stored(f"blk.{last}.ffn_gate_inp.weight", (config.num_experts, config.hidden_size), ())


def _read_vector(placed: Placed) -> Floats:
    """Read a tensor of one dimension."""
    info = placed.info
    _check_type(placed)
    tensor = GgufTensor(info.name, DType.F32, info.shape, placed.file, info.offset, stored=info.type)
    values: Floats = tensor.read_floats()[0]
    return values


def _find(path: str, stored: Stored, found: Mapping[str, Placed]) -> Placed:
    """Find a tensor and check that it is what the model needs; without a head the embedding is that too."""
    name = EMBEDDING if stored.name == HEAD and HEAD not in found else stored.name
    if name not in found:
        raise BadFile(path, f"tensor {name}", f"a tensor of shape {list(stored.shape)}", "none of this name")
    placed = found[name]
    if _without_ones(placed.info.shape) != _without_ones(stored.shape):
        raise placed.file.bad(f"tensor {name}", f"shape {list(stored.shape)}", str(list(placed.info.shape)))
    _check_type(placed)
    return placed


def _without_ones(shape: Iterable[int]) -> list[int]:
    """Some writers leave out sizes of 1."""
    return [size for size in shape if size != 1]


def _check_type(placed: Placed) -> None:
    if placed.info.type.name not in READABLE:
        expected = f"one of the types {', '.join(READABLE)}"
        raise UnsupportedModel(placed.file.path, f"tensor {placed.info.name}", expected, placed.info.type.name)


def _refuse_unknown(path: str, arch: GgufArch, names: set[str]) -> None:
    """Refuse a model that has tensors with which nothing here computes."""
    known = ROPE_TENSORS if arch.has_rope_factors else ()
    unknown = sorted(name for name in names if name not in known and not _UNUSED.fullmatch(name))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UnsupportedModel(path, "tensors", f"those of the {arch.name} models that dllama runs", unknown[0] + more)


def _tensors(config: ModelConfig, arch: GgufArch, stored: Stored, placed: Placed) -> Iterator[GgufTensor]:
    """Cut one of the file's tensors into ours."""
    offset, kind = placed.info.offset, placed.info.type
    for part in stored.parts:
        dtype = config.matrix_type(part.name) if len(part.shape) == 2 and part.name != "embed_tokens" else DType.F32
        head_dim = interleaved_head_dim(config, arch, part.name)
        yield GgufTensor(part.name, dtype, part.shape, placed.file, offset, head_dim, stored=kind)
        offset += part.rows * (part.cols // kind.block_size * kind.block_bytes)
