"""The vocabularies of ``.t`` files, in two kinds: ranks (``rank_bpe``) and scores (``score_bpe``).

The file does not say which kind it holds, which tokens are special, or how text is cut; this is where it is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Protocol

import numpy as np

from dllama.errors import BadFile
from dllama.formats.spm_model import SpmModel
from dllama.formats.t_file import TokenizerData
from dllama.text import rank_bpe, score_bpe
from dllama.text.guard import GUARD
from dllama.text.vocabulary import Facts, Place, SpecialName, bad_vocabulary, is_silent


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class TVocabulary:
    """A vocabulary as ``.t`` files hold it.

    Args:
        data: The vocabulary.
        path: Where it came from, for messages.

    Raises:
        BadFile: It cannot encode every text.
    """

    def __init__(self, data: TokenizerData, path: str) -> None:
        self.data, self._path = data, path
        template = {"default": data.chat_template} if data.chat_template is not None else {}
        self.facts = Facts(data.bos_id, data.eos_ids, data.add_bos, chat_templates=template)
        self.vocab_size = self.least_rows = data.vocab_size
        self.has_ranks = _has_ranks(data)
        self._first_byte = 0 if self.has_ranks else self._find_bytes()
        self._first_special = self._find_first_special() if self.has_ranks else 0
        self.drops_written_space = not self.has_ranks
        try:
            self._check()
        except ValueError as error:
            raise bad_vocabulary(self._path, error) from None

    def piece(self, token_id: int) -> bytes:
        """Give a token as the vocabulary writes it; empty outside the vocabulary."""
        return self.data.pieces[token_id] if 0 <= token_id < self.vocab_size else b""

    def text_bytes(self, token_id: int, is_first: bool) -> bytes:
        """Give the bytes of a token of ordinary text; at the start without the space that encoding puts there."""
        piece = self.piece(token_id)
        if self.has_ranks:
            return piece
        if 0 <= token_id - self._first_byte < 256:
            return bytes([token_id - self._first_byte])
        raw = piece.replace(score_bpe.SPACE_MARK.encode(), b" ")
        return raw.removeprefix(b" ") if is_first else raw

    def encode(self, text: str, place: Place) -> list[int]:
        """Give the ids of ordinary text; score vocabularies of this kind put a space before every text."""
        del place
        return self._encoder.encode(text)

    def to_t_data(self) -> TokenizerData:
        """Give the file's own."""
        return self.data

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """All silent tokens."""
        tail = range(self._first_special, self.vocab_size)
        silent = {token_id for token_id in tail if _is_silent(self.data.pieces[token_id])}
        # In score vocabularies what comes before the bytes steers too, e.g. Mistral's [INST].
        return frozenset(silent | {self.facts.bos_id, *self.facts.eos_ids} | set(range(self._first_byte)))

    @cached_property
    def names(self) -> Mapping[str, SpecialName]:
        """Silent tokens, and in rank vocabularies all after the regular ones."""
        ids = set(range(self._first_special, self.vocab_size)) if self.has_ranks else set()
        names: dict[str, SpecialName] = {}
        for token_id in sorted(ids | self.special_ids):
            name = self.data.pieces[token_id].decode("utf-8", "replace")
            # Some converters of score vocabularies put line ends around <s>.
            names.setdefault(name if self.has_ranks else name.strip(), SpecialName(token_id))
        names.pop("", None)
        return {name: special for name, special in names.items() if GUARD not in name}

    def _check(self) -> None:
        if self.has_ranks:
            rank_bpe.check_pieces(self.regular)
        else:
            score_bpe.proto_pieces(self.data.pieces, self._is_special)

    @property
    def regular(self) -> tuple[bytes, ...]:
        """The pieces of ordinary text in a rank vocabulary, whose ids are their ranks."""
        return self.data.pieces[: self._first_special]

    @property
    def is_qwen(self) -> bool:
        """Whether a rank vocabulary cuts text as Qwen's does, not as Llama 3's."""
        return rank_bpe.is_qwen(self.regular, self.data.pieces[self._first_special :])

    def spm_model(self) -> SpmModel:
        """Give a score vocabulary as a model of SentencePiece, without the names of its special tokens.

        Raises:
            ValueError: It has pieces that are none there.
        """
        names = score_bpe.proto_pieces(self.data.pieces, self._is_special)
        return score_bpe.spm_model(names, self.data.scores, self._first_byte, self._is_special)

    @property
    def _is_special(self) -> Callable[[int], bool]:
        return self.special_ids.__contains__

    def _find_bytes(self) -> int:
        first_byte = score_bpe.first_byte_id(self.data.pieces)
        if first_byte is None:
            found = "neither; convert the tokenizer again"
            raise BadFile(self._path, "vocabulary", "scores of minus the id, or 256 byte tokens in a row", found)
        return first_byte

    def _find_first_special(self) -> int:
        """Find the end of the regular pieces: ``bos_id``, unless special tokens with lower ids stand before it."""
        first = self.data.bos_id
        while first and _is_silent(self.data.pieces[first - 1]):
            first -= 1
        return first

    @cached_property
    def _encoder(self) -> _Encoder:
        if self.has_ranks:
            return rank_bpe.RankEncoder(self.regular, self.data.pieces[self._first_special :])
        try:
            return score_bpe.ScoreEncoder(self.spm_model())
        except ValueError as error:
            raise bad_vocabulary(self._path, error) from error


def _is_silent(piece: bytes) -> bool:
    return is_silent(piece.decode("utf-8", "replace"))


def _has_ranks(data: TokenizerData) -> bool:
    """Whether scores are minus the ids for all pieces before BOS, which cannot stand before the 256 bytes."""
    ids = np.arange(data.bos_id, dtype=np.float32)
    return data.bos_id >= 256 and np.array_equal(data.scores[: data.bos_id], -ids)
