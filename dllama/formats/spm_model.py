"""Reading and writing SentencePiece models (``tokenizer.model`` of Llama 2, Mistral and Gemma), protobuf by hand.

The sentencepiece library crashes on some broken models. It only ever gets what ``build_spm_model`` writes, of pieces
and settings that were checked here. Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.checked_file import read_whole
from dllama.formats.quants import Floats
from dllama.formats.vocabulary_bounds import MAX_PIECE, MAX_VOCAB_SIZE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
UNIGRAM, BPE = 1, 2  # kinds of models
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _SPACES_AS_SUFFIX, _BYTE_FALLBACK, _UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 3, 24, 35, 40, 41, 42, 43
_NORMALIZER_NAME, _CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_SPACES, _ESCAPE_SPACES = 1, 2, 3, 4, 5
_MAX_FILE_SIZE = 1 << 25  # bytes; the largest in use, of 256 thousand pieces, has 5 million
_MAX_CHARSMAP = 1 << 22
_MAX_REPLACEMENT = 64  # bytes; the longest in Unicode has 33
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


@dataclass(frozen=True)
class SpmModel:
    """A SentencePiece model.

    Attributes:
        pieces: By id; spaces are written ``▁``, bytes ``<0xNN>``.
        scores: float32 ``[len(pieces)]``.
        kinds: What each is: ``NORMAL`` and so on.
        is_unigram: Whether text is cut at the highest sum of scores, and not by joining pairs.
        adds_space: Whether a space is put before a text.
        removes_spaces: Whether spaces at both ends, and all but one of several, are left out.
        charsmap: SentencePiece's compiled table by which characters are replaced first; empty: none are.
        bos_id: BOS, and so on; -1: there is none.
        eos_id: See ``bos_id``.
        pad_id: See ``bos_id``.
    """

    pieces: Sequence[str]
    scores: Floats
    kinds: Sequence[int]
    is_unigram: bool
    adds_space: bool = True
    removes_spaces: bool = False
    charsmap: bytes = b""
    bos_id: int = -1
    eos_id: int = -1
    pad_id: int = -1


class _Wrong(Exception):
    """What is wrong; the text is ``"<place>|<expected>|<found>"``."""


def read_spm_model(path: str | os.PathLike[str]) -> SpmModel:
    """Read a ``tokenizer.model`` of SentencePiece.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound one. UnsupportedModel: It cuts text as dllama cannot.
    """
    raw = read_whole(path, "tokenizer", _MAX_FILE_SIZE)
    try:
        return _parse(os.fspath(path), raw)
    except _Wrong as error:
        raise BadFile(path, *str(error).split("|", 2)) from None


def _parse(path: str, raw: bytes) -> SpmModel:
    pieces: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, int | bytes]] = {_TRAINER_SPEC: {}, _NORMALIZER_SPEC: {}}
    for field, content in _fields(raw):
        if field == _PIECES and isinstance(content, bytes):
            pieces.append(_parse_piece(len(pieces), content))
        elif field in specs and isinstance(content, bytes):
            specs[field] |= dict(_fields(content))
        if len(pieces) > MAX_VOCAB_SIZE:
            raise _Wrong(f"pieces|at most {MAX_VOCAB_SIZE}|more")
    if not pieces:
        raise _Wrong("|a SentencePiece model with pieces|none")
    return _model(path, pieces, specs[_TRAINER_SPEC], specs[_NORMALIZER_SPEC])


def _model(
    path: str,
    pieces: list[tuple[str, float, int]],
    trainer: dict[int, int | bytes],
    normalizer: dict[int, int | bytes],
) -> SpmModel:
    kind = trainer.get(_MODEL_TYPE, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise UnsupportedModel(path, "trainer_spec", "a SentencePiece model of kind BPE or unigram", f"kind {kind!r}")
    if trainer.get(_SPACES_AS_SUFFIX, 0) or not normalizer.get(_ESCAPE_SPACES, 1):
        raise UnsupportedModel(path, "trainer_spec", "spaces marked before words", "others")
    charsmap = normalizer.get(_CHARSMAP, b"")
    check_charsmap(path, charsmap if isinstance(charsmap, bytes) else b"?")
    defaults = ((_BOS_ID, 1), (_EOS_ID, 2), (_PAD_ID, -1))
    ids = [_signed(trainer.get(key, each if each < len(pieces) else -1)) for key, each in defaults]
    if any(not -1 <= each < len(pieces) for each in ids):
        raise _Wrong(f"trainer_spec|BOS, EOS and padding ids below {len(pieces)}|{ids}")
    texts, scores, kinds = zip(*pieces, strict=True)
    return SpmModel(
        pieces=texts,
        scores=np.array(scores, np.float32),
        kinds=kinds,
        is_unigram=kind == UNIGRAM,
        adds_space=bool(normalizer.get(_ADD_DUMMY_PREFIX, 1)),
        removes_spaces=bool(normalizer.get(_REMOVE_EXTRA_SPACES, 1)),
        charsmap=bytes(charsmap) if isinstance(charsmap, bytes) else b"",
        bos_id=ids[0],
        eos_id=ids[1],
        pad_id=ids[2],
    )


def _parse_piece(number: int, raw: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for field, content in _fields(raw):
        if field == _PIECE and isinstance(content, bytes):
            text = _decoded(number, content)
        elif field == _SCORE and isinstance(content, bytes):
            (score,) = struct.unpack("<f", content.ljust(4, b"\0")[:4])
        elif field == _TYPE and isinstance(content, int):
            kind = content
    if not NORMAL <= kind <= BYTE or not math.isfinite(score) or not 1 <= len(text) <= MAX_PIECE:
        raise _Wrong(f"piece {number}|a text with a finite score, of a kind from 1 to 6|score {score}, kind {kind}")
    return text, score, kind


def _decoded(number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _Wrong(f"piece {number}|UTF-8|{raw[:40]!r}") from None


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give the fields of a message: numbers as int, all else as bytes."""
    offset, size = 0, len(raw)
    while offset < size:
        tag, offset = _read_varint(raw, offset)
        wire = tag & 7
        if wire == _VARINT:
            value, offset = _read_varint(raw, offset)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, offset = _read_varint(raw, offset)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Wrong(f"byte {offset} of a message|a protobuf field, as SentencePiece writes it|wire type {wire}")
        if length > size - offset:
            raise _Wrong(f"byte {offset} of a message|{length} bytes|{size - offset} before its end")
        yield tag >> 3, raw[offset : offset + length]
        offset += length


def _read_varint(raw: bytes, offset: int) -> tuple[int, int]:
    """Read a number of seven bits per byte, lowest first; give it and the offset behind it."""
    value = shift = 0
    while True:
        if offset >= len(raw) or shift > 63:
            raise _Wrong(f"byte {offset} of a message|a number of at most ten bytes|another")
        byte = raw[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value & (1 << 64) - 1, offset


def _signed(value: int | bytes) -> int:
    number = value if isinstance(value, int) else -2
    number &= (1 << 32) - 1  # int32 comes as 64 bits if it is negative
    return number - (1 << 32) if number >> 31 else number


def check_charsmap(path: str, raw: bytes) -> None:
    """Check a table of replacements, which sentencepiece follows blindly: all that it can reach lies inside.

    The table is a double array of uint32 (darts-clone) after its length in bytes, then the texts, each ended by a zero.

    Raises:
        BadFile: It is broken.
    """
    if not raw:
        return
    size = int.from_bytes(raw[:4], "little")
    texts = raw[4 + size :]
    if len(raw) > _MAX_CHARSMAP or not 4 <= size <= len(raw) - 4 or size % 4 or not texts.endswith(b"\0"):
        raise BadFile(path, "normalizer_spec", "a table of characters", "one with wrong lengths")
    units = np.frombuffer(raw, np.uint32, size // 4, 4)
    offsets = ((units >> 10) << ((units & 1 << 9) >> 6)).astype(np.int64)
    targets = np.arange(len(units)) ^ offsets
    is_node = units >> 31 == 0
    is_node[0] = True  # where every search begins, whatever it says
    inside = (targets | 0xFF) < len(units)
    ends = targets[is_node & inside & (units >> 8 & 1 == 1)]  # whose values are offsets of texts
    if not inside[is_node].all() or (units[ends] & 0x7FFFFFFF >= len(texts)).any():
        raise BadFile(path, "normalizer_spec", "a table of characters", "one that points outside itself")
    if longest_replacement(raw) > _MAX_REPLACEMENT:
        raise BadFile(path, "normalizer_spec", f"at most {_MAX_REPLACEMENT} bytes for a character", "more")


def longest_replacement(charsmap: bytes) -> int:
    """Give the bytes of the longest text in a table that ``check_charsmap`` takes."""
    return max(map(len, charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")))


def build_spm_model(model: SpmModel) -> bytes:
    """Write a model as sentencepiece reads it, without BOS and EOS, which it never adds here."""
    rows = zip(model.pieces, model.scores.tolist(), model.kinds, strict=True)
    parts = [_message(_PIECES, _piece(*row)) for row in rows]
    trainer = [(_MODEL_TYPE, UNIGRAM if model.is_unigram else BPE), (_UNK_ID, model.kinds.index(UNKNOWN))]
    trainer.append((_BYTE_FALLBACK, int(BYTE in model.kinds)))
    # -1 (as 64 bits) is "none".
    trainer += [(key, (1 << 64) - 1) for key in (_BOS_ID, _EOS_ID, _PAD_ID)]
    normalizer = [(_ADD_DUMMY_PREFIX, int(model.adds_space)), (_REMOVE_EXTRA_SPACES, int(model.removes_spaces))]
    normalizer.append((_ESCAPE_SPACES, 1))
    parts.append(_message(_TRAINER_SPEC, _numbers(trainer)))
    table = _message(_CHARSMAP, model.charsmap) if model.charsmap else b""
    parts.append(_message(_NORMALIZER_SPEC, _message(_NORMALIZER_NAME, b"identity") + table + _numbers(normalizer)))
    return b"".join(parts)


def _piece(text: str, score: float, kind: int) -> bytes:
    raw_score = struct.pack("<Bf", _SCORE << 3 | _FIXED32, score)
    return _message(_PIECE, text.encode("utf-8")) + raw_score + _numbers([(_TYPE, kind)])


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


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
