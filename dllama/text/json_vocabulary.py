"""The vocabularies of ``tokenizer.json``: byte-level BPE, BPE and Unigram of SentencePiece's form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from dllama.errors import UnsupportedModel
from dllama.formats.spm_model import BYTE_PIECE
from dllama.formats.t_file import TokenizerData
from dllama.formats.tokenizer_json import TokenizerJson, walk
from dllama.text import byte_level
from dllama.text.guard import GUARD
from dllama.text.json_encoder import JsonEncoder
from dllama.text.vocabulary import NO_ID, Facts, Place, SpecialName, is_name, is_silent

_DECODERS = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "Sequence"}


class JsonVocabulary:
    """A vocabulary as ``tokenizer.json`` describes it.

    Args:
        file: What it says.
        facts: What other files say.

    Raises:
        UnsupportedModel: It decodes as dllama cannot.
    """

    def __init__(self, file: TokenizerJson, facts: Facts) -> None:
        self.file, self.facts = file, facts
        self._added = {token.id: token for token in file.added}
        self.vocab_size = max([len(file.pieces), *(token.id + 1 for token in file.added)])
        self.least_rows = len(file.pieces)
        self._encoder = JsonEncoder(file)
        decoders = list(walk(file.parts["decoder"]))
        self._check_decoders([str(each.get("type")) for each in decoders])
        kinds = {each["type"] for each in decoders or walk(file.parts["pre_tokenizer"])}
        self.is_byte_level = "ByteLevel" in kinds
        self._has_bytes = file.has_byte_fallback or "ByteFallback" in kinds
        self._replaced = _replacements(decoders)
        self._drops_space = any(map(_drops_space, decoders))
        self.drops_written_space = False

    def piece(self, token_id: int) -> bytes:
        """Give a token as the vocabulary writes it, byte-level pieces as the bytes they stand for."""
        if token_id in self._added:
            return self._added[token_id].content.encode("utf-8", "replace")
        piece = self.file.pieces[token_id] if 0 <= token_id < len(self.file.pieces) else None
        if piece is None:
            return b""
        return byte_level.to_bytes(piece) if self.is_byte_level else piece.encode("utf-8", "replace")

    def text_bytes(self, token_id: int, is_first: bool) -> bytes:
        """Give the bytes of a token that is not special."""
        raw = self._bytes_of(token_id)
        return raw.removeprefix(b" ") if is_first and self._drops_space else raw

    def _bytes_of(self, token_id: int) -> bytes:
        raw = self.piece(token_id)
        if self.is_byte_level:
            return raw
        match = BYTE_PIECE.fullmatch(raw.decode("utf-8")) if self._has_bytes and len(raw) == 6 else None
        if match is not None and token_id not in self._added:
            return bytes([int(match[1], 16)])
        for pattern, content in self._replaced:
            raw = raw.replace(pattern, content)
        return raw

    def encode(self, text: str, place: Place) -> list[int]:
        """Give the ids of ordinary text."""
        return self._encoder.encode(text, place)

    def to_t_data(self) -> TokenizerData:
        """Give the vocabulary as a ``.t`` file holds it."""
        from dllama.text.t_export import json_to_t

        return json_to_t(self)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that the file calls special or that are silent by name, BOS and EOS."""
        silent = {token.id for token in self.file.added if token.special or is_silent(token.content)}
        return frozenset(silent | ({self.facts.bos_id, *self.facts.eos_ids} - {NO_ID}))

    @cached_property
    def names(self) -> Mapping[str, SpecialName]:
        """Added tokens that are no text."""
        return {
            token.content: SpecialName(token.id, token.lstrip, token.rstrip, token.single_word)
            for token in self.file.added
            if is_name(token.content, token.special) and GUARD not in token.content
        }

    def _check_decoders(self, kinds: list[str]) -> None:
        unknown = next((kind for kind in kinds if kind not in _DECODERS), None)
        if unknown is not None:
            expected = f"one of {', '.join(sorted(_DECODERS))}"
            raise UnsupportedModel(self.file.path, "decoder", expected, f"{unknown!r:.80}")


def _replacements(decoders: list[dict[str, object]]) -> list[tuple[bytes, bytes]]:
    """Give what decoding writes in place of what, in order."""
    pairs: list[tuple[object, object]] = []
    for each in decoders:
        if each["type"] == "Metaspace":
            pairs.append((each.get("replacement"), " "))
        pattern = each.get("pattern")
        if each["type"] == "Replace" and isinstance(pattern, dict):
            pairs.append((pattern.get("String"), each.get("content")))
    return [(old.encode(), new.encode()) for old, new in pairs if isinstance(old, str) and isinstance(new, str) and old]


def _drops_space(decoder: dict[str, object]) -> bool:
    """Whether a decoder leaves out the space that encoding has put before the text."""
    if decoder["type"] == "Strip":
        return decoder.get("content") == " " and decoder.get("start") == 1
    scheme = decoder.get("prepend_scheme", "always" if decoder.get("add_prefix_space", True) else "never")
    return decoder["type"] == "Metaspace" and scheme != "never"
