"""Reading and writing ``.t`` tokenizer files, those of distributed-llama.

A file holds a header of int32 (key, value) pairs, the chat template, the ids that end an answer, and every piece of the
vocabulary with its score. Nothing here knows how text is cut into pieces: see ``dllama.text.tokenizer``.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

import numpy as np

from dllama.errors import UsageError
from dllama.formats.checked_file import CheckedFile, new_file
from dllama.formats.quants import Floats
from dllama.formats.vocabulary_bounds import MAX_VOCAB_SIZE

_MAGIC, _OLD_MAGIC = 0x567124, 0x567123
_VERSION = 1
# Header keys; distributed-llama's numbers. The pad id is ignored, as there is no padding.
_KEY_VERSION, _KEY_VOCAB_SIZE, _KEY_MAX_TOKEN_LENGTH, _KEY_BOS_ID, _KEY_EOS_ID, _KEY_PAD_ID = range(6)
_KEY_CHAT_EOS_ID, _KEY_CHAT_TEMPLATE, _KEY_CHAT_STOP, _KEY_NUM_EOS_IDS, _KEY_ADD_BOS = range(6, 11)
_KEY_NAMES = (
    *("version", "vocab_size", "max_token_length", "bos_id", "eos_id", "pad_id", "chat_eos_id"),
    *("chat_template", "chat_stop", "num_eos_ids", "add_bos"),
)
_OLD_KEYS = (_KEY_VOCAB_SIZE, _KEY_MAX_TOKEN_LENGTH, _KEY_BOS_ID, _KEY_EOS_ID, _KEY_PAD_ID)
_OLD_HEADER_SIZE = 4 + 4 * len(_OLD_KEYS)
_MAX_HEADER_SIZE = 8 + 8 * 64
# A vocabulary of 256k pieces is 5 MB; the whole file is read at once, and a hostile one should not take seconds.
_MAX_FILE_SIZE = 1 << 26
_RECORD = struct.Struct("<fI")  # score and length of a piece, which follows


@dataclass(frozen=True, eq=False)
class TokenizerData:
    """A vocabulary and what a tokenizer must know beside it.

    Attributes:
        pieces: The bytes of each token, by id.
        scores: float32 ``[vocab_size]``. In a rank vocabulary (BPE) minus the id; else SentencePiece's.
        bos_id: The token before every text. In rank vocabularies also the first special token: all ids below it are
            pieces of ordinary text, and no others.
        eos_ids: The tokens that end an answer, none twice.
        add_bos: Whether a text starts with ``bos_id``.
        chat_template: The model's Jinja template, untrusted.
    """

    pieces: tuple[bytes, ...]
    scores: Floats
    bos_id: int
    eos_ids: tuple[int, ...]
    add_bos: bool = True
    chat_template: str | None = None

    @property
    def vocab_size(self) -> int:
        """Number of tokens; may be less than the model's."""
        return len(self.pieces)

    @property
    def max_token_length(self) -> int:
        """Bytes of the longest piece."""
        return max(map(len, self.pieces), default=0)


@dataclass
class _Header:
    values: dict[int, int]
    size: int
    offsets: dict[int, int] = field(default_factory=dict)

    def place(self, key: int) -> str:
        where = f"byte {self.offsets[key]} (" if key in self.offsets else "("
        return f"{where}header key {key}, {_KEY_NAMES[key]})"


class _Reader:
    """Takes the parts of a tokenizer file in order; every length is checked against what is left."""

    def __init__(self, file: CheckedFile) -> None:
        if file.size > _MAX_FILE_SIZE:
            raise file.bad("size", f"at most {_MAX_FILE_SIZE} bytes", f"{file.size} bytes")
        self.file, self.offset = file, 0

    def take(self, num_bytes: int, place: str) -> bytes:
        raw = self.file.read(self.offset, num_bytes, f"byte {self.offset} ({place})")
        self.offset += num_bytes
        return raw


def read_t_file(path: str | os.PathLike[str]) -> TokenizerData:
    """Read a ``.t`` file, current or old.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound ``.t`` file.
    """
    with CheckedFile(path, "tokenizer") as file:
        reader = _Reader(file)
        header = _read_header(reader)
        most = min(MAX_VOCAB_SIZE, (file.size - header.size) // _RECORD.size)
        vocab_size = _checked(file, header, _KEY_VOCAB_SIZE, 1, most)
        _checked(file, header, _KEY_MAX_TOKEN_LENGTH, 1, (1 << 31) - 1)
        add_bos = _checked(file, header, _KEY_ADD_BOS, 0, 1, default=1)
        bos_id = _checked(file, header, _KEY_BOS_ID, 0, vocab_size - 1)
        template = _read_template(reader, header)
        eos_ids = _read_eos_ids(reader, header, vocab_size)
        pieces, scores = _read_pieces(reader, vocab_size)
        return TokenizerData(pieces, scores, bos_id, eos_ids, bool(add_bos), template)


def _read_header(reader: _Reader) -> _Header:
    file = reader.file
    (magic,) = struct.unpack("<I", reader.take(4, "magic number"))
    if magic == _OLD_MAGIC:
        values = struct.unpack("<5i", reader.take(_OLD_HEADER_SIZE - 4, "header"))
        offsets = {key: 4 + 4 * index for index, key in enumerate(_OLD_KEYS)}
        return _Header(dict(zip(_OLD_KEYS, values, strict=True)), _OLD_HEADER_SIZE, offsets)
    if magic != _MAGIC:
        raise file.bad("byte 0 (magic number)", f"0x{_MAGIC:08X}, a .t tokenizer file", f"0x{magic:08X}")
    (size,) = struct.unpack("<i", reader.take(4, "header size"))
    if size < 8 or size % 8 or size > _MAX_HEADER_SIZE:
        expected = f"8 plus 8 per key, at most {_MAX_HEADER_SIZE}"
        raise file.bad("byte 4 (header size)", expected, str(size))
    header = _Header({}, size)
    for key, value in struct.iter_unpack("<ii", reader.take(size - 8, "header")):
        _add_key(file, header, key, value)
    if header.values.get(_KEY_VERSION) != _VERSION:
        found = str(header.values.get(_KEY_VERSION, "none"))
        raise file.bad(header.place(_KEY_VERSION), f"version {_VERSION}", found)
    return header


def _add_key(file: CheckedFile, header: _Header, key: int, value: int) -> None:
    offset = 8 + 8 * len(header.values)
    if not 0 <= key < len(_KEY_NAMES):
        expected, found = f"a header key from 0 to {len(_KEY_NAMES) - 1}", f"key {key}"
        if key >= 1000:  # where keys of our own will start, as in model files
            expected, found = "keys that this version knows", f"key {key}; a newer dllama can read it"
        raise file.bad(f"byte {offset}", expected, found)
    if key in header.values:
        raise file.bad(f"byte {offset}", "every header key once", f"key {key} ({_KEY_NAMES[key]}) again")
    header.values[key], header.offsets[key] = value, offset + 4


def _checked(file: CheckedFile, header: _Header, key: int, low: int, high: int, default: int | None = None) -> int:
    value = header.values.get(key, default)
    if value is None:
        raise file.bad("header", f"key {key} ({_KEY_NAMES[key]})", "a header without it")
    if not low <= value <= high:
        expected = f"{low} to {high}" if high >= low else "a file large enough for its vocabulary"
        raise file.bad(header.place(key), expected, str(value))
    return value


def _read_template(reader: _Reader, header: _Header) -> str | None:
    """Read the chat template, and skip the stop text that followed it in files of 2024."""
    length = _checked(reader.file, header, _KEY_CHAT_TEMPLATE, 0, reader.file.size, default=0)
    begin = reader.offset
    raw = reader.take(length, "chat template")
    reader.take(_checked(reader.file, header, _KEY_CHAT_STOP, 0, reader.file.size, default=0), "chat stop")
    try:
        return raw.decode("utf-8") or None
    except UnicodeDecodeError as error:
        place = f"byte {begin + error.start} (chat template)"
        raise reader.file.bad(place, "UTF-8 text", f"byte 0x{raw[error.start]:02X}") from None


def _read_eos_ids(reader: _Reader, header: _Header, vocab_size: int) -> tuple[int, ...]:
    """Give the ids of the old single keys, then those of the list; -1 in a single key means none."""
    eos_ids = []
    for key in (_KEY_EOS_ID, _KEY_CHAT_EOS_ID):
        eos_id = _checked(reader.file, header, key, -1, vocab_size - 1, default=-1)
        if eos_id >= 0:
            eos_ids.append(eos_id)
    count = _checked(reader.file, header, _KEY_NUM_EOS_IDS, 0, vocab_size, default=0)
    begin = reader.offset
    listed = struct.unpack(f"<{count}i", reader.take(4 * count, "end-of-text ids"))
    for index, eos_id in enumerate(listed):
        if not 0 <= eos_id < vocab_size:
            place = f"byte {begin + 4 * index} (end-of-text id)"
            raise reader.file.bad(place, f"0 to {vocab_size - 1}", str(eos_id))
    return tuple(dict.fromkeys([*eos_ids, *listed]))


def _read_pieces(reader: _Reader, vocab_size: int) -> tuple[tuple[bytes, ...], Floats]:
    """Read the vocabulary, which is all that is left of the file."""
    begin = reader.offset
    raw = reader.take(reader.file.size - begin, "vocabulary")
    pieces: list[bytes] = []
    scores: list[float] = []
    offset, size, unpack = 0, len(raw), _RECORD.unpack_from
    for token_id in range(vocab_size):
        if size - offset < 8:
            raise reader.file.bad(f"byte {begin + offset} (token {token_id})", "8 bytes", f"{size - offset}")
        score, length = unpack(raw, offset)
        offset += 8
        if not 0 < length <= size - offset:
            place = f"byte {begin + offset - 4} (length of token {token_id})"
            raise reader.file.bad(place, f"1 to the {size - offset} bytes left in the file", str(length))
        pieces.append(raw[offset : offset + length])
        scores.append(score)
        offset += length
    if offset != size:
        raise reader.file.bad(f"byte {begin + offset}", "the end of the file", f"{size - offset} bytes more")
    return tuple(pieces), _finite(reader.file, scores)


def _finite(file: CheckedFile, scores: list[float]) -> Floats:
    values = np.array(scores, dtype=np.float32)
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise file.bad(f"score of token {wrong[0]}", "a finite number", str(values[wrong[0]]))
    return values


def write_t_file(path: str | os.PathLike[str], data: TokenizerData) -> None:
    """Write a ``.t`` file that distributed-llama reads too; ``path`` is untouched until it is complete.

    Raises:
        UsageError: The format cannot hold this vocabulary, or ``path`` cannot be written.
        DllamaError: The disk is full or fails.
    """
    problem = _problem(data)
    if problem:
        raise UsageError(f"a .t file cannot hold this tokenizer: {problem}")
    template = (data.chat_template or "").encode("utf-8")
    # In the order in which distributed-llama writes them, so that files are equal byte by byte.
    pairs = {
        _KEY_BOS_ID: data.bos_id,
        _KEY_VERSION: _VERSION,
        _KEY_VOCAB_SIZE: data.vocab_size,
        _KEY_MAX_TOKEN_LENGTH: data.max_token_length,
        **({_KEY_CHAT_TEMPLATE: len(template)} if template else {}),
        _KEY_NUM_EOS_IDS: len(data.eos_ids),
        _KEY_ADD_BOS: int(data.add_bos),
    }
    parts = [struct.pack("<Ii", _MAGIC, 8 + 8 * len(pairs))]
    parts += [struct.pack("<ii", key, value) for key, value in pairs.items()]
    parts += [template, struct.pack(f"<{len(data.eos_ids)}i", *data.eos_ids)]
    for piece, score in zip(data.pieces, data.scores.tolist(), strict=True):
        parts += [_RECORD.pack(score, len(piece)), piece]
    raw = b"".join(parts)
    with new_file(path, len(raw)) as file:
        file.write(raw)


def _problem(data: TokenizerData) -> str | None:
    ids = (data.bos_id, *data.eos_ids)
    if not data.pieces or not all(data.pieces):
        return "every token needs at least one byte"
    if data.scores.shape != (data.vocab_size,) or not np.isfinite(data.scores).all():
        return f"scores must be {data.vocab_size} finite numbers"
    if any(not 0 <= token_id < data.vocab_size for token_id in ids):
        return f"bos and eos ids must be below {data.vocab_size}, found {list(ids)}"
    return None
