"""Reading ``.pth`` checkpoints of PyTorch, as Meta publishes its models: an archive of numbers and of a pickle.

The pickle is read as data by ``torch_pickle``: nothing that a checkpoint's author wrote is ever run, and PyTorch is not
needed. Numbers stay in the file until they are asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile
from dllama.formats.recode import FloatType
from dllama.formats.torch_pickle import View, read_tensors
from dllama.formats.zip_archive import Entry, read_entries

_LARGEST_PICKLE = 8 << 20  # bytes; the largest models' have some hundred thousand
_PROGRAM = "/data.pkl"


@dataclass(frozen=True, slots=True)
class PthTensor:
    """Where a tensor of a checkpoint lies.

    Attributes:
        offset: Of its first byte in ``file``.
        shape: One or two sizes; rows follow each other without gaps.
    """

    file: CheckedFile
    number_type: FloatType
    offset: int
    shape: tuple[int, ...]


def open_pth(path: str | os.PathLike[str]) -> tuple[CheckedFile, dict[str, PthTensor]]:
    """Open a checkpoint; give the file, which the caller closes, and its tensors by name.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is broken, or holds anything but tensors.
    """
    file = CheckedFile(path, "checkpoint")
    try:
        if file.read(0, min(4, file.size), "start") != b"PK\3\4":
            found = "something else; files that PyTorch wrote before version 1.6 must be saved by a newer one first"
            raise file.bad("byte 0", "a zip archive, as PyTorch writes", found)
        entries = read_entries(file)
        root = _root(file, entries)
        views = read_tensors(_program(file, entries[root + _PROGRAM]), file.path)
        return file, {name: _located(file, entries, root, name, view) for name, view in views.items()}
    except BaseException:
        file.close()
        raise


def _root(file: CheckedFile, entries: Mapping[str, Entry]) -> str:
    """Find the folder of the archive that everything is in."""
    roots = [name.removesuffix(_PROGRAM) for name in entries if name.endswith(_PROGRAM)]
    if len(roots) != 1:
        raise file.bad("", "one data.pkl in the archive, as PyTorch writes", f"{len(roots)}")
    order = entries.get(f"{roots[0]}/byteorder")
    if order and file.read(order.offset, min(order.size, 8), "byteorder") != b"little":
        raise file.bad("byteorder", "little", "another")
    return roots[0]


def _program(file: CheckedFile, entry: Entry) -> bytes:
    if entry.size > _LARGEST_PICKLE:
        raise file.bad("data.pkl", f"at most {_LARGEST_PICKLE} bytes", f"{entry.size}")
    return file.read(entry.offset, entry.size, "data.pkl")


def _located(file: CheckedFile, entries: Mapping[str, Entry], root: str, name: str, view: View) -> PthTensor:
    number_type = FloatType[view.storage.dtype]
    entry = entries.get(f"{root}/data/{view.storage.key}")
    end = (view.first + math.prod(view.shape)) * number_type.num_bytes
    if entry is None or end > entry.size:
        found = f"{entry.size} bytes" if entry else "no such file in the archive"
        raise BadFile(file.path, f"tensor {name!r:.80}", f"{end} bytes of numbers", found)
    return PthTensor(file, number_type, entry.offset + view.first * number_type.num_bytes, view.shape)
