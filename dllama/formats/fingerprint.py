"""Telling files apart: those of gigabytes in milliseconds, small ones byte by byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dllama.formats.checked_file import CheckedFile
from dllama.formats.gguf_parts import part_paths

_NUM_SAMPLES, _SAMPLE_SIZE = 64, 1 << 14
_CHUNK_SIZE = 1 << 20  # bytes
_OfFile = Callable[[str | os.PathLike[str], str], str]


def fingerprint(path: str | os.PathLike[str], what: str) -> str:
    """Hash a file's size, both its ends and samples evenly spread between them; all of it, up to a MiB.

    Tells models apart, and versions of one: training and quantizing change every block. It is no protection against
    somebody who changes a file so that it is not noticed.

    Args:
        path: The file.
        what: What it is to the user, for messages.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        UsageError, BadFile: As ``CheckedFile``.
    """
    with CheckedFile(path, what) as file:
        total = hashlib.sha256(str(file.size).encode())
        last = file.size - _SAMPLE_SIZE
        if last <= _NUM_SAMPLES * _SAMPLE_SIZE:
            total.update(file.read(0, file.size, "byte 0"))
            return total.hexdigest()
        for index in range(_NUM_SAMPLES):
            offset = last * index // (_NUM_SAMPLES - 1)
            total.update(file.read(offset, _SAMPLE_SIZE, f"byte {offset}"))
        return total.hexdigest()


def whole_fingerprint(path: str | os.PathLike[str], what: str) -> str:
    """Hash all of a file; arguments, result and errors as those of ``fingerprint``."""
    with CheckedFile(path, what) as file:
        total = hashlib.sha256(str(file.size).encode())
        for offset in range(0, file.size, _CHUNK_SIZE):
            total.update(file.read(offset, min(_CHUNK_SIZE, file.size - offset), f"byte {offset}"))
        return total.hexdigest()


def model_fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash a model as ``fingerprint`` does: a file, all parts of a GGUF, or of a folder its config and weights."""
    paths = part_paths(path)
    if len(paths) > 1:
        return _of_all(((str(index), each) for index, each in enumerate(paths)), "model", fingerprint)
    return _of_files(path, "model", lambda name: name == "config.json" or name.endswith(".safetensors"), fingerprint)


def tokenizer_fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash all of a tokenizer: a file, or of a folder what its name says; samples of a model that has it in it."""
    of_file = fingerprint if os.fspath(path).endswith(".gguf") else whole_fingerprint
    return _of_files(path, "tokenizer", lambda name: name.startswith("tokenizer"), of_file)


def _of_files(
    path: str | os.PathLike[str],
    what: str,
    is_part: Callable[[str], bool],
    of_file: _OfFile,
) -> str:
    folder = Path(path)
    if not folder.is_dir():
        return of_file(path, what)
    parts = sorted(part for part in folder.iterdir() if is_part(part.name))
    return _of_all(((part.name, part) for part in parts), what, of_file)


def _of_all(files: Iterable[tuple[str, str | os.PathLike[str]]], what: str, of_file: _OfFile) -> str:
    """Hash the names and hashes of files."""
    total = hashlib.sha256()
    for name, path in files:
        total.update(f"{name!r} {of_file(path, what)} ".encode())
    return total.hexdigest()
