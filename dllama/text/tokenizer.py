"""Text to token ids and back, for the vocabularies that ``.t`` files hold.

Two kinds exist: rank vocabularies (``rank_bpe``) and score vocabularies (``score_bpe``). This file tells them apart,
knows which tokens are special, and loads the library that encodes when the first text comes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Protocol

import numpy as np

from dllama.errors import BadFile
from dllama.formats.t_file import TokenizerData, read_t_file
from dllama.text import rank_bpe, score_bpe
from dllama.text.guard import GUARD

# Special tokens are silent when they look like these, and always as BOS or EOS. Others that follow the regular
# vocabulary, such as Qwen3's <think>, are text that readers of an answer want.
_SILENT = re.compile(rb"<\|.+\|>|<\xef\xbd\x9c.+\xef\xbd\x9c>|\s*</?s>\s*|<unk>|<pad>", re.DOTALL)


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class Tokenizer:
    """A vocabulary that encodes and decodes.

    Args:
        data: The vocabulary.
        path: Where it came from, for messages.

    Raises:
        BadFile: The vocabulary cannot encode every text.
    """

    def __init__(self, data: TokenizerData, path: str | os.PathLike[str] = "tokenizer") -> None:
        self.data, self._path = data, path
        self._has_ranks = _has_ranks(data)
        self._first_byte = 0 if self._has_ranks else self._find_bytes()
        self._first_special = self._find_first_special() if self._has_ranks else 0
        try:
            self._check()
        except ValueError as error:
            raise self._bad(error) from None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load a ``.t`` file; errors as in ``read_t_file``, and BadFile for a vocabulary that cannot encode."""
        return cls(read_t_file(path), path)

    @classmethod
    def from_data(cls, data: TokenizerData) -> Tokenizer:
        """Use a vocabulary that is in memory."""
        return cls(data)

    @property
    def vocab_size(self) -> int:
        """Number of tokens; may be less than the model's, whose further ids have no text."""
        return self.data.vocab_size

    @property
    def bos_id(self) -> int:
        """The token before every text."""
        return self.data.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.data.eos_ids

    @property
    def add_bos(self) -> bool:
        """Whether the model wants ``bos_id`` before every text."""
        return self.data.add_bos

    @property
    def special_names(self) -> Mapping[str, int]:
        """The special tokens that ``parse_special`` knows, by name."""
        return self._special_by_name

    def encode(self, text: str, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Give the token ids of ``text``.

        Args:
            text: Any text; lone surrogates, which have no bytes, become U+FFFD.
            add_bos: Whether to put ``bos_id`` first; None for what the model wants.
            parse_special: Whether names of special tokens in ``text`` become these tokens, unless ``GUARD`` is in
                them, which is left out. Only for text from templates: in text from users names stay text. A space
                behind a special token is the one that a score vocabulary puts there anyway.

        Raises:
            BadFile: The vocabulary proves unusable.
        """
        ids = [self.bos_id] if (self.add_bos if add_bos is None else add_bos) else []
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        for part, special_id in self._split(text) if parse_special else [(text, None)]:
            ids += self._encoder.encode(part) if part else []
            ids += [] if special_id is None else [special_id]
        return ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """Give the text of token ids, special tokens left out, invalid UTF-8 as U+FFFD."""
        from dllama.text.detokenizer import Detokenizer

        detokenizer = Detokenizer(self)
        return "".join([detokenizer.add(token_id) for token_id in token_ids]) + detokenizer.finish()

    def piece(self, token_id: int) -> bytes:
        """Give a token as the vocabulary writes it, special ones by name; empty outside the vocabulary."""
        return self.data.pieces[token_id] if 0 <= token_id < self.vocab_size else b""

    def token_bytes(self, token_id: int, first: bool = False) -> bytes:
        """Give the bytes that a token adds to a text: none for special tokens and ids outside the vocabulary.

        Args:
            token_id: The token.
            first: Whether the text starts with it; then the space that a score vocabulary puts before every text is
                left out.
        """
        if self.is_special(token_id):
            return b""
        piece = self.piece(token_id)
        if self._has_ranks:
            return piece
        if 0 <= token_id - self._first_byte < 256:
            return bytes([token_id - self._first_byte])
        raw = piece.replace(score_bpe.SPACE_MARK.encode(), b" ")
        return raw[1:] if first and raw.startswith(b" ") else raw

    def is_special(self, token_id: int) -> bool:
        """Whether a token steers the model and is no text: BOS, EOS, turn markers and the like."""
        return token_id in self._special_ids

    def summary(self) -> dict[str, str]:
        """Give the facts that distributed-llama prints when it loads a tokenizer, under its names and in its order."""
        return {
            "AddBos": str(int(self.add_bos)),
            "BosId": self._named(self.bos_id),
            "EosId": " ".join(map(self._named, self.eos_ids)),
            "RegularVocabSize": str(self.data.regular_vocab_size),
            "SpecialVocabSize": str(self.vocab_size - self.data.regular_vocab_size),
        }

    def _named(self, token_id: int) -> str:
        return f"{token_id} ({self.piece(token_id).decode('utf-8', 'replace')})"

    def _bad(self, error: ValueError) -> BadFile:
        expected, found = str(error).split(", found ", 1)
        return BadFile(self._path, "vocabulary", expected, found)

    def _check(self) -> None:
        if self._has_ranks:
            rank_bpe.check_pieces(self.data.pieces[: self._first_special])
        else:
            score_bpe.proto_pieces(self.data.pieces, self.is_special)

    def _find_bytes(self) -> int:
        first_byte = score_bpe.first_byte_id(self.data.pieces)
        if first_byte is None:
            found = "neither; convert the tokenizer again"
            raise BadFile(self._path, "vocabulary", "scores of minus the id, or 256 byte tokens in a row", found)
        return first_byte

    def _find_first_special(self) -> int:
        """Find the end of the regular pieces: ``bos_id``, unless special tokens with lower ids stand before it."""
        first = self.bos_id
        while first and _SILENT.fullmatch(self.data.pieces[first - 1]):
            first -= 1
        return first

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """All silent tokens."""
        tail = range(self._first_special, self.vocab_size)
        silent = {token_id for token_id in tail if _SILENT.fullmatch(self.data.pieces[token_id])}
        # In score vocabularies what comes before the bytes steers too, e.g. Mistral's [INST].
        return frozenset(silent | {self.bos_id, *self.eos_ids} | set(range(self._first_byte)))

    @cached_property
    def _special_by_name(self) -> dict[str, int]:
        """Names that ``parse_special`` knows: silent tokens, and in rank vocabularies all after the regular ones."""
        ids = set(range(self._first_special, self.vocab_size)) if self._has_ranks else set()
        names: dict[str, int] = {}
        for token_id in sorted(ids | self._special_ids):
            name = self.data.pieces[token_id].decode("utf-8", "replace")
            # Some converters of score vocabularies put line ends around <s>.
            names.setdefault(name if self._has_ranks else name.strip(), token_id)
        names.pop("", None)
        return {name: token_id for name, token_id in names.items() if GUARD not in name}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Match any special name, the longest where several begin alike."""
        names = sorted(self._special_by_name, key=len, reverse=True)
        # A guard behind the first letter of a name is inside it, unless the name has no other.
        parts = [re.escape(name) + (f"(?!{GUARD})" if len(name) == 1 else "") for name in names]
        return re.compile("|".join(parts) or "(?!)")  # which never matches

    def _split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut text at special names: pairs of ordinary text and the id of the name after it, None at the end."""
        begin = 0
        for match in self._special_pattern.finditer(text):
            yield self._ordinary(text[begin : match.start()]), self._special_by_name[match.group()]
            begin = match.end()
        yield self._ordinary(text[begin:]), None

    def _ordinary(self, part: str) -> str:
        part = part.replace(GUARD, "")
        return part if self._has_ranks else part.removeprefix(" ")

    @cached_property
    def _encoder(self) -> _Encoder:
        pieces = self.data.pieces
        if self._has_ranks:
            return rank_bpe.RankEncoder(pieces[: self._first_special], pieces[self._first_special :])
        try:
            names = score_bpe.proto_pieces(pieces, self.is_special)
            return score_bpe.ScoreEncoder(names, self.data.scores, self._first_byte, self.is_special)
        except ValueError as error:
            raise self._bad(error) from error


def _has_ranks(data: TokenizerData) -> bool:
    """Whether scores are minus the ids for all pieces before BOS, which cannot stand before the 256 bytes."""
    ids = np.arange(data.bos_id, dtype=np.float32)
    return data.bos_id >= 256 and np.array_equal(data.scores[: data.bos_id], -ids)
