"""Reading a JSON object from a file that may be anything: size, depth and encoding are checked on the way."""

from __future__ import annotations

import json
import os
from typing import Any, Final

import msgspec

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile, read_whole

MOST_JSON_BYTES: Final = 4 << 20  # of a configuration; some tokenizers list a thousand tokens there in 200 kB


def read_config(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a small JSON object; errors as in ``read_whole`` and ``parse``."""
    return parse(path, "", read_whole(path, what, MOST_JSON_BYTES), dict[str, Any])  # type: ignore[no-any-return]


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
        raise BadFile(path, place, "its known form", _one_line(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFile(path, place, "JSON in UTF-8", _one_line(error)) from None
    except RecursionError:
        raise BadFile(path, place, "JSON", "values nested too deeply") from None


def _one_line(error: Exception) -> str:
    text = str(error).split(", found ")[0]
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:300].rstrip(".")


def read_json(file: CheckedFile) -> object:
    """Parse an open file, as lenient as transformers is: NaN and infinities count as numbers.

    Raises:
        BadFile: It is too large, or no JSON.
    """
    if file.size > MOST_JSON_BYTES:
        raise file.bad("size", f"at most {MOST_JSON_BYTES} bytes of JSON", f"{file.size} bytes")
    raw = file.read(0, file.size, "text")
    try:
        value: object = json.loads(raw)
    except RecursionError:
        raise file.bad("", "JSON", "brackets nested without end") from None
    except ValueError as error:  # no UTF-8, no JSON, or numbers of thousands of digits
        raise file.bad("", "JSON", str(error).splitlines()[0]) from None
    return value
