"""Safetensors files, sound and broken in every way that a download or a stranger can break them."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folders import safetensors_bytes, stored, write_safetensors  # type: ignore[import-not-found]
from hypothesis import given
from hypothesis import strategies as st

from dllama.errors import BadFile, UsageError
from dllama.formats.safetensors_file import HEADER_LIMIT, MOST_TENSORS, open_safetensors

ONE = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
TWO = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def refusal(path: Path) -> str:
    """Open a file that must be refused, quickly, cheaply and without leaving it open; give the text."""
    before, start = len(list(Path("/proc/self/fd").iterdir())), time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises((BadFile, UsageError)) as caught:
            open_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 0.5
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 1000
    return text


def write(path: Path, header: dict[str, Any] | bytes, body: bytes = bytes(32)) -> Path:
    path.write_bytes(safetensors_bytes(header, body))
    return path


def test_tensors_are_found(tmp_path):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32), "none": np.ones((0, 3))}
    arrays = {"a": stored(values["a"], "F32"), "none": stored(values["none"], "F16"), "b": stored(values["b"], "BF16")}
    write_safetensors(tmp_path / "x", arrays)
    file, found = open_safetensors(tmp_path / "x")
    with file:
        assert found.keys() == arrays.keys()
        for name, (number_type, shape, raw) in arrays.items():
            assert (found[name].number_type, found[name].shape) == (number_type, shape)
            assert file.read(found[name].offset, len(raw), name) == raw


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": {"format": "pt", "x:y": "1:2"}, "a": ONE, "b": TWO},
        {"b": TWO, "a": ONE},
        json.dumps({"a": ONE, "b": TWO}).encode() + b"   ",  # padded, as writers do for alignment
    ],
)
def test_sound_headers(tmp_path, header):
    file, found = open_safetensors(write(tmp_path / "x", header))
    file.close()
    assert sorted(found) == ["a", "b"]


def changed(tensor: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"a": ONE, "b": TWO, "ab"[tensor is TWO]: {**tensor, **fields}}


UNSOUND: list[tuple[Any, str]] = [
    # what is no header
    (b"", "expected JSON that names tensors"),
    (b"{", "JSON that names tensors"),
    (b"[]", "JSON that names tensors"),
    (b"\xff\xfe", "JSON that names tensors"),
    (b"[" * 100_000, "JSON that names tensors"),
    (b'{"a":' * 100_000, "JSON that names tensors"),
    (b'{"a":{"x":' + b"[" * 100_000, "header"),
    (b'{"\xff": 1}', "JSON that names tensors"),
    ({"a": 1}, "JSON that names tensors"),
    ({"a": [1]}, "JSON that names tensors"),
    ({}, "expected 0 bytes more"),
    # fields
    (changed(ONE, dtype="Q99"), "tensor 'a': expected a number type of the format, found 'Q99'"),
    (changed(ONE, dtype="\n" * 100), r"found '\n\n"),
    (changed(ONE, dtype=3), "JSON that names tensors"),
    (changed(ONE, shape="x"), "JSON that names tensors"),
    (changed(ONE, shape=[-1, 6]), "JSON that names tensors"),
    (changed(ONE, shape=[2.5]), "JSON that names tensors"),
    (changed(ONE, shape=[1] * 17), "JSON that names tensors"),
    (changed(ONE, shape=[10**30]), "JSON that names tensors"),
    (changed(ONE, data_offsets=[0]), "JSON that names tensors"),
    (changed(ONE, data_offsets=[-8, 16]), "JSON that names tensors"),
    ({"a": {"dtype": "F32", "shape": [2, 3]}, "b": TWO}, "tensor"),
    # sizes, products near and beyond 2^64 among them
    (changed(ONE, shape=[2, 4]), "the bytes of F32 of shape [2, 4], found 24 bytes"),
    (changed(ONE, shape=[1 << 30, 1 << 30, 1 << 30]), "found 24 bytes"),
    (changed(ONE, shape=[1 << 32, 1 << 30, 4]), "found 24 bytes"),
    (changed(ONE, dtype="F64"), "the bytes of F64"),
    (changed(ONE, data_offsets=[24, 0]), "tensor"),
    (
        changed(TWO, shape=[(1 << 60) + 4], data_offsets=[24, (1 << 61) + 32]),
        "the file ends in this tensor; fetch it again",
    ),
    (changed(TWO, shape=[8], data_offsets=[24, 40]), "the file ends in this tensor"),
    (changed(ONE, dtype="U8", shape=[24]) | {"b": changed(TWO, shape=[3], data_offsets=[24, 30])["b"]}, "2 more than"),
    # ranges that overlap, and holes
    (changed(TWO, data_offsets=[16, 24]), "tensor 'b': expected its first byte to be 24, behind tensor 'a', found 16"),
    (changed(TWO, data_offsets=[0, 8]), "expected its first byte to be"),
    (changed(TWO, shape=[2], data_offsets=[28, 32]), "expected its first byte to be 24"),
    (changed(ONE, shape=[2, 2], data_offsets=[8, 24]), "expected its first byte to be 0, behind the header"),
    # names
    (
        b'{"a":'
        + json.dumps(ONE).encode().replace(b"data_", b"data\\u005f")
        + b',"a":'
        + json.dumps({**TWO}).encode()
        + b"}",
        "letters as they are",
    ),
    (b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps({**TWO}).encode() + b"}", "every tensor once"),
    ({"x\n" * 300: {**ONE, "dtype": "Q"}}, "a number type of the format"),
]


@pytest.mark.parametrize(("header", "text"), UNSOUND)
def test_unsound_headers_are_refused(tmp_path, header, text):
    if header == {}:
        text = "32 more than the header describes"
    assert text in refusal(write(tmp_path / "x", header))


@pytest.mark.parametrize("length", [33, 1 << 31, HEADER_LIMIT + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_length_that_lies_is_refused(tmp_path, length):
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + bytes(32))
    assert f"byte 0 (length of the header): expected at most 32 in this file, found {length}" in refusal(tmp_path / "x")


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        file.truncate(HEADER_LIMIT + 100)
    assert f"expected at most {HEADER_LIMIT}" in refusal(tmp_path / "x")


def test_a_shape_that_never_ends_is_not_parsed(tmp_path):
    path = write(tmp_path / "x", b'{"a":{"shape":[' + b"1," * (32 * MOST_TENSORS) + b"1]}}")
    with pytest.raises(BadFile, match="header: expected shapes of at most 16 sizes, found more"):
        open_safetensors(path)


def test_too_many_tensors_are_refused_unparsed(tmp_path):
    path = write(tmp_path / "x", b"{" + b'"a":{"x":0},' * (3 * MOST_TENSORS) + b"}")
    with pytest.raises(BadFile, match=f"header: expected at most {MOST_TENSORS} tensors, found more"):
        open_safetensors(path)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert "expected a safetensors file, found an empty file" in refusal(tmp_path / "empty")
    (tmp_path / "short").write_bytes(b"1234567")
    assert "length of the header: expected 8 bytes, found 7 before the end" in refusal(tmp_path / "short")
    os.mkfifo(tmp_path / "fifo")
    assert "found a pipe" in refusal(tmp_path / "fifo")
    assert "a directory" in refusal(tmp_path)
    assert "a device" in refusal(Path("/dev/zero"))
    assert "no such safetensors file" in refusal(tmp_path / "gone")


def test_every_truncation_and_any_tail_is_refused(tmp_path):
    path = tmp_path / "x"
    good = safetensors_bytes({"a": ONE, "b": TWO}, bytes(range(32)))
    for length in range(len(good)):
        path.write_bytes(good[:length])
        refusal(path)
    path.write_bytes(good + b"x")
    assert "1 more than the header describes" in refusal(path)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)


@given(st.dictionaries(st.text(max_size=8), JSON, min_size=1, max_size=4))
def test_any_json_is_refused(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(safetensors_bytes(header, b"x"))
    with pytest.raises(BadFile) as caught:
        open_safetensors(path)
    assert "\n" not in str(caught.value)
