"""By how much the normalizer and the decoder of a ``tokenizer.json`` may lengthen a text.

The library asks for whatever memory the changed text needs, and ends the process where there is not as much.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping
from typing import Any

from dllama.errors import BadFile
from dllama.formats.spm_model import check_charsmap, longest_replacement

_MOST_GROWTH = 256  # times; T5's table of characters and its marks make 132
_GROWTH = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2}  # bytes that one may become, by Unicode


def check_growth(path: str, name: str, steps: Iterable[Mapping[str, Any]]) -> None:
    """Check tables of characters, and that all steps of part ``name`` together make no text too long.

    Raises:
        BadFile: A table is broken, or a text could grow without measure.
    """
    growth = math.prod(_growth(path, each) for each in steps)
    if growth > _MOST_GROWTH:
        expected = f"one that makes a text at most {_MOST_GROWTH} times as long"
        raise BadFile(path, name, expected, "one that makes it longer")


def _growth(path: str, normalizer: Mapping[str, Any]) -> int:
    kind = normalizer.get("type")
    if kind == "Prepend":
        return 1 + _size(normalizer.get("prepend"))
    if kind == "Precompiled":
        table = _decoded(path, normalizer.get("precompiled_charsmap"))
        check_charsmap(path, table)
        return max(1, longest_replacement(table))
    if kind == "Replace":
        pattern, added = normalizer.get("pattern"), _size(normalizer.get("content"))
        replaced = _size(pattern.get("String")) if isinstance(pattern, dict) else 0
        return max(1, -(-added // replaced)) if replaced else 1 + added  # an expression may match between characters
    return _GROWTH.get(str(kind), 1)


def _size(text: object) -> int:
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0


def _decoded(path: str, text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise BadFile(path, "normalizer", "a table of characters in base64", f"{text!r:.60}") from None
