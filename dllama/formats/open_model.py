"""Opening a model, whatever holds it: a ``.m`` file, a Hugging Face folder, or a GGUF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.config import DType
from dllama.errors import UsageError
from dllama.formats.checked_file import CheckedFile

if TYPE_CHECKING:
    from dllama.formats.source import ModelSource

_GGUF = b"GGUF"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"  # what PyTorch writes


def open_model(path: str | os.PathLike[str], weight_type: DType | None = None) -> ModelSource:
    """Open a model.

    Args:
        path: A ``.m`` or ``.gguf`` file, or a folder with ``config.json`` and ``.safetensors`` files.
        weight_type: What the matrices of a folder are converted to as they are read; None: Q40. A file has its own.

    Raises:
        UsageError: There is no such file, or a file holds another type than ``weight_type``.
        BadFile: It is not what it claims to be. UnsupportedModel: It is sound, and dllama cannot run it.
    """
    if weight_type is not None and not isinstance(weight_type, DType):
        raise UsageError(f"weight_type: expected a DType, found {weight_type!r:.80}")
    if Path(path).is_dir():
        from dllama.formats.hf_folder import open_hf_folder
        from dllama.formats.quantized_copy import with_copy

        return with_copy(open_hf_folder(path, DType.Q40 if weight_type is None else weight_type))
    source = _open_file(path)
    found = source.config.weight_type
    if weight_type in (None, found):
        return source
    source.close()
    assert weight_type is not None
    raise UsageError(
        f"{os.fspath(path)}: its weights are {found.name}, not {weight_type.name}; leave weight_type (--weight-type) "
        "away, as only the weights of a Hugging Face folder are converted"
    )


def _open_file(path: str | os.PathLike[str]) -> ModelSource:
    file = CheckedFile(path, "model")
    try:
        is_gguf = _is_gguf(file)
    except BaseException:
        file.close()
        raise
    if is_gguf:
        from dllama.formats.gguf import open_gguf

        file.close()
        return open_gguf(path)
    from dllama.formats.m_file import read_m_file

    return read_m_file(file)


def _is_gguf(file: CheckedFile) -> bool:
    """Whether it is a GGUF file; raises BadFile for what is a model of a kind that is not read."""
    expected = "a .m or .gguf file, or the folder of a Hugging Face model"
    start = file.read(0, min(4, file.size), "magic number")
    if start == _ZIP or start[:2] == _PICKLE:
        found = "a PyTorch file; converters/convert_llama.py reads those of Meta, others must become .safetensors"
        raise file.bad("", expected, found)
    if file.path.endswith(".safetensors"):
        raise file.bad("", expected, "one file of such a folder; name the folder that has config.json")
    return start == _GGUF
