"""Reading a JSON object from a file that may be anything: size, depth and encoding are checked on the way."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile

_MAX_CONFIG_SIZE = 1 << 22  # bytes; tokenizer_config.json of some models lists a thousand tokens in 200 kB


def read_bytes(path: str | os.PathLike[str], what: str, most: int) -> bytes:
    """Read a whole file of at most ``most`` bytes.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is larger, or no regular file.
    """
    with CheckedFile(path, what) as file:
        if file.size > most:
            raise file.bad("size", f"at most {most} bytes", f"{file.size} bytes")
        return file.read(0, file.size, "content")


def read_config(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a small JSON object; errors as in ``read_bytes`` and ``parse``."""
    return parse(path, "", read_bytes(path, what, _MAX_CONFIG_SIZE), dict[str, Any])  # type: ignore[no-any-return]


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
