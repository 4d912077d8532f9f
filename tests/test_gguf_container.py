"""What GGUF files say of themselves is read as it stands, and files that lie end in one line, quickly."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_files import (  # type: ignore[import-not-found]
    ARRAY,
    BOOL,
    F32,
    F64,
    I64,
    STRING,
    TYPE_I8,
    TYPE_Q4_0,
    TYPE_Q4_K,
    U16,
    U32,
    U64,
    RawFile,
    RawTensor,
    array_pair,
    number_pair,
    pair,
    string,
    text_pair,
)

from dllama.errors import BadFile, UnsupportedModel, UsageError
from dllama.formats.gguf_container import StringArray, read_container
from dllama.formats.gguf_types import GGML_TYPES

TWO = [RawTensor("a", (4, 2)), RawTensor("b", (8,), offset=32)]
DATA = bytes(64)


def read(folder: Path, file: RawFile | bytes):
    path = folder / "a.gguf"
    path.write_bytes(file if isinstance(file, bytes) else file.raw())
    return read_container(path)


def test_values_of_every_type(tmp_path):
    found = read(
        tmp_path,
        RawFile(
            [
                number_pair("u32", 7),
                pair("u16", U16, struct.pack("<H", 65535)),
                pair("i64", I64, struct.pack("<q", -(2**62))),
                pair("u64", U64, struct.pack("<Q", 2**63)),
                pair("f32", F32, struct.pack("<f", 1e-5)),
                pair("f64", F64, struct.pack("<d", 1e-5)),
                pair("yes", BOOL, b"\1"),
                text_pair("text", "Öl"),
                text_pair("nothing", ""),
                array_pair("numbers", F32, 2, struct.pack("<2f", 1, 2)),
                array_pair("flags", BOOL, 2, b"\0\1"),
                array_pair("none", U32, 0, b""),
            ]
        ),
    ).metadata
    assert [found[key] for key in ("u32", "u16", "i64", "u64")] == [7, 65535, -(2**62), 2**63]
    assert found["f32"] == found["f64"] == 1e-5  # the shortest number that is this float32
    assert found["yes"] is True
    assert (found["text"], found["nothing"]) == ("Öl", "")
    np.testing.assert_array_equal(found["numbers"], [1, 2])
    assert found["flags"].tolist() == [False, True]
    assert len(found["none"]) == 0


def test_strings_are_decoded_when_asked_for(tmp_path):
    texts = ["", "a", "▁the", "\udcff\udc80", "x" * 300]
    raw = b"".join(string(text.encode("utf-8", "surrogateescape")) for text in texts)
    found = read(tmp_path, RawFile([array_pair("tokens", STRING, len(texts), raw), number_pair("after", 1)])).metadata
    tokens = found["tokens"]
    assert isinstance(tokens, StringArray)
    assert (len(tokens), list(tokens), tokens[2], tokens[-1], tokens[1:3]) == (
        5,
        texts,
        texts[2],
        texts[-1],
        texts[1:3],
    )
    assert found["after"] == 1
    with pytest.raises(IndexError):
        tokens[5]


def test_a_large_vocabulary_is_read_whole(tmp_path):
    texts = [f"token {number}" for number in range(200_000)]
    raw = b"".join(map(string, texts))
    start = time.monotonic()
    tokens = read(tmp_path, RawFile([array_pair("tokens", STRING, len(texts), raw)])).metadata["tokens"]
    assert (tokens[0], tokens[123_456], tokens[-1]) == (texts[0], texts[123_456], texts[-1])
    assert time.monotonic() - start < 10  # a reader that copies what it has at every string takes minutes


def test_tensors_are_placed(tmp_path):
    found = read(tmp_path, RawFile(tensors=TWO, data=DATA))
    assert found.data_offset % 32 == 0
    assert [(info.shape, info.offset, info.nbytes) for info in found.tensors.values()] == [
        ((2, 4), found.data_offset, 32),
        ((8,), found.data_offset + 32, 32),
    ]


def test_own_alignment_and_version_2(tmp_path):
    file = RawFile(
        [number_pair("general.alignment", 128)],
        [RawTensor("a", (4,)), RawTensor("b", (4,), offset=128)],
        bytes(144),
        version=struct.pack("<I", 2),
        alignment=128,
    )
    found = read(tmp_path, file)
    assert (found.version, found.data_offset % 128) == (2, 0)


def test_a_file_of_metadata_alone(tmp_path):
    assert read(tmp_path, RawFile([number_pair("a", 1)]).raw().rstrip(b"\0") + b"\0\0\0").metadata == {"a": 1}


def alignment(value: int) -> bytes:
    return number_pair("general.alignment", value)


BROKEN = {
    "empty": (b"", "an empty file"),
    "one byte": (b"G", "4 bytes"),
    "bad magic": (RawFile(magic=b"FUGG"), "a GGUF file"),
    "no version": (b"GGUF", "4 bytes"),
    "negative number of tensors": (RawFile(num_tensors=2**64 - 1), "number of tensors"),
    "negative number of keys": (RawFile(num_pairs=2**64 - 1), "number of keys"),
    "more tensors than bytes": (RawFile(num_tensors=1000), "number of tensors"),
    "more keys than bytes": (RawFile([number_pair("a", 1)], num_pairs=5), "byte"),
    "key longer than the file": (RawFile([struct.pack("<Q", 2**64 - 1) + bytes(100)], num_pairs=1), "length of a key"),
    "key of 1 MiB": (RawFile([string("k" * (1 << 20)) + bytes(100)], num_pairs=1), "length of a key"),
    "empty key": (RawFile([pair("", U32, bytes(4))]), "length of a key"),
    "key not UTF-8": (RawFile([pair(b"\xff\xfe", U32, bytes(4))]), "UTF-8"),
    "key of two lines": (RawFile([number_pair("a\nb", 1)]), r"'a\nb'"),
    "type of value unknown": (RawFile([pair("a", 13, bytes(4))]), "type of a"),
    "negative type of value": (RawFile([pair("a", 2**32 - 1, bytes(4))]), "type of a"),
    "key twice": (RawFile([number_pair("a", 1), number_pair("a", 2)]), "'a' again"),
    "bool of 2": (RawFile([pair("a", BOOL, b"\2")]), "0 or 1"),
    "text longer than the file": (RawFile([pair("a", STRING, struct.pack("<Q", 2**63))]), "may follow"),
    "text not UTF-8": (RawFile([pair("a", STRING, string(b"ok\xff"))]), "0xFF"),
    "array longer than the file": (RawFile([array_pair("a", U32, 2**62, bytes(16))]), "length of value of a"),
    "array whose bytes wrap": (RawFile([array_pair("a", U64, 2**61 + 1, bytes(16))]), "length of value of a"),
    "array of arrays": (RawFile([array_pair("a", ARRAY, 1, struct.pack("<IQ", U32, 0))]), "an array of arrays"),
    "array of unknown type": (RawFile([array_pair("a", 99, 1, bytes(16))]), "type of value of a"),
    "five million strings": (RawFile([array_pair("a", STRING, 5_000_000, bytes(40_000_000))]), "at most 4194304"),
    "strings of an array cut": (RawFile([array_pair("a", STRING, 3, string("x") * 2 + b"\xff" * 7)]), "value of a"),
    "string of an array too long": (
        RawFile([array_pair("a", STRING, 2, string("x") + struct.pack("<Q", 2**64 - 1))]),
        "value of a",
    ),
    "alignment 0": (RawFile([alignment(0)]), "a power of two"),
    "alignment 13": (RawFile([alignment(13)]), "a power of two"),
    "alignment 2^31": (RawFile([alignment(2**31)]), "a power of two"),
    "alignment a text": (RawFile([text_pair("general.alignment", "32")]), "a power of two"),
    "alignment true": (RawFile([pair("general.alignment", BOOL, b"\1")]), "a power of two"),
    "tensor's name longer than the file": (RawFile(rest=struct.pack("<Q", 2**63) + bytes(40), num_tensors=1), "name"),
    "tensor without a name": (RawFile(tensors=[RawTensor("", (4,))], data=bytes(16)), "name"),
    "tensor without dimensions": (RawFile(tensors=[RawTensor("a", ())], data=DATA), "dimensions of a"),
    "tensor of 5 dimensions": (RawFile(tensors=[RawTensor("a", (1,) * 5)], data=DATA), "dimensions of a"),
    "tensor of 2^32 dimensions": (RawFile(tensors=[RawTensor("a", (4,), num_dims=2**32 - 1)]), "dimensions of a"),
    "size 0": (RawFile(tensors=[RawTensor("a", (4, 0))], data=DATA), "shape of a"),
    "negative size": (RawFile(tensors=[RawTensor("a", (2**64 - 1,))], data=DATA), "a file of"),
    "values beyond 64 bits": (RawFile(tensors=[RawTensor("a", (2**33, 2**33))], data=DATA), "a file of"),
    "bytes beyond 64 bits": (RawFile(tensors=[RawTensor("a", (2**62, 4))], data=DATA), "a file of"),
    "bytes that wrap by padding": (
        RawFile(tensors=[RawTensor("a", (4, 2**30 - 1, 2**30 + 1))], data=DATA),
        "a file of",
    ),
    "two tensors that overflow together": (
        RawFile(tensors=[RawTensor(name, (2**63 - 64,), TYPE_I8) for name in "ab"], data=DATA),
        "a file of",
    ),
    "exabyte tensor": (RawFile(tensors=[RawTensor("a", (2**60,))], data=DATA), "a file of"),
    "tensor of unknown type": (RawFile(tensors=[RawTensor("a", (4,), kind=77)], data=DATA), "type of a"),
    "tensor of a removed type": (RawFile(tensors=[RawTensor("a", (32,), kind=4)], data=DATA), "type of a"),
    "half a block": (RawFile(tensors=[RawTensor("a", (48,), TYPE_Q4_0)], data=DATA), "blocks of 32"),
    "half a large block": (RawFile(tensors=[RawTensor("a", (128,), TYPE_Q4_K)], data=DATA), "blocks of 256"),
    "tensor twice": (RawFile(tensors=[TWO[0], RawTensor("a", (8,), offset=32)], data=DATA), "a second one"),
    "offset not aligned": (RawFile(tensors=[TWO[0], RawTensor("b", (4,), offset=36)], data=DATA), "32 divides"),
    "offset behind the end": (RawFile(tensors=[RawTensor("a", (4,), offset=2**40)], data=DATA), "a file of"),
    "offset that wraps": (RawFile(tensors=[RawTensor("a", (4,), offset=2**64 - 32)], data=DATA), "a file of"),
    "tensors that overlap": (
        RawFile(tensors=[RawTensor("a", (16,)), RawTensor("b", (8,), offset=32)], data=DATA),
        "overlap",
    ),
    "tensors on one place": (RawFile(tensors=[RawTensor("a", (8,)), RawTensor("b", (8,))], data=DATA), "overlap"),
    "data cut by one byte": (RawFile(tensors=TWO, data=DATA[:-1]), "cut short"),
    "no data": (RawFile(tensors=TWO), "cut short"),
    "data for another alignment": (RawFile([alignment(64)], TWO, DATA), "64 divides"),
    "more data than the header says": (RawFile(tensors=TWO, data=DATA + bytes(32)), "32 more"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_one_line(tmp_path, name):
    file, words = BROKEN[name]
    with pytest.raises(BadFile) as caught:
        read(tmp_path, file)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "found"),
    [
        (struct.pack("<I", 0), "version 0"),
        (struct.pack("<I", 1), "version 1"),
        (struct.pack("<I", 4), "version 4"),
        (struct.pack(">I", 3), "a big-endian file"),
    ],
)
def test_other_versions_are_refused_by_name(tmp_path, version, found):
    with pytest.raises(UnsupportedModel, match=found):
        read(tmp_path, RawFile(version=version))


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="no such model file"):
        read_container(tmp_path / "none.gguf")


SOUND = RawFile(
    [
        text_pair("general.architecture", "llama"),
        array_pair("tokens", STRING, 3, string("a") + string("bc") + string("")),
        array_pair("scores", F32, 3, bytes(12)),
        number_pair("n", 5),
    ],
    TWO,
    DATA,
).raw()


@pytest.mark.parametrize("length", range(0, len(SOUND), 7))
def test_cut_files(tmp_path, length):
    with pytest.raises(BadFile):
        read(tmp_path, SOUND[:length])


def test_the_types_are_those_of_the_oracle():
    gguf = pytest.importorskip("gguf")
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        ours = GGML_TYPES[kind.value]
        assert (ours.id, ours.name, ours.block_size, ours.block_bytes) == (kind.value, kind.name, *sizes)
