"""The vocabularies of SentencePiece models, from ``tokenizer.model`` and from GGUF files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from dllama.errors import BadFile
from dllama.formats.spm_model import BYTE, BYTE_PIECE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, SpmModel
from dllama.formats.t_file import TokenizerData
from dllama.formats.tokenizer_json import AddedToken
from dllama.text.guard import GUARD
from dllama.text.score_bpe import SPACE_MARK, load_processor
from dllama.text.vocabulary import NO_ID, Facts, Place, SpecialName, bad_vocabulary, is_name, is_silent

if TYPE_CHECKING:
    import sentencepiece


class SpmVocabulary:
    """A SentencePiece model, and tokens that were added to it.

    Args:
        path: Where it came from, for messages.
        model: The model.
        facts: What other files say.
        added: Tokens found by name, in the model or behind it.
        space_everywhere: Whether the space that goes before a text goes behind every special token, too.
        unused_is_text: Whether tokens of kind ``UNUSED`` have a text, as for sentencepiece, or none, as in GGUF.

    Raises:
        BadFile: The model cannot be used.
    """

    def __init__(
        self,
        path: str,
        model: SpmModel,
        facts: Facts,
        added: Sequence[AddedToken] = (),
        space_everywhere: bool = True,
        unused_is_text: bool = True,
    ) -> None:
        self._path, self.model, self.facts = path, model, facts
        self._space_everywhere = space_everywhere
        self._textless = set() if unused_is_text else {each for each, kind in enumerate(model.kinds) if kind == UNUSED}
        self._added = {token.id: token for token in added}
        self.vocab_size = max([len(model.pieces), *(token.id + 1 for token in added)])
        self.least_rows, self.drops_written_space = len(model.pieces), False
        self._bytes = self._find_bytes()
        if model.kinds.count(UNKNOWN) != 1:
            found = f"{model.kinds.count(UNKNOWN)}"
            raise BadFile(path, "vocabulary", "exactly one token for what is unknown", found)
        if len(set(model.pieces)) < len(model.pieces):
            raise BadFile(path, "vocabulary", "different pieces", "some that are there before")

    def piece(self, token_id: int) -> bytes:
        """Give a token as the vocabulary writes it."""
        if token_id in self._added:
            return self._added[token_id].content.encode("utf-8", "replace")
        inside = 0 <= token_id < len(self.model.pieces)
        return self.model.pieces[token_id].encode("utf-8", "replace") if inside else b""

    def text_bytes(self, token_id: int, is_first: bool) -> bytes:
        """Give the bytes of a token that is not special."""
        if token_id in self._bytes:
            return bytes([self._bytes[token_id]])
        if token_id in self._textless:
            return b""
        raw = self.piece(token_id).replace(SPACE_MARK.encode(), b" ")
        return raw.removeprefix(b" ") if is_first and self.model.adds_space else raw

    def encode(self, text: str, place: Place) -> list[int]:
        """Give the ids of ordinary text."""
        gets_space = place is Place.START or (place is Place.BEHIND_NAME and self._space_everywhere)
        ids: list[int] = (self._with_space if gets_space else self._without_space).encode(text)
        return ids

    def to_t_data(self) -> TokenizerData:
        """Give the vocabulary as a ``.t`` file holds it."""
        from dllama.text.t_export import spm_to_t

        return spm_to_t(self._path, self)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Control tokens, the unknown one, BOS and EOS, and what is silent by name."""
        steering = {token_id for token_id, kind in enumerate(self.model.kinds) if kind in (CONTROL, UNKNOWN)}
        named = {each.token_id for name, each in self.names.items() if is_silent(name)}
        added = {token.id for token in self._added.values() if token.special}
        return frozenset(steering | named | added | ({self.facts.bos_id, *self.facts.eos_ids} - {NO_ID}))

    @cached_property
    def names(self) -> Mapping[str, SpecialName]:
        """Control tokens, and those added tokens that are no text."""
        names = {self.model.pieces[token_id]: SpecialName(token_id) for token_id in self._named_ids}
        names |= {
            token.content: SpecialName(token.id, token.lstrip, token.rstrip, token.single_word)
            for token in self._added.values()
            if is_name(token.content, token.special)
        }
        return {name: special for name, special in names.items() if GUARD not in name}

    @cached_property
    def _named_ids(self) -> list[int]:
        """Pieces of the model that only templates may write."""
        rows = enumerate(zip(self.model.pieces, self.model.kinds, strict=True))
        return [
            token_id
            for token_id, (piece, kind) in rows
            if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and is_name(piece, is_special=False))
        ]

    def _find_bytes(self) -> dict[int, int]:
        found = {}
        for token_id, (piece, kind) in enumerate(zip(self.model.pieces, self.model.kinds, strict=True)):
            if kind == BYTE:
                match = BYTE_PIECE.fullmatch(piece)
                if match is None:
                    raise BadFile(self._path, f"piece {token_id}", "a byte, <0x00> to <0xFF>", f"{piece!r:.80}")
                found[token_id] = int(match[1], 16)
        if len(found) not in (0, 256):
            raise BadFile(self._path, "vocabulary", "a token for each byte, or for none", f"{len(found)} of them")
        return found

    @cached_property
    def _with_space(self) -> sentencepiece.SentencePieceProcessor:
        return self._load(self._unspellable)

    @cached_property
    def _without_space(self) -> sentencepiece.SentencePieceProcessor:
        if not self.model.adds_space:
            return self._with_space
        return self._load(replace(self._unspellable, adds_space=False))

    @cached_property
    def _unspellable(self) -> SpmModel:
        """The model with names of special tokens that no text has: no piece can have a space in it."""
        pieces, kinds = list(self.model.pieces), list(self.model.kinds)
        for token_id in self._named_ids:
            pieces[token_id] = f"<special {token_id}>"
            kinds[token_id] = CONTROL if kinds[token_id] == USER_DEFINED else kinds[token_id]
        return replace(self.model, pieces=pieces, kinds=kinds)

    def _load(self, model: SpmModel) -> sentencepiece.SentencePieceProcessor:
        try:
            return load_processor(model)
        except ValueError as error:
            raise bad_vocabulary(self._path, error) from None
