"""Cutting ordinary text by Hugging Face's ``tokenizers``, from what a ``tokenizer.json`` says.

The library gets the file's normalizer, pre-tokenizer and model and nothing else: names of special tokens are found by
``Tokenizer``, ends are added there, and ids are decoded here. So no text from users becomes a special token, and a file
can do no more than cut text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from dllama.errors import BadFile
from dllama.formats.json_file import parse
from dllama.formats.tokenizer_json import AddedToken, TokenizerJson, walk
from dllama.text.guard import GUARD
from dllama.text.rank_bpe import cut_long_spaces
from dllama.text.vocabulary import Place, is_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_NO_STARTS = "never"  # Metaspace puts a space before no text


class JsonEncoder:
    """Encodes ordinary text.

    Args:
        file: What cuts it.
    """

    def __init__(self, file: TokenizerJson) -> None:
        self._file = file
        self._has_words = any(each["type"] == "ByteLevel" for each in walk(file.parts["pre_tokenizer"]))
        spaces = [each for each in walk(file.parts["pre_tokenizer"]) if each["type"] == "Metaspace"]
        prepends = any(each["type"] == "Prepend" for each in walk(file.parts["normalizer"]))
        first_only = any(each.get("prepend_scheme") == "first" for each in spaces)
        self._spaced = {Place.START} if first_only else {Place.START, Place.BEHIND_NAME}
        if not (prepends or spaces):  # no place gets a space
            self._spaced = set(Place)

    def encode(self, text: str, place: Place) -> list[int]:
        """Give the ids of ``text``.

        Raises:
            BadFile: The library does not take the file, or fails.
        """
        library = self._with_space if place in self._spaced else self._without_space
        ids: list[int] = []
        with _panics(self._file.path):
            # Byte-level vocabularies are cut by regular expressions, which fail in very long runs of white space.
            for part in cut_long_spaces(text) if self._has_words else [text]:
                ids += library.encode(part, add_special_tokens=False).ids
        return ids

    @cached_property
    def _with_space(self) -> Library:
        return _build(self._file, self._file.parts)

    @cached_property
    def _without_space(self) -> Library:
        parts = deepcopy(dict(self._file.parts))
        for each in walk(parts["pre_tokenizer"]):
            if each["type"] == "Metaspace":
                each["prepend_scheme"] = _NO_STARTS
        for each in walk(parts["normalizer"]):
            if each["type"] == "Prepend":
                each.clear()
                each |= {"type": "Sequence", "normalizers": []}
        return _build(self._file, parts)


class _panics:  # noqa: N801 - reads as the word it is in `with`
    """Turns what the library raises, a panic of its own included, into BadFile.

    Before a panic the library writes to the stderr of the process, which cannot be kept back for one thread alone.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or error is None or isinstance(error, BadFile):
            return
        if issubclass(kind, Exception) or kind.__name__ == "PanicException":
            text = " ".join("".join(each if each.isprintable() else " " for each in str(error)).split())[:200]
            raise BadFile(self._path, "", "a tokenizer.json that works", text) from None


def _build(file: TokenizerJson, parts: Mapping[str, dict[str, Any] | None]) -> Library:
    from tokenizers import Tokenizer as Library

    text = {
        "version": "1.0",
        "added_tokens": [_as_json(token) for token in _kept(file)],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "model": _model(file),
    }
    with _panics(file.path):
        library = Library.from_str(msgspec.json.encode(text).decode("utf-8"))
        _check(file, library)
    return library


def _kept(file: TokenizerJson) -> Iterator[AddedToken]:
    """Give the added tokens that are text, under their ids: in place of others stands what no text contains."""
    pieces = {piece for piece in file.pieces if piece is not None}
    for token in file.added:
        if not is_name(token.content, token.special):
            yield token
        elif token.content not in pieces:
            yield AddedToken(token.id, f"{GUARD}{token.id}")


def _as_json(token: AddedToken) -> dict[str, Any]:
    return msgspec.structs.asdict(token) | {"special": False}


def _model(file: TokenizerJson) -> Any:
    """Give the model; of a Unigram one without the names of special tokens, which it would find in text."""
    if file.kind == "BPE":
        return file.model
    model = parse(file.path, "model", file.model, dict[str, Any])
    names = {token.content for token in file.added if is_name(token.content, token.special)}
    model["type"] = file.kind
    model["vocab"] = [
        [f"{GUARD}{token_id}" if piece in names else piece, score]
        for token_id, (piece, score) in enumerate(zip(file.pieces, file.scores, strict=True))
    ]
    return model


def _check(file: TokenizerJson, library: Library) -> None:
    """Compare ids with the file's, and see that text cannot spell a special token."""
    for token in file.added:
        if not is_name(token.content, token.special):
            found = library.token_to_id(token.content)
            if found != token.id:
                raise BadFile(file.path, f"added_tokens: {token.content!r:.80}", f"id {found}", str(token.id))
        elif token.id in library.encode(token.content, add_special_tokens=False).ids:
            raise BadFile(file.path, "vocabulary", "special tokens that no text spells", f"{token.content!r:.80}")
