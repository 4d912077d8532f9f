"""Where the files of a zip archive lie, for archives that store them as they are, as PyTorch's do.

Written against PKWARE's APPNOTE 6.3.10. Every offset and size is compared with the file before it is used, and the list
of files is bounded; nothing is decompressed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dllama.formats.checked_file import CheckedFile

_END = struct.Struct("<4s4H2IH")
_END64_PLACE = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 0xFFFF
_MAX_LISTING = 16 << 20  # bytes; that of a checkpoint of 10,000 tensors has 1 MB
_ENCRYPTED = 1
_IN_EXTRA, _EXTRA_ZIP64 = 0xFFFFFFFF, 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file: its bytes are ``size`` from ``offset`` on in the archive."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Listed:
    name: str
    header_offset: int
    size: int


def read_entries(file: CheckedFile) -> dict[str, Entry]:
    """Find every file of an archive.

    Raises:
        BadFile: It is no zip archive, is cut short, lies about itself, or compresses or encrypts its files.
    """
    offset, size, count = _find_listing(file)
    raw = file.read(offset, size, "list of the archive's files")
    entries: dict[str, Entry] = {}
    for listed in _listed_files(file, raw, count):
        if listed.name in entries:
            raise file.bad(f"file {listed.name!r:.80}", "every name once", "it twice")
        entries[listed.name] = _located(file, listed)
    return entries


def _find_listing(file: CheckedFile) -> tuple[int, int, int]:
    """Give offset, bytes and number of files of the list at the archive's end."""
    tail_size = min(file.size, _END.size + _MAX_COMMENT)
    tail = file.read(file.size - tail_size, tail_size, "end of the archive")
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise file.bad("", "a zip archive, whole", "no list of files at its end; fetch it again")
    _, _, _, _, count, size, offset, _ = _END.unpack_from(tail, at)
    end = file.size - tail_size + at
    if _IN_EXTRA in (size, offset) or count == 0xFFFF:
        offset, size, count = _find_listing64(file, end - _END64_PLACE.size)
        end = min(end, file.size)
    if size > _MAX_LISTING or offset + size > end:
        raise file.bad("list of the archive's files", f"at most {_MAX_LISTING} bytes inside the file", f"{size} bytes")
    return offset, size, count


def _find_listing64(file: CheckedFile, place: int) -> tuple[int, int, int]:
    what = "end of the archive (zip64)"
    if place < 0:
        raise file.bad(what, "its place", "the start of the file")
    magic, _, at, _ = _END64_PLACE.unpack(file.read(place, _END64_PLACE.size, what))
    if magic != b"PK\6\7" or at > place:
        raise file.bad(what, "its place", f"byte {at}")
    magic, _, _, _, _, _, _, count, size, offset = _END64.unpack(file.read(at, _END64.size, what))
    if magic != b"PK\6\6":
        raise file.bad(what, "'PK', 6, 6", repr(magic))
    return offset, size, count


def _listed_files(file: CheckedFile, raw: bytes, count: int) -> Iterator[_Listed]:
    at = 0
    for index in range(count):
        place = f"file {index} of the archive"
        if at + _ENTRY.size > len(raw):
            raise file.bad(place, f"{count} files in the list", f"{index}")
        magic, _, _, flags, method, _, _, _, packed, size, *lengths, _, _, _, offset = _ENTRY.unpack_from(raw, at)
        name_size, extra_size, comment_size = lengths
        begin, end = at + _ENTRY.size, at + _ENTRY.size + name_size + extra_size
        at = end + comment_size
        if magic != b"PK\1\2" or at > len(raw):
            raise file.bad(place, "an entry of the list", repr(magic))
        name = raw[begin : begin + name_size].decode("utf-8", "replace")
        if method or flags & _ENCRYPTED:
            raise file.bad(f"file {name!r:.80}", "one that is stored as it is", f"compression {method}, flags {flags}")
        size, packed, offset = _with_extra(raw[begin + name_size : end], size, packed, offset)
        if packed != size:
            raise file.bad(f"file {name!r:.80}", f"{size} bytes, as many as it has", f"{packed}")
        yield _Listed(name, offset, size)


def _with_extra(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Put the 64-bit values in place of those that did not fit 32 bits; what lacks stays too large for any file."""
    values = [size, packed, offset]
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind != _EXTRA_ZIP64:
            continue
        wide = [value for (value,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
        values = [wide.pop(0) if value == _IN_EXTRA and wide else value for value in values]
    return values[0], values[1], values[2]


def _located(file: CheckedFile, listed: _Listed) -> Entry:
    """Find where a file's bytes begin: behind a header whose length only itself tells."""
    place = f"file {listed.name!r:.80}"
    magic, *_, name_size, extra_size = _LOCAL.unpack(file.read(listed.header_offset, _LOCAL.size, place))
    offset = listed.header_offset + _LOCAL.size + name_size + extra_size
    if magic != b"PK\3\4" or offset + listed.size > file.size:
        expected = f"{listed.size} bytes from byte {offset} on"
        raise file.bad(place, expected, f"{magic!r} in a file of {file.size} bytes")
    return Entry(offset, listed.size)
