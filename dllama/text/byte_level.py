"""The letters by which byte-level vocabularies write bytes (GPT-2's): printable ones of Latin-1, and U+0100 onwards."""

from __future__ import annotations

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_LETTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + place) for place, byte in enumerate(_OTHERS)}
_BYTES = {ord(letter): chr(byte) for byte, letter in _LETTERS.items()}
ALPHABET = "".join(_LETTERS[byte] for byte in range(256))  # the letter of each byte


def to_bytes(piece: str) -> bytes:
    """Give the bytes that a piece stands for; one with another letter in it stands for its own UTF-8."""
    try:
        if _ALL.issuperset(piece):
            return piece.translate(_BYTES).encode("latin-1")
        return piece.encode("utf-8")
    except UnicodeEncodeError:
        return piece.encode("utf-8", "replace")


def to_letters(raw: bytes) -> str:
    """Write bytes as letters."""
    return raw.decode("latin-1").translate(_TO_LETTERS)


_ALL = frozenset(ALPHABET)
_TO_LETTERS = dict(enumerate(ALPHABET))
