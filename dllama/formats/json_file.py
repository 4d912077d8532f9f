"""Reading a JSON object from a file that may be anything: size, depth and encoding are checked on the way."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any, Final

import msgspec

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile

MOST_JSON_BYTES: Final = 4 << 20  # of a configuration; some tokenizers list a thousand tokens there in 200 kB


def parse(path: str | os.PathLike[str], place: str, raw: bytes | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON as the type ``kind``.

    Args:
        path: Where it came from.
        place: Where in it, for the error; empty for all of it.
        raw: The text.
        kind: A type that msgspec knows.

    Raises:
        BadFile: It is no JSON in UTF-8, nested too deeply, or something else than ``kind``.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise BadFile(path, place, "its known form", one_line(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFile(path, place, "JSON in UTF-8", one_line(error)) from None
    except RecursionError as error:
        raise BadFile(path, place, "JSON", one_line(error)) from None


def bound_members(path: str | os.PathLike[str], place: str, raw: bytes | bytearray, most: int, expected: str) -> None:
    """Refuse JSON that could have more than ``most`` members: its colons bound what a parser allocates.

    Args:
        path: Where it came from.
        place: Where in it, for the error; empty for all of it.
        raw: The text.
        most: Colons that it may have, those in strings included.
        expected: What that means, for the error.

    Raises:
        BadFile: There are more.
    """
    if raw.count(b":") > most:
        raise BadFile(path, place, expected, "more")


def one_line(error: Exception) -> str:
    """Say in one line what a parser of JSON says."""
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    text = str(error).split(", found ")[0]
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:300].rstrip(".")


def read_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON object from a file, which is ``what`` to the user; errors as in ``CheckedFile`` and ``read_json``."""
    with CheckedFile(path, what) as file:
        value = read_json(file)
        if not isinstance(value, dict):
            raise file.bad("", "a JSON object", type(value).__name__)
        return value


def read_json(file: CheckedFile) -> object:
    """Parse an open file, as lenient as transformers is with numbers: NaN and infinities count as such.

    Raises:
        BadFile: It is too large, no JSON in UTF-8, or an object in it has a name twice.
    """
    if file.size > MOST_JSON_BYTES:
        raise file.bad("size", f"at most {MOST_JSON_BYTES} bytes of JSON", f"{file.size} bytes")
    raw = file.read(0, file.size, "text")
    try:
        value: object = json.loads(raw.decode(), object_pairs_hook=_with_each_once)
        json.dumps(value, ensure_ascii=False).encode()  # halves of characters are no text
    except (ValueError, RecursionError) as error:  # ValueError: numbers of thousands of digits too
        raise file.bad("", "JSON", one_line(error)) from None
    return value


def _with_each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r:.80} twice in one object")
    return found
