"""Reading the vocabularies of tiktoken (``tokenizer.model`` of Llama 3): a piece and its rank in each line."""

from __future__ import annotations

import base64
import binascii
import os
import re

from dllama.errors import BadFile
from dllama.formats.checked_file import read_whole
from dllama.formats.vocabulary_bounds import MAX_PIECE, MAX_VOCAB_SIZE

_MAX_FILE_SIZE = 1 << 25  # bytes; Llama 3's has 2 million
FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]{2,200}={0,2} \d{1,7}\r?\n")


def read_tiktoken(path: str | os.PathLike[str]) -> list[bytes]:
    """Give the pieces by rank.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound one.
    """
    lines = read_whole(path, "tokenizer", _MAX_FILE_SIZE).splitlines()
    if len(lines) > MAX_VOCAB_SIZE:
        raise BadFile(path, "", f"at most {MAX_VOCAB_SIZE} lines", str(len(lines)))
    pieces: list[bytes] = []
    for number, line in enumerate(lines, 1):
        raw, _, rank = line.partition(b" ")
        if rank != b"%d" % len(pieces):
            raise BadFile(path, f"line {number}", f"a piece in base64 and the rank {len(pieces)}", f"{line[:60]!r}")
        pieces.append(_decoded(path, number, raw))
    return pieces


def _decoded(path: str | os.PathLike[str], number: int, raw: bytes) -> bytes:
    try:
        piece = base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError):
        piece = b""
    if not 1 <= len(piece) <= MAX_PIECE:
        raise BadFile(path, f"line {number}", f"1 to {MAX_PIECE} bytes in base64", f"{raw[:60]!r}")
    return piece
