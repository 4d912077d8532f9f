"""Tokenizer files: written, read back, old forms, and broken ones."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import byte_tokenizer_data, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.errors import BadFile, UsageError
from dllama.formats.t_file import TokenizerData, read_t_file, write_t_file

MAGIC, OLD_MAGIC = 0x567124, 0x567123
PIECES = [b"a", b"bc", b"<s>", b"</s>", b"<x>"]
KEYS = {0: 1, 1: 5, 2: 4, 3: 2, 9: 1, 10: 1}


def vocabulary(pieces: list[bytes] = PIECES, scores: list[float] | None = None) -> bytes:
    scores = scores or [-float(token_id) for token_id in range(len(pieces))]
    return b"".join(struct.pack("<fI", score, len(p)) + p for score, p in zip(scores, pieces, strict=True))


def file_bytes(
    changes: dict[int, int | None] | None = None, middle: bytes = struct.pack("<i", 3), vocab: bytes | None = None
) -> bytes:
    pairs = {key: value for key, value in {**KEYS, **(changes or {})}.items() if value is not None}
    header = b"".join(struct.pack("<ii", *pair) for pair in pairs.items())
    return struct.pack("<ii", MAGIC, 8 + len(header)) + header + middle + (vocabulary() if vocab is None else vocab)


def read(path: Path, raw: bytes) -> TokenizerData:
    path.write_bytes(raw)
    return read_t_file(path)


def refusal(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(BadFile) as caught:
            read_t_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 0.5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(first: TokenizerData, second: TokenizerData) -> bool:
    others = ("pieces", "bos_id", "eos_ids", "add_bos", "chat_template")
    return (first.scores == second.scores).all() and all(getattr(first, n) == getattr(second, n) for n in others)


@st.composite
def tokenizers(draw: st.DrawFn) -> TokenizerData:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=20))
    scores = draw(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=len(pieces)))
    ids = st.integers(0, len(pieces) - 1)
    return TokenizerData(
        tuple(pieces),
        np.array(scores[: len(pieces)], np.float32),
        draw(ids),
        tuple(draw(st.lists(ids, unique=True))),
        draw(st.booleans()),
        draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
    )


@given(data=tokenizers())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path, data):
    write_t_file(tmp_path / "a.t", data)
    assert same(read_t_file(tmp_path / "a.t"), data)


def test_a_file_written_by_hand_is_read(tmp_path):
    template = "{{ 'é' }}".encode()
    raw = file_bytes({7: len(template), 5: -1, 10: 0}, middle=template + struct.pack("<i", 3))
    data = read(tmp_path / "a.t", raw)
    assert data.pieces == tuple(PIECES)
    assert data.scores.tolist() == [0, -1, -2, -3, -4]
    assert (data.bos_id, data.eos_ids, data.add_bos) == (2, (3,), False)
    assert data.chat_template == "{{ 'é' }}"
    assert (data.vocab_size, data.max_token_length) == (5, 4)


def test_the_writer_writes_that_file(tmp_path):
    scores = -np.arange(5, dtype=np.float32)
    write_t_file(tmp_path / "a.t", TokenizerData(tuple(PIECES), scores, 2, (3, 4), True, "x"))
    expected = file_bytes({9: 2, 7: 1}, middle=b"x" + struct.pack("<ii", 3, 4))
    pairs = [set(struct.iter_unpack("<ii", raw[8:64])) for raw in ((tmp_path / "a.t").read_bytes(), expected)]
    assert pairs[0] == pairs[1]
    assert (tmp_path / "a.t").read_bytes()[64:] == expected[64:]


def test_bos_is_added_unless_the_file_says_no(tmp_path):
    assert read(tmp_path / "a.t", file_bytes({10: None})).add_bos


@pytest.mark.parametrize(
    ("changes", "ids", "expected"),
    [
        ({4: 3}, [], (3,)),
        ({4: 3, 6: 4}, [], (3, 4)),
        ({4: 3, 6: -1}, [4], (3, 4)),
        ({4: 3, 6: 3}, [4, 3], (3, 4)),
        ({}, [], ()),
    ],
)
def test_single_end_ids_come_before_the_list(tmp_path, changes, ids, expected):
    raw = file_bytes({9: len(ids), **changes}, middle=struct.pack(f"<{len(ids)}i", *ids))
    assert read(tmp_path / "a.t", raw).eos_ids == expected


def test_the_stop_text_of_old_files_is_skipped(tmp_path):
    data = read(tmp_path / "a.t", file_bytes({9: None, 4: 3, 7: 2, 8: 4}, middle=b"hi" + b"STOP"))
    assert (data.chat_template, data.pieces) == ("hi", tuple(PIECES))


def test_the_oldest_files_are_read(tmp_path):
    header = struct.pack("<6i", OLD_MAGIC, 5, 4, 2, 3, -1)
    data = read(tmp_path / "a.t", header + vocabulary())
    assert (data.pieces, data.bos_id, data.eos_ids, data.add_bos) == (tuple(PIECES), 2, (3,), True)
    assert "score of token" not in refusal(tmp_path / "a.t", header + vocabulary()[:-1])


HEADERS = [
    ({0: 2}, "byte 12 (header key 0, version): expected version 1, found 2"),
    ({0: None}, "expected version 1, found none"),
    ({1: None}, "expected key 1 (vocab_size)"),
    ({1: 0}, "vocab_size): expected 1 to"),
    ({1: -5}, "vocab_size): expected 1 to"),
    ({1: 2**31 - 1}, "vocab_size): expected 1 to"),
    ({1: 6}, "(token 5): expected 8 bytes, found 0"),
    ({1: 4}, "expected the end of the file, found 11 bytes more"),
    ({2: 0}, "max_token_length): expected 1 to"),
    ({3: None}, "expected key 3 (bos_id)"),
    ({3: -1}, "bos_id): expected 0 to 4, found -1"),
    ({3: 5}, "bos_id): expected 0 to 4, found 5"),
    ({4: 5}, "eos_id): expected -1 to 4, found 5"),
    ({6: -2}, "chat_eos_id): expected -1 to 4, found -2"),
    ({7: -1}, "chat_template): expected 0 to"),
    ({7: 2**31 - 1}, "chat_template): expected 0 to"),
    ({7: 100}, "(chat template): expected 100 bytes"),
    ({8: 2**31 - 1}, "chat_stop): expected 0 to"),
    ({9: 6}, "num_eos_ids): expected 0 to 5, found 6"),
    ({9: -1}, "num_eos_ids): expected 0 to 5"),
    ({10: 2}, "add_bos): expected 0 to 1, found 2"),
    ({11: 1}, "found key 11"),
    ({-1: 1}, "found key -1"),
    ({1000: 1}, "found key 1000; a newer dllama can read it"),
]


@pytest.mark.parametrize(("changes", "text"), HEADERS, ids=[str(changes) for changes, _ in HEADERS])
def test_unsound_headers_are_refused(tmp_path, changes, text):
    assert text in refusal(tmp_path / "a.t", file_bytes(changes))


@pytest.mark.parametrize("token_id", [-1, 5, 2**31 - 1])
def test_end_ids_outside_the_vocabulary_are_refused(tmp_path, token_id):
    text = refusal(tmp_path / "a.t", file_bytes(middle=struct.pack("<i", token_id)))
    assert f"byte 56 (end-of-text id): expected 0 to 4, found {token_id}" in text


@pytest.mark.parametrize("length", [0, 2, 1000, 2**31 - 1, 2**31, 2**32 - 1])
def test_lying_lengths_are_refused(tmp_path, length):
    vocab = vocabulary()[:-7] + struct.pack("<I", length) + b"y" * 1
    text = refusal(tmp_path / "a.t", file_bytes(vocab=vocab))
    assert f"(length of token 4): expected 1 to the 1 bytes left in the file, found {length}" in text


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_scores_must_be_finite(tmp_path, score):
    raw = file_bytes(vocab=vocabulary(scores=[0, 1, score, 3, 4]))
    assert "score of token 2: expected a finite number" in refusal(tmp_path / "a.t", raw)


def test_a_template_must_be_text(tmp_path):
    text = refusal(tmp_path / "a.t", file_bytes({7: 3}, middle=b"a\xff\xfe" + struct.pack("<i", 3)))
    assert "byte 65 (chat template): expected UTF-8 text, found byte 0xFF" in text


def test_a_repeated_key_is_refused(tmp_path):
    raw = struct.pack("<6i", MAGIC, 24, 0, 1, 0, 1)
    assert "byte 16: expected every header key once, found key 0 (version) again" in refusal(tmp_path / "a.t", raw)


@pytest.mark.parametrize("size", [-8, 0, 12, 8 + 8 * 65, 2**31 - 8, -(2**31)])
def test_a_wrong_header_size_is_refused(tmp_path, size):
    raw = struct.pack("<ii", MAGIC, size) + bytes(2000)
    assert "byte 4 (header size)" in refusal(tmp_path / "a.t", raw)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.t"
    assert "expected 0x00567124, a .t tokenizer file, found 0x00000000" in refusal(path, bytes(100))
    assert "found an empty file" in refusal(path, b"")
    assert "(magic number): expected 4 bytes, found 2" in refusal(path, b"ab")
    path.write_bytes(b"")
    os.truncate(path, 1 << 30)  # takes no room
    with pytest.raises(BadFile, match="expected at most 67108864 bytes"):
        read_t_file(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, what in ((tmp_path, "a directory"), (tmp_path / "fifo", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(BadFile, match=f"expected a tokenizer file, found {what}"):
            read_t_file(path)
    with pytest.raises(UsageError, match="no such tokenizer file"):
        read_t_file(tmp_path / "missing.t")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.t"
    write_tiny_tokenizer(path, vocab_size=264, chat_template="some template")
    for length in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(BadFile):
            read_t_file(path)


def test_reading_closes_the_file(tmp_path):
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    read(tmp_path / "a.t", file_bytes())
    refusal(tmp_path / "a.t", file_bytes()[:-1])
    assert count() == before


UNFIT = [
    ({"pieces": ()}, "at least one byte"),
    ({"pieces": (b"a", b"")}, "at least one byte"),
    ({"scores": np.zeros(3, np.float32)}, "scores must be 320 finite numbers"),
    ({"scores": np.full(320, np.nan, np.float32)}, "scores must be"),
    ({"bos_id": 320}, "must be below 320"),
    ({"eos_ids": (1, -1)}, "must be below 320"),
]


@pytest.mark.parametrize(("changes", "text"), UNFIT)
def test_the_writer_refuses_what_the_reader_would(tmp_path, changes, text):
    with pytest.raises(UsageError, match=text):
        write_t_file(tmp_path / "a.t", replace(byte_tokenizer_data(), **changes))
    assert not list(tmp_path.iterdir())
