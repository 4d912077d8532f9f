"""A worker's cache on disk: tiles and manifests, named by the hash of what is in them.

What was received is hashed before it is written, with a checksum behind it; a file whose checksum does not hold when
it is read is removed and counts as missing. (Disks rot, and hashing again would take most of a second start.) It is a
help, never a need: when the disk is full or cannot be written, the session goes on without. Several processes may share
a folder. A peer chooses hashes, never paths.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dllama.cluster.manifest import DIGEST_SIZE
from dllama.cluster.protocol import Bytes
from dllama.errors import BadFile, UsageError
from dllama.formats.checked_file import CheckedFile

CHECKSUM = struct.Struct("<I")  # CRC-32 of what is before it, at the end of each file
RESERVED_BYTES = 1 << 30  # of the disk, left free for others
_STRAY_AGE_S = 600  # an unfinished file this old has no writer any more
_STRAY = re.compile(r"new-[0-9a-f]{16}")
_FOLDER = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(rf"[0-9a-f]{{{2 * DIGEST_SIZE - 2}}}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of the cache as it was when it was seen."""

    path: Path
    digest: bytes
    size: int
    used_ns: int


class TileCache:
    """The cache as one session sees it; ``read``, ``has`` and ``write`` may be called by several threads.

    Files are counted when the first is written: what other processes write after that can be above the limit.

    Args:
        folder: Where it is; made when something is written.
        limit_bytes: Bytes of files in it; beyond that, those not used for longest are removed.

    Attributes:
        problem: Why nothing is written any more, in one line; empty while things are.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.problem = ""
        self._folder, self._limit = folder, limit_bytes
        self._held: set[bytes] = set()
        self._lost: set[bytes] = set()  # those that were not what they should be: not looked at again
        self._lock = threading.Lock()  # for what follows
        self._num_bytes: int | None = None  # None: not counted yet
        self._oldest: deque[_Entry] = deque()

    def hold(self, digests: Iterable[bytes]) -> None:
        """Name what this session needs: it is not removed to make room."""
        self._held.update(digests)

    def has(self, digest: bytes, size: int) -> bool:
        """Whether there is a file of ``size`` bytes under this hash; whether it is sound is known when it is read."""
        if digest in self._lost:
            return False
        try:
            status = self._path(digest).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size + CHECKSUM.size

    def read(self, digest: bytes, size: int) -> Bytes | None:
        """Give the ``size`` bytes of this hash; if they are not there or are others, None now and ever after."""
        path = self._path(digest)
        try:
            with CheckedFile(path, "cached") as file:
                data = memoryview(bytearray(size + CHECKSUM.size if file.size == size + CHECKSUM.size else 0))
                file.read_into(0, data, "tile")
        except UsageError:  # not there, or not to be opened
            self._lost.add(digest)
            return None
        except BadFile:
            data = memoryview(b"")
        if not data or CHECKSUM.pack(zlib.crc32(data[:size])) != data[size:]:
            self._lost.add(digest)
            _remove(path)
            return None
        with suppress(OSError):
            os.utime(path)
        return data[:size]

    def write(self, digest: bytes, data: Bytes) -> None:
        """Keep bytes under their hash, which the caller has checked; ``problem`` says when that is no longer done."""
        path = self._path(digest)
        if not self._limit:
            return
        try:
            if not self.problem and self._make_room(len(data) + CHECKSUM.size):
                self._write(path, data)
        except OSError as error:
            self.problem = f"{self._folder}: cannot be written: {error.strerror or error}"

    def _path(self, digest: bytes) -> Path:
        if len(digest) != DIGEST_SIZE:
            raise ValueError(f"a hash has {DIGEST_SIZE} bytes, this one {len(digest)}")
        name = digest.hex()
        return self._folder / name[:2] / name[2:]

    def _write(self, path: Path, data: Bytes) -> None:
        """Write a file under another name first, so that one under its own is whole unless the machine fails."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        new = self._folder / f"new-{secrets.token_hex(8)}"
        try:
            with new.open("xb") as file:
                file.write(data)
                file.write(CHECKSUM.pack(zlib.crc32(data)))
            new.replace(path)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Count ``size`` bytes in, and remove old files until they fit; False, and a problem, if they cannot."""
        with self._lock:
            if self._num_bytes is None:
                self._count()
            while problem := self._lack(size):
                if not self._remove_oldest():
                    self.problem = problem
                    return False
            self._num_bytes = (self._num_bytes or 0) + size
            return True

    def _lack(self, size: int) -> str:
        """Say what there is too little of for ``size`` bytes more; empty if nothing."""
        if (self._num_bytes or 0) + size > self._limit:
            return f"{self._folder}: full with {self._limit >> 20} MiB; the rest will be sent again at the next start"
        if shutil.disk_usage(self._folder).free - size < RESERVED_BYTES:
            return f"{self._folder}: less than {RESERVED_BYTES >> 20} MiB of the disk are free; no more is kept there"
        return ""

    def _count(self) -> None:
        """Look what is there, and clean up what dead processes left."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_strays(self._folder)
        entries = sorted(_entries(self._folder), key=lambda entry: entry.used_ns)
        self._num_bytes = sum(entry.size for entry in entries)
        self._oldest = deque(entries)

    def _remove_oldest(self) -> bool:
        """Remove the file not used for longest, unless it is held or was used since it was counted."""
        while self._oldest:
            entry = self._oldest.popleft()
            if entry.digest not in self._held and _used_ns(entry.path) == entry.used_ns and _remove(entry.path):
                self._num_bytes = (self._num_bytes or 0) - entry.size
                return True
        return False


def _entries(folder: Path) -> Iterator[_Entry]:
    """Give the files of a cache, and nothing else that may lie in its folder."""
    for subfolder in filter(lambda path: _FOLDER.fullmatch(path.name), _list(folder)):
        for path in filter(lambda path: _NAME.fullmatch(path.name), _list(subfolder)):
            with suppress(OSError):  # another process removed it
                status = path.lstat()
                yield _Entry(path, bytes.fromhex(subfolder.name + path.name), status.st_size, status.st_mtime_ns)


def _remove_strays(folder: Path) -> None:
    oldest_ns = time.time_ns() - _STRAY_AGE_S * 10**9
    for path in filter(lambda path: _STRAY.fullmatch(path.name), _list(folder)):
        if (_used_ns(path) or oldest_ns) < oldest_ns:
            _remove(path)


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _used_ns(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
