"""Token ids read as a template writes them: special tokens by name, all else as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from dllama.text.guard import GUARD
from dllama.text.score_bpe import SPACE_MARK

if TYPE_CHECKING:
    from dllama.text.tokenizer import Tokenizer

_NEVER = "(?!)"  # a pattern that matches nowhere


class TokenText:
    """Compares token ids with the text they stand for.

    Tokens that are text for readers of an answer, though a template writes them by name, count as text here.

    Args:
        tokenizer: The vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = {name: token for name, token in tokenizer.special_names.items() if tokenizer.is_special(token)}
        self._names = {token: name for name, token in self._ids.items()}
        names = sorted(self._ids, key=len, reverse=True)
        parts = [re.escape(name) + (f"(?!{GUARD})" if len(name) == 1 else "") for name in names]
        self._pattern = re.compile("|".join(parts) or _NEVER)

    def text(self, token_ids: Iterable[int]) -> str:
        """Give the text of token ids, invalid UTF-8 as U+FFFD."""
        return "".join(part if isinstance(part, str) else self._names.get(part, "") for part in self._read(token_ids))

    def says(self, token_ids: Sequence[int], text: str) -> bool:
        """Whether token ids stand for ``text``; spaces do not count where the vocabulary adds some."""
        return [self._bare(part) for part in self._read(token_ids)] == [self._bare(part) for part in self._cut(text)]

    def shared(self, token_ids: Sequence[int], text: str) -> tuple[int, int]:
        """Give the longest beginning of both that ends with a special token, as numbers of characters and tokens.

        Args:
            token_ids: What stands for ``text`` and perhaps more; a BOS that is not written may come first.
            text: Text; a name that only begins in it is none.
        """
        places = [place for place, token in enumerate(token_ids) if self._tokenizer.is_special(token)]
        names = [(match.end(), self._ids[match[0]]) for match in self._pattern.finditer(text)]
        if places[:1] == [0] and token_ids[0] == self._tokenizer.bos_id and [token_ids[0]] != [n[1] for n in names[:1]]:
            del places[0]
        shared = (0, 0)
        for (end, token), place in zip(names, places, strict=False):
            if token_ids[place] != token:
                break
            shared = (end, place + 1)
        return shared

    @cached_property
    def _adds_spaces(self) -> bool:
        """Whether the vocabulary puts a space before a text, as those with scores do."""
        token_ids = self._tokenizer.encode("a", add_bos=False)
        return b"".join(map(self._tokenizer.token_bytes, token_ids)) != b"a"

    def _read(self, token_ids: Iterable[int]) -> list[str | int]:
        """Cut token ids at special ones: text, special token, text and so on, text last."""
        parts: list[str | int] = []
        raw = bytearray()
        for token in token_ids:
            if self._tokenizer.is_special(token):
                parts += [raw.decode("utf-8", "replace"), token]
                raw.clear()
            else:
                raw += self._tokenizer.token_bytes(token)
        return [*parts, raw.decode("utf-8", "replace")]

    def _cut(self, text: str) -> list[str | int]:
        """Cut text at the names of special tokens, as ``_read``."""
        parts: list[str | int] = []
        begin = 0
        for match in self._pattern.finditer(text):
            parts += [text[begin : match.start()], self._ids[match[0]]]
            begin = match.end()
        return [*parts, text[begin:]]

    def _bare(self, part: str | int) -> str | int:
        if isinstance(part, int):
            return part
        part = part.replace(GUARD, "")
        return part.replace(" ", "").replace(SPACE_MARK, "") if self._adds_spaces else part
