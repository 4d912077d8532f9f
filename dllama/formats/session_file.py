"""Saved conversations: JSON files that hold all of one, and CSV files that hold its token ids.

Knows nothing of models: whoever loads a session compares its model and gives the ids a meaning.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dllama.errors import BadFile, DllamaError
from dllama.formats.checked_file import CheckedFile, new_file

_FORMAT, _VERSION = "dllama-session", 1
_MAX_SIZE = 1 << 24  # the longest context's text and token ids take less; reading takes up to 25 times as much memory
_MAX_TOKEN_IDS = 1 << 22
_MARKS_PER_MESSAGE, _MARKS_BESIDE = 4, 4  # more than a conversation ever has
_MAX_ID = 2**31 - 1
_WHAT = "session"
_ROLES = ("system", "user", "assistant")  # the first of them only in the first message


@dataclass(frozen=True, slots=True)
class SessionMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SessionMark:
    """A piece of the conversation's text, special tokens by name, and how many token ids stand for it.

    Either may be nothing, not both.
    """

    text: str
    num_tokens: int


@dataclass(frozen=True)
class Session:
    """What a session file holds.

    Attributes:
        model_name, model_hash, tokenizer_hash: What it was held with.
        template: Name of the chat template.
        started: When it began.
        settings: By key; their owner checks them.
        messages: What was said.
        token_ids: What stands for it.
        marks: The same cut into pieces, in order.
        has_base: Whether the first piece came without messages.
        num_answers: Answers given so far, also those that were taken back.
    """

    model_name: str
    model_hash: str
    tokenizer_hash: str
    template: str
    started: datetime
    settings: dict[str, Any]
    messages: list[SessionMessage]
    token_ids: list[int]
    marks: list[SessionMark]
    has_base: bool = False
    num_answers: int = 0


def write_session(path: str | os.PathLike[str], session: Session) -> None:
    """Write a session as JSON; ``path`` is untouched until it is complete.

    Raises:
        UsageError, DllamaError: As ``new_file``.
    """
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": {"name": session.model_name, "hash": session.model_hash, "tokenizer_hash": session.tokenizer_hash},
        "template": session.template,
        "started": session.started.isoformat(),
        "settings": session.settings,
        "messages": [{"role": message.role, "content": message.content} for message in session.messages],
        "token_ids": list(session.token_ids),
        "marks": [{"text": mark.text, "num_tokens": mark.num_tokens} for mark in session.marks],
        "has_base": session.has_base,
        "num_answers": session.num_answers,
    }
    _write(path, json.dumps(value, separators=(",", ":")) + "\n")


def read_session(path: str | os.PathLike[str]) -> Session:
    """Read a session from JSON.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound session file.
    """
    with CheckedFile(path, _WHAT) as file:
        text = _text(file)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = "brackets nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise file.bad("", "a session in JSON", reason) from None
        return _session(_Reader(file, value))


def write_token_ids(path: str | os.PathLike[str], token_ids: Iterable[int]) -> None:
    """Write token ids as one line of CSV; errors as ``write_session``."""
    _write(path, ",".join(map(str, token_ids)) + "\n")


def read_token_ids(path: str | os.PathLike[str]) -> list[int]:
    """Read token ids from CSV; line ends and blanks count as commas do. Errors as ``read_session``."""
    with CheckedFile(path, _WHAT) as file:
        token_ids: list[int] = []
        for place, match in enumerate(re.finditer(r"[^\s,]+", _text(file))):
            word = match[0]
            if not (word.isascii() and word.isdecimal() and len(word) <= 10 and int(word) <= _MAX_ID):
                raise file.bad(f"value {place + 1}", "a token id", repr(word[:40]))
            if place == _MAX_TOKEN_IDS:
                raise file.bad("", f"at most {_MAX_TOKEN_IDS} token ids", "more")
            token_ids.append(int(word))
        if not token_ids:
            raise file.bad("", "token ids, separated by commas", "none")
        return token_ids


def _write(path: str | os.PathLike[str], text: str) -> None:
    raw = text.encode("ascii")
    if len(raw) > _MAX_SIZE:
        raise DllamaError(f"{path}: a conversation of {len(raw)} bytes cannot be saved, {_MAX_SIZE} can")
    with new_file(path, len(raw)) as file:
        file.write(raw)


def _text(file: CheckedFile) -> str:
    if file.size > _MAX_SIZE:
        raise file.bad("size", f"at most {_MAX_SIZE} bytes", f"{file.size} bytes")
    raw = file.read(0, file.size, "byte 0")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise file.bad(f"byte {error.start}", "UTF-8 text", f"byte 0x{raw[error.start]:02X}") from None


class _Reader:
    """One JSON object of a session file; each value is checked when it is taken."""

    def __init__(self, file: CheckedFile, value: object, place: str = "") -> None:
        self._file, self._place = file, place
        if not isinstance(value, dict):
            raise self.bad("", "an object", value)
        self._values: dict[str, object] = value

    def bad(self, key: str, expected: str, found: object) -> BadFile:
        place = ".".join(filter(None, (self._place, key)))
        return self._file.bad(place, expected, f"{found!r:.60}")

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str):
            raise self.bad(key, "a text", value)
        return value

    def whole(self, key: str) -> int:
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_ID:
            raise self.bad(key, "a whole number", value)
        return value

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false", value)
        return value

    def time(self, key: str) -> datetime:
        try:
            value = datetime.fromisoformat(self.text(key))
        except ValueError:
            raise self.bad(key, "a date and time", self._values.get(key)) from None
        return value

    def ids(self, key: str) -> list[int]:
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self.bad(key, "a list of token ids", value)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= _MAX_ID:
                raise self.bad(key, "token ids", item)
        return value

    def inner(self, key: str) -> _Reader:
        return _Reader(self._file, self._values.get(key), key)

    def inners(self, key: str) -> list[_Reader]:
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self.bad(key, "a list", value)
        return [_Reader(self._file, item, f"{key}[{place}]") for place, item in enumerate(value)]

    def plain(self) -> dict[str, Any]:
        return dict(self._values)

    def check(self, key: str, expected: object) -> None:
        value = self._values.get(key)
        if type(value) is not type(expected) or value != expected:  # True and 1.0 equal 1
            raise self.bad(key, repr(expected), value)


def _session(reader: _Reader) -> Session:
    reader.check("format", _FORMAT)
    reader.check("version", _VERSION)
    model = reader.inner("model")
    messages = [_message(item, place) for place, item in enumerate(reader.inners("messages"))]
    token_ids = reader.ids("token_ids")
    marks = _marks(reader, len(messages))
    if sum(mark.num_tokens for mark in marks) != len(token_ids):
        raise reader.bad("marks", f"pieces of {len(token_ids)} token ids in all", "another number")
    if reader.flag("has_base") and not (marks and marks[0].num_tokens):
        raise reader.bad("has_base", "false where no token ids come first", True)
    return Session(
        model_name=model.text("name"),
        model_hash=model.text("hash"),
        tokenizer_hash=model.text("tokenizer_hash"),
        template=reader.text("template"),
        started=reader.time("started"),
        settings=reader.inner("settings").plain(),
        messages=messages,
        token_ids=token_ids,
        marks=marks,
        has_base=reader.flag("has_base"),
        num_answers=reader.whole("num_answers"),
    )


def _marks(reader: _Reader, num_messages: int) -> list[SessionMark]:
    items, most = reader.inners("marks"), _MARKS_PER_MESSAGE * num_messages + _MARKS_BESIDE
    if len(items) > most:
        raise reader.bad("marks", f"at most {most} with {num_messages} messages", len(items))
    marks = [SessionMark(item.text("text"), item.whole("num_tokens")) for item in items]
    for place, mark in enumerate(marks):
        if not (mark.text or mark.num_tokens):
            raise reader.bad(f"marks[{place}]", "text or tokens", "neither")
    return marks


def _message(reader: _Reader, place: int) -> SessionMessage:
    role = reader.text("role")
    if role not in _ROLES or (role == _ROLES[0] and place > 0):
        expected = "user or assistant, or system in the first message"
        raise reader.bad("role", expected, role)
    return SessionMessage(role, reader.text("content"))
