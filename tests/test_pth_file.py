"""Reading PyTorch's archives without PyTorch: numbers where they are said to be, and nothing of a file is ever run."""

from __future__ import annotations

import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (  # type: ignore[import-not-found]
    bf16,
    dictionary_program,
    number,
    program_of,
    tensor_program,
    text,
    write_pth,
)

from dllama.errors import BadFile
from dllama.formats.pth_file import PthTensor, open_pth

RNG = np.random.default_rng(5)
TENSORS = {
    "matrix.weight": RNG.standard_normal((6, 32)).astype("<f4"),
    "half.weight": RNG.standard_normal((3, 8)).astype("<f2"),
    "brain.weight": bf16(RNG.standard_normal((2, 16)).astype("<f4")),
    "norm.weight": RNG.standard_normal(32).astype("<f4"),
}


def numbers_of(tensor: PthTensor, array: np.ndarray) -> bytes:
    return tensor.file.read(tensor.offset, array.nbytes, "numbers")


def refusal(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        open_pth(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert caught.value.exit_code == 3
    return message


def refused_program(tmp_path: Path, program: bytes) -> str:
    return refusal(write_pth(tmp_path / "hostile.pth", TENSORS, program))


def test_tensors_are_found(tmp_path: Path) -> None:
    file, tensors = open_pth(write_pth(tmp_path / "a.pth", TENSORS))
    with file:
        assert list(tensors) == list(TENSORS)
        for name, array in TENSORS.items():
            assert tensors[name].shape == array.shape
            assert numbers_of(tensors[name], array) == array.tobytes()


def test_view_into_a_larger_storage(tmp_path: Path) -> None:
    program = dictionary_program({"part": tensor_program("F32", "0", (2, 32), (32, 1), 192, 96)})
    file, tensors = open_pth(write_pth(tmp_path / "a.pth", TENSORS, program))
    with file:
        part = TENSORS["matrix.weight"][3:5]
        assert numbers_of(tensors["part"], part) == part.tobytes()


def test_large_archives_have_wide_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("x/data.pkl", program_of(TENSORS)), *_data(TENSORS)):
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(data)
    raw = path.read_bytes()
    at = raw.rindex(b"PK\5\6")
    count, size, offset = struct.unpack_from("<HII", raw, at + 10)
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    wide += struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    path.write_bytes(raw[:at] + wide + raw[at : at + 8] + struct.pack("<HHIIH", *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0))
    file, tensors = open_pth(path)
    with file:
        assert numbers_of(tensors["norm.weight"], TENSORS["norm.weight"]) == TENSORS["norm.weight"].tobytes()


def _data(tensors: dict[str, np.ndarray]) -> list[tuple[str, bytes]]:
    return [(f"x/data/{index}", array.tobytes()) for index, array in enumerate(tensors.values())]


class _Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_never_run(tmp_path: Path, protocol: int) -> None:
    message = refused_program(tmp_path, pickle.dumps({"a": _Command(tmp_path / "pwned")}, protocol))
    assert "tensors" in message
    assert not (tmp_path / "pwned").exists()


def test_the_function_is_named(tmp_path: Path) -> None:
    program = b"\x80\x02cposix\nsystem\n" + text("echo") + b"\x85R."
    assert "posix.system', which is never run" in refused_program(tmp_path, program)


NESTED = b")" + b"\x85" * 100_000
DOUBLED = b")" + b"q\x00h\x00h\x00\x86" * 300  # would be printed as 2^300 brackets
HOSTILE = {
    "empty": b"",
    "no end": program_of(TENSORS)[:-1],
    "a list": b"\x80\x02].",
    "a number": b"\x80\x02" + number(5) + b".",
    "nothing on the stack": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x05.",
    "memo of a huge number": b"\x80\x02)r\xff\xff\xff\xff0.",
    "negative number of columns": dictionary_program({"a": tensor_program("F32", "0", (2, -3), (32, 1), 192, 0)}),
    "overflowing sizes": dictionary_program({"a": tensor_program("F32", "0", (1 << 39, 1 << 39), (1 << 39, 1), 9, 0)}),
    "more rows than numbers": dictionary_program({"a": tensor_program("F32", "0", (7, 32), (32, 1), 192, 0)}),
    "storage that is too long": dictionary_program({"a": tensor_program("F32", "0", (70, 32), (32, 1), 9999, 0)}),
    "begins outside": dictionary_program({"a": tensor_program("F32", "0", (6, 32), (32, 1), 192, 1)}),
    "begins before": dictionary_program({"a": tensor_program("F32", "0", (6, 32), (32, 1), 192, -1)}),
    "columns first": dictionary_program({"a": tensor_program("F32", "0", (32, 6), (1, 32), 192, 0)}),
    "three sizes": dictionary_program({"a": tensor_program("F32", "0", (1, 6, 32), (192, 32, 1), 192, 0)}),
    "no such storage": dictionary_program({"a": tensor_program("F32", "77", (6, 32), (32, 1), 192, 0)}),
    "another folder's storage": dictionary_program(
        {"a": tensor_program("F32", "../data.pkl", (6, 32), (32, 1), 192, 0)}
    ),
    "other numbers": dictionary_program({"a": tensor_program("LongStorage", "0", (6, 32), (32, 1), 192, 0)}),
    "a name twice": b"\x80\x02}(" + text("a") + b"N" + text("a") + b"Nu.",
    "a name that is none": b"\x80\x02}(" + NESTED + b"Nu.",
    "endless shape": dictionary_program(
        {"a": b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"N" + number(0) + DOUBLED + b")tR"}
    ),
    "nested": b"\x80\x02" + NESTED + b".",
    "doubled": b"\x80\x02" + DOUBLED + b".",
    "call without a function": b"\x80\x02))R.",
    "call with too little": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "text longer than the program": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "number longer than the program": b"\x80\x02\x8a\xff1.",
    "name without an end": b"\x80\x02ctorch" + b"x" * 1000 + b"\n.",
    "name that is no text": b"\x80\x02c\xff\n\xff\n.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_programs(tmp_path: Path, what: str) -> None:
    begin = time.monotonic()
    refused_program(tmp_path, HOSTILE[what])
    assert time.monotonic() - begin < 5


def test_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"a" * 1000)
    assert "stored as it is" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "one data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program_of({}))
        archive.writestr("x/byteorder", "big")
    assert "little" in refusal(path)
    path.write_bytes(pickle.dumps({}))
    assert "a zip archive" in refusal(path)


def test_cut_anywhere(tmp_path: Path) -> None:
    raw = write_pth(tmp_path / "a.pth", TENSORS).read_bytes()
    for end in [*range(1, len(raw), 97), len(raw) - 1]:
        (tmp_path / "cut.pth").write_bytes(raw[:end])
        refusal(tmp_path / "cut.pth")
