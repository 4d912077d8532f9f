"""Reading ``.safetensors`` files: eight bytes with the length of a JSON header, the header, and bytes of tensors.

The header names each tensor with its number type, shape and range of bytes. Everything in it is compared with the file
before it is used: ranges must follow each other from the first byte to the last, as the format demands, so none can
overlap, and none reaches beyond the file. No tensor is read here.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from dllama.formats.checked_file import CheckedFile
from dllama.formats.json_file import bound_members, one_line

HEADER_LIMIT: Final = 100_000_000  # bytes, by the format
MOST_TENSORS: Final = 1 << 17  # in one file: several times those of the largest mixtures of experts
_LENGTH = struct.Struct("<Q")
_COLONS_PER_TENSOR = 4  # behind its name and behind each of its three fields
_MOST_AXES = 16
_SPARE_COLONS = 1 << 12  # in the header's free text
# Bytes of a number of each type that the format has in whole bytes.
_NUMBER_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_ESCAPED_LETTER = re.compile(rb"\\u00(?:4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9a])", re.IGNORECASE)  # or _
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Entry(msgspec.Struct):
    """A tensor as the header has it; the free text under ``__metadata__`` reads as one without fields."""

    dtype: str = ""
    shape: Annotated[list[_Count], msgspec.Meta(max_length=_MOST_AXES)] = []
    data_offsets: tuple[_Count, _Count] = (0, 0)


_decoder = msgspec.json.Decoder(dict[str, _Entry])


@dataclass(frozen=True, slots=True)
class StoredArray:
    """Where a tensor lies, and as what.

    Attributes:
        number_type: The format's name, e.g. ``"BF16"``.
        offset: Of its first byte in the file.
    """

    file: CheckedFile
    number_type: str
    shape: tuple[int, ...]
    offset: int


def open_safetensors(path: str | os.PathLike[str]) -> tuple[CheckedFile, dict[str, StoredArray]]:
    """Open a file and read its header; give the file, which the caller closes, and its tensors by name.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a sound ``.safetensors`` file.
    """
    file = CheckedFile(path, "safetensors")
    try:
        (length,) = _LENGTH.unpack(file.read(0, _LENGTH.size, "length of the header"))
        start = _LENGTH.size + length
        if length > HEADER_LIMIT or start > file.size:
            limit = min(HEADER_LIMIT, file.size - _LENGTH.size)
            raise file.bad("byte 0 (length of the header)", f"at most {limit} in this file", str(length))
        raw = bytearray(length)
        file.read_into(_LENGTH.size, memoryview(raw), "header")
        entries = _entries(file, raw)
        _check_ranges(file, entries, start)
        arrays = {
            name: StoredArray(file, entry.dtype, tuple(entry.shape), start + entry.data_offsets[0])
            for name, entry in entries.items()
        }
    except BaseException:
        file.close()
        raise
    return file, arrays


def _entries(file: CheckedFile, raw: bytearray) -> Mapping[str, _Entry]:
    """Parse the header, which may be anything: its colons and commas bound what the parser can allocate."""
    most = MOST_TENSORS * _COLONS_PER_TENSOR + _SPARE_COLONS
    bound_members(file.path, "header", raw, most, f"at most {MOST_TENSORS} tensors")
    if raw.count(b",") > most + MOST_TENSORS * _MOST_AXES:
        raise file.bad("header", f"shapes of at most {_MOST_AXES} sizes", "more")
    try:
        entries = _decoder.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise file.bad("header", "JSON that names tensors", one_line(error)) from None
    entries.pop("__metadata__", None)
    if _ESCAPED_LETTER.search(raw):  # no writer escapes letters, and a name could be hidden from the count below
        raise file.bad("header", "letters as they are", "letters escaped by their numbers")
    if raw.count(b'"data_offsets"') > len(entries):
        raise file.bad("header", "every tensor once", f"{len(entries)} names for more tensors than that")
    return entries


def _check_ranges(file: CheckedFile, entries: Mapping[str, _Entry], start: int) -> None:
    """Raise BadFile unless each tensor is as long as its shape says, and all follow each other to the file's end."""
    end, last = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        place = f"tensor {name!r:.200}"
        if entry.dtype not in _NUMBER_BYTES:
            raise file.bad(place, "a number type of the format", f"{entry.dtype!r:.40}")
        begin, stop = entry.data_offsets
        if begin != end:
            raise file.bad(place, f"its first byte to be {end}, behind {last}", str(begin))
        if stop - begin != math.prod(entry.shape) * _NUMBER_BYTES[entry.dtype]:
            raise file.bad(place, f"the bytes of {entry.dtype} of shape {entry.shape}", f"{stop - begin} bytes")
        if start + stop > file.size:
            found = f"{file.size} bytes: the file ends in this tensor; fetch it again"
            raise file.bad(place, f"a file of at least {start + stop} bytes", found)
        end, last = stop, place
    if start + end != file.size:
        extra = file.size - start - end
        raise file.bad("size", f"{start + end} bytes", f"{file.size} bytes: {extra} more than the header describes")
