"""Encoding with a score vocabulary (Llama 2, Mistral, TinyLlama), by sentencepiece.

A ``.t`` file holds the pieces and scores of a SentencePiece model and nothing else of it. The rest is the same for all
models that came this way (spaces kept, one put before the text, unknown characters as bytes), so the model is put
together again in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dllama.formats.quants import Floats
from dllama.formats.spm_model import BYTE, CONTROL, NORMAL, UNKNOWN, SpmModel, build_spm_model

if TYPE_CHECKING:
    import sentencepiece

SPACE_MARK = "▁"  # how SentencePiece writes a space inside a piece; `.t` files hold either


def first_byte_id(pieces: Sequence[bytes]) -> int | None:
    """Find the id of byte 0, from which all 256 byte tokens follow, raw or written ``<0x00>``."""
    for byte_zero in (b"\0", b"<0x00>"):
        if byte_zero in pieces:
            first = pieces.index(byte_zero)
            run = pieces[first : first + 256]
            if len(run) == 256 and all(run[byte] in (bytes([byte]), b"<0x%02X>" % byte) for byte in range(256)):
                return first
    return None


def proto_pieces(pieces: Sequence[bytes], is_special: Callable[[int], bool]) -> list[str]:
    """Give the pieces as sentencepiece writes them: spaces marked, bytes as ``<0xNN>``, all different.

    Special tokens are never matched in text, so they get names with a space in them, which no piece has.

    Raises:
        ValueError: A piece is not UTF-8, or is there twice; the text is ``"<expected>, found <what>"``.
    """
    first_byte = first_byte_id(pieces)
    if first_byte is None:
        raise ValueError("256 byte tokens one after the other, found none")
    bytes_ids = range(first_byte, first_byte + 256)
    names: dict[str, int] = {}
    for token_id, piece in enumerate(pieces):
        if token_id in bytes_ids:
            name = f"<0x{token_id - first_byte:02X}>"
        elif is_special(token_id):
            name = f"<special {token_id}>"
        else:
            try:
                name = piece.decode("utf-8").replace(" ", SPACE_MARK)
            except UnicodeDecodeError:
                raise ValueError(f"pieces in UTF-8, found {piece!r} as token {token_id}") from None
        if names.setdefault(name, token_id) != token_id:
            raise ValueError(f"different pieces, found {piece!r} as tokens {names[name]} and {token_id}")
    return list(names)


class ScoreEncoder:
    """Encodes ordinary text with scored pieces.

    Args:
        model: The pieces.

    Raises:
        ValueError: sentencepiece does not take this vocabulary.
    """

    def __init__(self, model: SpmModel) -> None:
        self._processor = load_processor(model)

    def encode(self, text: str) -> list[int]:
        """Give the ids of ``text``, a space put before it; names of special tokens in it are ordinary text."""
        ids: list[int] = self._processor.encode(text)
        return ids


def load_processor(model: SpmModel) -> sentencepiece.SentencePieceProcessor:
    """Have sentencepiece read a model.

    Raises:
        ValueError: It does not take this vocabulary; the text is ``"<expected>, found <what>"``.
    """
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=build_spm_model(model))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"a vocabulary that sentencepiece takes, found that it does not: {error}") from error


def spm_model(names: Sequence[str], scores: Floats, first_byte: int, is_special: Callable[[int], bool]) -> SpmModel:
    """Put the model of a score vocabulary together.

    Args:
        names: Pieces by id, as ``proto_pieces`` gives them.
        scores: float32 ``[len(names)]``.
        first_byte: Id of byte 0.
        is_special: Whether an id is a special token.
    """
    kinds = [CONTROL if is_special(token_id) else NORMAL for token_id in range(len(names))]
    kinds[first_byte : first_byte + 256] = [BYTE] * 256
    kinds[0] = UNKNOWN  # sentencepiece wants exactly one; every vocabulary of the kind has it at 0
    # Merged pairs are scored by whole ranks, pieces of a unigram model by logarithms of frequency.
    normal = scores[[token_id for token_id, kind in enumerate(kinds) if kind == NORMAL]]
    return SpmModel(names, scores, kinds, is_unigram=not np.array_equal(normal, np.rint(normal)))
