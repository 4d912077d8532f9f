"""Telling files apart: those of gigabytes in milliseconds, small ones byte by byte."""

from __future__ import annotations

import hashlib
import os

from dllama.formats.checked_file import CheckedFile

_NUM_SAMPLES, _SAMPLE_SIZE = 64, 1 << 14
_CHUNK_SIZE = 1 << 20  # bytes


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
