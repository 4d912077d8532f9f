"""Reading ``tokenizer.json``, the file of Hugging Face's ``tokenizers``.

Knows the form of the file, not how it cuts text: see ``dllama.text.json_vocabulary``. The large part, the model with
its vocabulary, stays text until a part of it is asked for; everything else is small and is checked here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec

from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.checked_file import read_whole
from dllama.formats.json_file import bound_members, parse
from dllama.formats.normalizer_growth import check_growth
from dllama.formats.patterns import is_risky
from dllama.formats.vocabulary_bounds import MAX_PIECE, MAX_VOCAB_SIZE

_MAX_FILE_SIZE = 1 << 27  # bytes; the largest in use, of 260 thousand tokens, has 33 million
_MAX_PART_SIZE = 1 << 22  # of a normalizer and the like
_MOST_LEVELS = 32  # in such a part; those in use have 5
_MOST_VALUES = 1 << 22  # colons, and commas; the largest in use has 1.4 million
_Id = Annotated[int, msgspec.Meta(ge=0, lt=MAX_VOCAB_SIZE)]
# What does nothing but change and cut text; all else is refused by name.
NORMALIZERS = {
    *("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "Strip", "StripAccents", "Nmt", "Precompiled"),
    *("Sequence",),
}
PRE_TOKENIZERS = {
    *("ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "Metaspace", "Sequence"),
    *("UnicodeScripts",),
}


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in text by its name, before anything else is done."""

    id: _Id
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class _Bpe(msgspec.Struct):
    vocab: dict[str, _Id]
    merges: msgspec.Raw
    ignore_merges: bool = False
    byte_fallback: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    dropout: float | None = None


class _Unigram(msgspec.Struct):
    vocab: list[tuple[str, float]]
    unk_id: int | None = None
    byte_fallback: bool = False


@dataclass(frozen=True)
class TokenizerJson:
    """What a ``tokenizer.json`` says.

    Attributes:
        path: The file.
        kind: ``"BPE"`` or ``"Unigram"``.
        model: The JSON of its model.
        pieces: By id, as the model writes them; None where no piece of the model has an id.
        scores: By id, of a Unigram model; else empty.
        added: Tokens found by name, by id.
        parts: ``normalizer``, ``pre_tokenizer``, ``post_processor``, ``decoder``: objects, or None.
        has_byte_fallback: Whether characters outside the vocabulary become tokens ``<0xNN>``.
        ignores_merges: Whether a word that is a piece is taken as it is.
    """

    path: str
    kind: str
    model: msgspec.Raw
    pieces: list[str | None]
    scores: list[float]
    added: tuple[AddedToken, ...]
    parts: Mapping[str, dict[str, Any] | None]
    has_byte_fallback: bool
    ignores_merges: bool

    def ids(self) -> dict[str, int]:
        """Give the id of each token by its text."""
        ids = {piece: token_id for token_id, piece in enumerate(self.pieces) if piece is not None}
        return ids | {token.content: token.id for token in self.added}

    def with_added(self, tokens: Sequence[AddedToken]) -> TokenizerJson:
        """Give the same with more added tokens, behind all that are there.

        Raises:
            BadFile: They have other ids than the library would give them.
        """
        added = tuple(sorted([*self.added, *tokens], key=_by_id))
        if tokens:
            _check_pieces(self.path, self.pieces, added)
        return replace(self, added=added)

    def merges(self) -> list[tuple[str, str]]:
        """Give the merges of a BPE model, the first first.

        Raises:
            BadFile: They are no pairs, or make no piece.
        """
        raw = parse(self.path, "model", self.model, _Bpe).merges
        given = parse(self.path, "merges", raw, list[str | tuple[str, str]])
        pairs = [pair.partition(" ")[::2] if isinstance(pair, str) else pair for pair in given]
        if not all(left and right for left, right in pairs):
            raise BadFile(self.path, "merges", "pairs of pieces", "a merge of one")
        pieces = set(self.pieces)
        for left, right in pairs:
            if left + right not in pieces:
                raise BadFile(self.path, "merges", "pairs that make a piece", f"{left!r:.80} and {right!r:.80}")
        return pairs


def read_tokenizer_json(path: str | os.PathLike[str]) -> TokenizerJson:
    """Read a ``tokenizer.json``.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound one. UnsupportedModel: It does what dllama cannot.
    """
    return parse_tokenizer_json(os.fspath(path), read_whole(path, "tokenizer", _MAX_FILE_SIZE))


def parse_tokenizer_json(path: str, raw: bytes) -> TokenizerJson:
    """Read one that is in memory."""
    bound_members(path, "", raw, _MOST_VALUES, f"at most {_MOST_VALUES} members")
    if raw.count(b",") > _MOST_VALUES:
        raise BadFile(path, "", f"at most {_MOST_VALUES} values", "more")
    top = parse(path, "", raw, dict[str, msgspec.Raw])
    if "model" not in top:
        raise BadFile(path, "", "a tokenizer.json with a model", "none")
    added = _added(path, top.get("added_tokens", msgspec.Raw(b"[]")))
    parts = {name: _part(path, name, top) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    check_kinds(path, "normalizer", parts["normalizer"], NORMALIZERS)
    check_growth(path, "normalizer", walk(parts["normalizer"]))
    check_growth(path, "decoder", walk(parts["decoder"]))
    check_kinds(path, "pre_tokenizer", parts["pre_tokenizer"], PRE_TOKENIZERS)
    kind = _kind(path, top["model"])
    if kind == "Unigram":
        return _unigram(path, top["model"], added, parts)
    return _bpe(path, top["model"], added, parts)


def walk(part: object) -> Iterator[dict[str, Any]]:
    """Give an object of the file, and those in it: a Sequence's members, and theirs."""
    if isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "decoders", "processors"):
            members = part.get(name)
            for each in members if isinstance(members, list) else ():
                yield from walk(each)


def check_kinds(path: str, name: str, part: object, known: set[str]) -> None:
    """Raise UnsupportedModel if a part has a kind that is not ``known``, or a pattern that may take forever."""
    for each in walk(part):
        pattern = each.get("pattern")
        if isinstance(pattern, dict) and "" in pattern.values():  # the library panics
            raise BadFile(path, name, "patterns that match something", "an empty one")
        if isinstance(pattern, dict) and is_risky(str(pattern.get("Regex", ""))):
            raise UnsupportedModel(path, name, "patterns that match in one way", f"{pattern['Regex']!r:.80}")
        if not isinstance(each.get("type"), str) or each["type"] not in known:
            raise UnsupportedModel(path, name, f"one of {', '.join(sorted(known))}", f"{each.get('type')!r:.80}")


def _kind(path: str, model: msgspec.Raw) -> str:
    kind = parse(path, "model", model, dict[str, msgspec.Raw]).get("type")
    kind = "BPE" if kind is None else parse(path, "model: type", kind, str)  # old files say nothing
    if kind not in ("BPE", "Unigram"):
        advice = "no language model that dllama runs has this kind"
        raise UnsupportedModel(path, "model", "a BPE or Unigram tokenizer", f"{kind!r:.80}; {advice}")
    return str(kind)


def _added(path: str, raw: msgspec.Raw) -> tuple[AddedToken, ...]:
    added: list[AddedToken] = parse(path, "added_tokens", raw, list[AddedToken])
    for first, second in zip(sorted(added, key=_by_id), sorted(added, key=_by_id)[1:], strict=False):
        if first.id == second.id:
            raise BadFile(path, "added_tokens", "every id once", f"id {first.id} again")
    names = {token.content for token in added}
    if len(names) < len(added) or "" in names or any(len(name) > MAX_PIECE for name in names):
        raise BadFile(path, "added_tokens", f"different names of 1 to {MAX_PIECE} characters", "others")
    return tuple(sorted(added, key=_by_id))


def _by_id(token: AddedToken) -> int:
    return token.id


def _part(path: str, name: str, top: Mapping[str, msgspec.Raw]) -> dict[str, Any] | None:
    raw = top.get(name, msgspec.Raw(b"null"))
    if len(bytes(raw)) > _MAX_PART_SIZE:
        raise BadFile(path, name, f"at most {_MAX_PART_SIZE} bytes", f"{len(bytes(raw))}")
    part = parse(path, name, raw, dict[str, Any] | None)
    if _is_deeper(part, _MOST_LEVELS):
        raise BadFile(path, name, f"at most {_MOST_LEVELS} levels", "more")
    return part  # type: ignore[no-any-return]


def _is_deeper(value: object, levels: int) -> bool:
    """Whether lists and objects lie in one another more often than so."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(each, levels - 1) for each in inner))


def _bpe(
    path: str, raw: msgspec.Raw, added: tuple[AddedToken, ...], parts: Mapping[str, dict[str, Any] | None]
) -> TokenizerJson:
    model: _Bpe = parse(path, "model", raw, _Bpe)
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        found = "marks inside or at the end of words"
        raise UnsupportedModel(path, "model", "a BPE of bytes or of SentencePiece's form", found)
    if model.dropout:
        raise UnsupportedModel(path, "model", "a BPE that always gives the same tokens", f"dropout {model.dropout:g}")
    pieces: list[str | None] = [None] * (max(model.vocab.values(), default=-1) + 1)
    for piece, token_id in model.vocab.items():
        if pieces[token_id] is not None:
            raise BadFile(path, "model: vocab", "every id once", f"id {token_id} again")
        pieces[token_id] = piece
    _check_pieces(path, pieces, added)
    return TokenizerJson(path, "BPE", raw, pieces, [], added, parts, model.byte_fallback, model.ignore_merges)


def _unigram(
    path: str, raw: msgspec.Raw, added: tuple[AddedToken, ...], parts: Mapping[str, dict[str, Any] | None]
) -> TokenizerJson:
    model: _Unigram = parse(path, "model", raw, _Unigram)
    pieces: list[str | None] = [piece for piece, _ in model.vocab]
    if len(pieces) > MAX_VOCAB_SIZE:
        raise BadFile(path, "model: vocab", f"at most {MAX_VOCAB_SIZE} pieces", str(len(pieces)))
    if model.unk_id is None or not 0 <= model.unk_id < len(pieces):
        raise BadFile(path, "model: unk_id", f"0 to {len(pieces) - 1}", str(model.unk_id))
    scores = [score for _, score in model.vocab]
    if not all(map(math.isfinite, scores)):
        raise BadFile(path, "model: vocab", "finite scores", "others")
    _check_pieces(path, pieces, added)
    return TokenizerJson(path, "Unigram", raw, pieces, scores, added, parts, model.byte_fallback, False)


def _check_pieces(path: str, pieces: list[str | None], added: tuple[AddedToken, ...]) -> None:
    """Compare pieces with what the library takes without a panic, and ids of added tokens with those it will give."""
    if not any(pieces):
        raise BadFile(path, "model: vocab", "at least one piece", "none")
    if "" in pieces or any(len(piece) > MAX_PIECE for piece in pieces if piece):
        raise BadFile(path, "model: vocab", f"pieces of 1 to {MAX_PIECE} characters", "others")
    known = {piece: token_id for token_id, piece in enumerate(pieces) if piece is not None}
    following = len(known)
    for token in added:
        expected = known.get(token.content, following)
        if token.id != expected:
            raise BadFile(path, f"added_tokens: {token.content!r:.80}", f"id {expected}", str(token.id))
        following += token.content not in known
