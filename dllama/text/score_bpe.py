"""Encoding with a score vocabulary (Llama 2, Mistral, TinyLlama), by sentencepiece.

A ``.t`` file holds the pieces and scores of a SentencePiece model and nothing else of it. The rest is the same for all
models that came this way (spaces kept, one put before the text, unknown characters as bytes), so the model is put
together again in memory, in sentencepiece's protobuf format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dllama.formats.quants import Floats

if TYPE_CHECKING:
    import sentencepiece

SPACE_MARK = "▁"  # how SentencePiece writes a space inside a piece; `.t` files hold either
# Kinds of pieces and of models, and field numbers, of sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_UNIGRAM, _BPE = 1, 2
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 3, 35, 40, 41, 42, 43
_NORMALIZER_NAME, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_SPACES, _ESCAPE_SPACES = 1, 3, 4, 5


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
        names: Pieces by id, as ``proto_pieces`` gives them.
        scores: float32 ``[len(names)]``.
        first_byte: Id of byte 0.
        is_special: Whether an id is a special token.

    Raises:
        ValueError: sentencepiece does not take this vocabulary.
    """

    def __init__(
        self, names: Sequence[str], scores: Floats, first_byte: int, is_special: Callable[[int], bool]
    ) -> None:
        self._processor = _load(build_proto(names, scores, first_byte, is_special))

    def encode(self, text: str) -> list[int]:
        """Give the ids of ``text``, a space put before it; names of special tokens in it are ordinary text."""
        ids: list[int] = self._processor.encode(text)
        return ids


def _load(proto: bytes) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"a vocabulary that sentencepiece takes, found that it does not: {error}") from error


def build_proto(names: Sequence[str], scores: Floats, first_byte: int, is_special: Callable[[int], bool]) -> bytes:
    """Give a serialized ModelProto."""
    kinds = [_CONTROL if is_special(token_id) else _NORMAL for token_id in range(len(names))]
    kinds[first_byte : first_byte + 256] = [_BYTE] * 256
    kinds[0] = _UNKNOWN  # sentencepiece wants exactly one; every vocabulary of the kind has it at 0
    # Merged pairs are scored by whole ranks, pieces of a unigram model by logarithms of frequency.
    normal = scores[[token_id for token_id, kind in enumerate(kinds) if kind == _NORMAL]]
    model_type = _BPE if np.array_equal(normal, np.rint(normal)) else _UNIGRAM
    parts = [_message(_PIECES, _piece(*piece)) for piece in zip(names, scores.tolist(), kinds, strict=True)]
    trainer = [(_MODEL_TYPE, model_type), (_BYTE_FALLBACK, 1), (_UNK_ID, 0)]
    # BOS and EOS are added by the tokenizer, not here: -1 (as 64 bits) is "none".
    trainer += [(key, (1 << 64) - 1) for key in (_BOS_ID, _EOS_ID, _PAD_ID)]
    normalizer = [(_ADD_DUMMY_PREFIX, 1), (_REMOVE_EXTRA_SPACES, 0), (_ESCAPE_SPACES, 1)]
    parts.append(_message(_TRAINER_SPEC, _numbers(trainer)))
    parts.append(_message(_NORMALIZER_SPEC, _message(_NORMALIZER_NAME, b"identity") + _numbers(normalizer)))
    return b"".join(parts)


def _piece(name: str, score: float, kind: int) -> bytes:
    raw_score = struct.pack("<Bf", _SCORE << 3 | 5, score)
    return _message(_PIECE, name.encode("utf-8")) + raw_score + _numbers([(_TYPE, kind)])


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _numbers(pairs: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(_varint(field << 3) + _varint(value) for field, value in pairs)


def _varint(value: int) -> bytes:
    """Give seven bits per byte, lowest first; the eighth says that more follow."""
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)
