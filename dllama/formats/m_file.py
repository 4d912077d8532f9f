"""Reading ``.m`` model files, those of distributed-llama: header, sizes, and every tensor on demand.

Nothing is loaded and little is allocated at opening: the header is checked, the file's size must be exactly what the
header says, and tensors are then read by rows. ``write_m_file`` is in ``m_writer`` and given here too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from dllama.config import DType, ModelConfig
from dllama.errors import UsageError
from dllama.formats.checked_file import CheckedFile
from dllama.formats.m_header import (
    MAGIC,
    OLD_HEADER_SIZE,
    OLD_LLAMA_MAGIC,
    OLD_MOE_MAGIC,
    MHeader,
    RopeType,
    config_of,
    header_size,
    parse_header,
    parse_old_header,
    with_weight_type,
)
from dllama.formats.m_layout import interleaved_head_dim, tensors_in_order, total_nbytes
from dllama.formats.m_writer import write_m_file
from dllama.formats.quants import Floats
from dllama.formats.tensor import Tensor

__all__ = ["ModelFile", "open_m_file", "write_m_file"]


@dataclass(eq=False)
class ModelFile:
    """An open model file.

    Attributes:
        path: The file.
        config: The model.
        header: The header's raw values.
        tensors: Every tensor by name, in file order.
        file_size: Bytes of the file.
    """

    path: str
    config: ModelConfig
    header: MHeader
    tensors: dict[str, Tensor]
    file_size: int
    _file: CheckedFile

    def embedding_rows(self, token_ids: Sequence[int]) -> Floats:
        """Read the embeddings of some tokens, float32 ``[len(token_ids), hidden_size]``.

        Raises:
            UsageError: An id is outside the model's vocabulary.
            BadFile: The file no longer holds these rows.
        """
        table = self.tensors["embed_tokens"]
        rows = np.empty((len(token_ids), table.row_bytes), np.uint8)
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < table.rows:
                raise UsageError(
                    f"token {token_id} is outside the model's vocabulary of {table.rows}; "
                    "the tokenizer is probably another model's"
                )
            table.read_rows(token_id, token_id + 1, out=rows[index : index + 1])
        return rows.view("<f4").astype(np.float32, copy=False)

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        """Give the facts that distributed-llama prints when it loads a model, under its names and in its order.

        Args:
            max_seq_len: The context in use; the model's own if None.
        """
        config, seq_len = self.config, max_seq_len or self.config.max_seq_len
        facts = {"Arch": self.header.arch.title, "HiddenAct": "Silu"}
        sizes = {
            "Dim": config.hidden_size,
            "HeadDim": config.head_dim,
            "QDim": config.q_size,
            "KvDim": config.kv_size,
            "HiddenDim": config.intermediate_size,
            "VocabSize": config.vocab_size,
            "nLayers": config.num_layers,
            "nHeads": config.num_heads,
            "nKvHeads": config.num_kv_heads,
        }
        if seq_len != config.max_seq_len:
            sizes["OrigSeqLen"] = config.max_seq_len
        sizes["SeqLen"] = seq_len
        facts |= {name: str(size) for name, size in sizes.items()}
        facts["NormEpsilon"] = f"{config.rms_norm_eps:f}"
        return facts | self._rope_summary()

    def _rope_summary(self) -> dict[str, str]:
        facts = {"RopeType": self.header.rope_type.title, "RopeTheta": f"{self.config.rope_theta:.0f}"}
        scaling = self.config.rope_scaling
        if scaling:
            facts["RopeScaling"] = (
                f"f={scaling.factor:.1f}, l={scaling.low_freq_factor:.1f}, "
                f"h={scaling.high_freq_factor:.1f}, o={scaling.original_max_seq_len}"
            )
        return facts

    def identity(self) -> str:
        """Say which file this is, and as of when, as ``CheckedFile.identity``."""
        return self._file.identity()

    def close(self) -> None:
        """Close the file; tensors can no longer be read."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def open_m_file(path: str | os.PathLike[str]) -> ModelFile:
    """Open a ``.m`` file and check that its header and its size are those of a model that dllama runs.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound ``.m`` file.
        UnsupportedModel: It is sound and of a model that dllama cannot run.
    """
    file = CheckedFile(path, "model")
    try:
        header = _read_header(file)
        config = config_of(header)
        _check_file_size(file, header, config)
        return ModelFile(file.path, config, header, _tensors(file, header, config), file.size, file)
    except BaseException:
        file.close()
        raise


def _read_header(file: CheckedFile) -> MHeader:
    (magic,) = struct.unpack("<I", file.read(0, 4, "magic number"))
    if magic in (OLD_LLAMA_MAGIC, OLD_MOE_MAGIC):
        header = parse_old_header(file.path, file.read(0, OLD_HEADER_SIZE, "header"))
        return with_weight_type(header, _weight_type_by_size(file, header))
    if magic != MAGIC:
        raise file.bad("byte 0 (magic number)", f"0x{MAGIC:08X}, a .m model file", f"0x{magic:08X}")
    start = file.read(0, 8, "header size")
    return parse_header(file.path, file.read(0, header_size(start, file.path, file.size), "header"))


def _weight_type_by_size(file: CheckedFile, header: MHeader) -> DType:
    """Find the weight type of an old file, which does not store it: only one gives the file's size."""
    sizes = {}
    for weight_type in DType:
        config = config_of(with_weight_type(header, weight_type))
        sizes[weight_type] = header.size + total_nbytes(config)
    for weight_type, size in sizes.items():
        if size == file.size:
            return weight_type
    expected = ", ".join(f"{size} ({weight_type.name})" for weight_type, size in sizes.items())
    raise file.bad("size of a file with an old header", f"one of {expected} bytes", f"{file.size} bytes")


def _check_file_size(file: CheckedFile, header: MHeader, config: ModelConfig) -> None:
    expected = header.size + total_nbytes(config)
    if file.size > expected:
        extra = file.size - expected
        raise file.bad("size", f"{expected} bytes", f"{file.size} bytes: {extra} more than the header describes")
    if file.size < expected:
        end = header.size
        for info in tensors_in_order(config):
            end += info.nbytes
            if end > file.size:
                break
        found = f"{file.size} bytes: the file ends in tensor {info.name}; fetch or convert it again"
        raise file.bad("size", f"{expected} bytes", found)


def _tensors(file: CheckedFile, header: MHeader, config: ModelConfig) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    offset = header.size
    # A Llama file that says halves holds the rows as Hugging Face has them, though no known converter writes it.
    halves = header.rope_type is RopeType.FALCON
    for info in tensors_in_order(config):
        head_dim = 0 if halves else interleaved_head_dim(config, info.name)
        tensors[info.name] = Tensor(info.name, info.dtype, info.shape, file, offset, head_dim)
        offset += info.nbytes
    return tensors
