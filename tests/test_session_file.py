"""Session files: what is written is read back, and anything else ends in one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama.errors import BadFile, DllamaError, UsageError
from dllama.formats.fingerprint import fingerprint, whole_fingerprint
from dllama.formats.session_file import (
    Session,
    SessionMark,
    SessionMessage,
    read_session,
    read_token_ids,
    write_session,
    write_token_ids,
)

TEXT = st.text(max_size=20)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=8)
MESSAGES = st.lists(st.builds(SessionMessage, st.sampled_from(["user", "assistant"]), TEXT), max_size=3)


def session(**changes: Any) -> Session:
    fields = {
        "model_name": "model.m",
        "model_hash": "12",
        "tokenizer_hash": "34",
        "template": "llama3",
        "started": datetime(2026, 5, 1, 12, tzinfo=UTC),
        "settings": {"temperature": "0.8"},
        "messages": [SessionMessage("user", "hello")],
        "token_ids": [1, 2, 3],
        "marks": [SessionMark("<s>", 1), SessionMark("hello", 2)],
    }
    return Session(**{**fields, **changes})


@given(MESSAGES, st.lists(st.tuples(TEXT, IDS), max_size=3), st.integers(0, 1000))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[SessionMessage],
    pieces: list[tuple[str, list[int]]],
    count: int,
) -> None:
    path = tmp_path_factory.mktemp("session") / "talk.json"
    marks = [SessionMark(text, len(ids)) for text, ids in pieces if text or ids]
    token_ids = [token for _, ids in pieces for token in ids]
    written = session(
        messages=messages,
        marks=marks,
        token_ids=token_ids,
        num_answers=count,
        has_base=bool(marks and marks[0].num_tokens),
    )
    write_session(path, written)
    assert read_session(path) == written


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, token_ids: list[int]) -> None:
    path = tmp_path_factory.mktemp("session") / "talk.csv"
    write_token_ids(path, token_ids)
    assert read_token_ids(path) == token_ids


def test_system_message_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    written = session(messages=[SessionMessage("system", "Be kind."), SessionMessage("user", "hello")])
    write_session(path, written)
    assert read_session(path) == written


def test_csv_of_others(tmp_path: Path) -> None:
    path = tmp_path / "talk.csv"
    path.write_text("1, 2,3\r\n4\n5,\n")
    assert read_token_ids(path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["", "1,two", "1,-2", "99999999999", "1.5", "²", "\n,,\n"])
def test_bad_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.csv"
    path.write_text(text)
    with pytest.raises(BadFile) as caught:
        read_token_ids(path)
    assert "\n" not in str(caught.value)


WRONG: list[tuple[str, object]] = [
    ("format", "other"),
    ("version", 2),
    ("version", True),
    ("version", 1.0),
    ("model", []),
    ("model", {"name": "m", "hash": 1, "tokenizer_hash": ""}),
    ("template", None),
    ("started", "yesterday"),
    ("settings", "none"),
    ("messages", {"role": "user"}),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "robot", "content": ""}]),
    ("messages", [{"role": "user", "content": ""}, {"role": "system", "content": ""}]),
    ("messages", ["hello"]),
    ("token_ids", [1, -2, 3]),
    ("token_ids", [1, True, 3]),
    ("token_ids", [1, 2.0, 3]),
    ("token_ids", "1,2,3"),
    ("token_ids", [1, 2]),
    ("token_ids", [1, 2, 2**31]),
    ("marks", [{"text": "", "num_tokens": -1}]),
    ("marks", [{"text": "", "num_tokens": 4}]),
    ("marks", [{"text": 7, "num_tokens": 3}]),
    ("marks", [{"text": "a", "num_tokens": 3}, {"text": "", "num_tokens": 0}]),
    ("marks", [{"text": "a", "num_tokens": 3}, *[{"text": "b", "num_tokens": 0}] * 9]),
    ("has_base", 1),
    ("num_answers", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_values(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "talk.json"
    write_session(path, session())
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BadFile) as caught:
        read_session(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"{", b"\xff\xfe", b"nonsense", b"[" * 100_000, b'{"format":NaN}'])
def test_what_is_no_session(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(raw)
    with pytest.raises(BadFile):
        read_session(path)


def test_files_larger_than_any_conversation(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with path.open("wb") as file:
        file.truncate(1 << 26)
    with pytest.raises(BadFile, match="at most"):
        read_session(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_session(tmp_path / "none.json")
    with pytest.raises(DllamaError):
        write_session(tmp_path / "none" / "talk.json", session())
    with pytest.raises(BadFile):
        read_session(tmp_path)


@pytest.mark.parametrize("size", [1, 5000, 1 << 20, 3_000_001])
def test_fingerprint_tells_files_apart(tmp_path: Path, size: int) -> None:
    raw = bytearray(index * 7 % 251 for index in range(size))
    path = tmp_path / "model.m"
    path.write_bytes(raw)
    first = fingerprint(path, "model")
    assert first == fingerprint(path, "model")
    for place in (0, size - 1):
        raw[place] ^= 1
        path.write_bytes(raw)
        assert fingerprint(path, "model") != first
        raw[place] ^= 1
    path.write_bytes(raw + b"x")
    assert fingerprint(path, "model") != first


def test_whole_fingerprint_sees_every_byte(tmp_path: Path) -> None:
    raw = bytearray(3_000_001)
    path = tmp_path / "tokenizer.t"
    path.write_bytes(raw)
    first = whole_fingerprint(path, "tokenizer")
    raw[60_000] = 1  # between two samples
    path.write_bytes(raw)
    assert whole_fingerprint(path, "tokenizer") != first
