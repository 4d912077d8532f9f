"""Keeping what users write from becoming special tokens: a character inside each name of one."""

from __future__ import annotations

import re
from collections.abc import Iterable

GUARD = "\ufdd0"  # a noncharacter, so no text needs it; the tokenizer leaves it out
_NEVER = "(?!)"  # a pattern that matches nowhere


class Guard:
    """Puts ``GUARD`` into names of special tokens, behind the first letter.

    Args:
        names: The special tokens to guard against.
        whole_only: Whether to leave all text alone but whole names. Otherwise a sign that begins names, as ``<`` does,
            is always followed by ``GUARD``, so that no name appears when a template takes text out, or goes on where a
            message ended. What no guard sees is a name that begins in the template's own text and ends in a message.
    """

    def __init__(self, names: Iterable[str], whole_only: bool = False) -> None:
        rests: dict[str, list[str]] = {}
        for name in names:
            rests.setdefault(name[0], []).append(re.escape(name[1:]))
        # Letters and spaces are in every text, and templates look for words.
        signs = [] if whole_only else [first for first in rests if not (first.isalnum() or first.isspace())]
        whole = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items() if first not in signs]
        self._begins = re.compile("|".join([*map(re.escape, signs), *whole]) or _NEVER)

    def __call__(self, text: str) -> str:
        """Give ``text`` with every name broken."""
        return self._begins.sub(lambda match: match[0] + GUARD, text)


def clean(text: str) -> str:
    """Give ``text`` without ``GUARD``, and U+FFFD for lone surrogates, which have no bytes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace(GUARD, "")
