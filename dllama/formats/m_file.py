"""Reading ``.m`` model files, those of distributed-llama: header, sizes, and every tensor on demand.

Nothing is loaded and little is allocated at opening: the header is checked, the file's size must be exactly what the
header says, and tensors are then read by rows. ``write_m_file`` is in ``m_writer`` and given here too.
"""

from __future__ import annotations

import os
import struct
from dataclasses import replace

from dllama.config import DType, ModelConfig
from dllama.formats.checked_file import CheckedFile
from dllama.formats.m_config import decode_config
from dllama.formats.m_header import (
    MAGIC,
    OLD_HEADER_SIZE,
    OLD_LLAMA_MAGIC,
    OLD_MOE_MAGIC,
    Arch,
    MHeader,
    config_of,
    config_size,
    header_size,
    parse_header,
    parse_old_header,
    with_weight_type,
)
from dllama.formats.m_layout import is_rotated, tensors_in_order, total_nbytes
from dllama.formats.m_writer import write_m_file
from dllama.formats.opened import OpenModel
from dllama.formats.tensor import Tensor

__all__ = ["ModelFile", "open_m_file", "read_m_file", "write_m_file"]


class ModelFile(OpenModel[Tensor]):
    """An open model file.

    Attributes:
        path: The file.
        config: The model.
        header: The header's raw values.
        tensors: Every tensor by name, in file order.
        file_size: Bytes of the file.
    """

    def __init__(self, file: CheckedFile, header: MHeader, config: ModelConfig) -> None:
        super().__init__(file.path, config, _tensors(file, header, config), [file])
        self.header, self.file_size = header, file.size
        self._file = file

    def rope_title(self) -> str:
        """Name the rotation as the file does, unless it is one of ours."""
        return super().rope_title() if self.header.arch is Arch.OWN else self.header.rope_type.title

    def identity(self) -> str:
        """Say which file this is, and as of when, as ``CheckedFile.identity``."""
        return self._file.identity()


def open_m_file(path: str | os.PathLike[str]) -> ModelFile:
    """Open a ``.m`` file and check that its header and its size are those of a model that dllama runs.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound ``.m`` file.
        UnsupportedModel: It is sound and of a model that dllama cannot run.
    """
    return read_m_file(CheckedFile(path, "model"))


def read_m_file(file: CheckedFile) -> ModelFile:
    """Check an open file as ``open_m_file`` does; it is closed with the model, or at once if it is none."""
    try:
        header, config = _read_model(file)
        _check_file_size(file, header, config)
        return ModelFile(file, header, config)
    except BaseException:
        file.close()
        raise


def _read_model(file: CheckedFile) -> tuple[MHeader, ModelConfig]:
    header = _read_header(file)
    if header.arch is not Arch.OWN:
        return header, config_of(header)
    size = config_size(header)
    raw = file.read(header.size, size, "config")
    return replace(header, size=header.size + size), decode_config(raw, file.path, f"byte {header.size} (config)")


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
    for info in tensors_in_order(config):
        head_dim = config.head_dim if header.is_interleaved and is_rotated(info.name) else 0
        tensors[info.name] = Tensor(info.name, info.dtype, info.shape, file, offset, head_dim)
        offset += info.nbytes
    return tensors
