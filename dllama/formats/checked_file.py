"""Reading a file that may be anything, and writing one that is either whole or absent.

Every reader in this folder goes through ``CheckedFile``: it opens without blocking, takes regular files only, and never
reads past the size found at opening. Reads are ``preadv`` rather than a map of the file, because a mapped file that is
cut while in use ends the process with SIGBUS, and a read ends in ``BadFile``.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dllama.errors import BadFile, DllamaError, UsageError

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
_READ_LIMIT = 1 << 30  # Linux gives at most 2 GiB per call
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class CheckedFile:
    """An open regular file, read only within the size it had when it was opened.

    Args:
        path: The file.
        what: What it is to the user, for messages: ``"model"``, ``"tokenizer"``.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not a regular file, or it is empty.
    """

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path, self.what = os.fspath(path), what
        self._fd = _open(self.path, what)
        try:
            self.size = self._checked_size()
        except BaseException:
            self.close()
            raise

    def _checked_size(self) -> int:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            raise self.bad("", f"a {self.what} file", kind)
        if status.st_size == 0:
            raise self.bad("", f"a {self.what} file", "an empty file")
        return status.st_size

    def identity(self) -> str:
        """Say which file was opened, and as of when: another file or a change of this one gives another text."""
        status = os.fstat(self._fd)
        return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def bad(self, place: str, expected: str, found: str) -> BadFile:
        """Build the error that says what is wrong at ``place``."""
        return BadFile(self.path, place, expected, found)

    def read(self, offset: int, num_bytes: int, place: str) -> bytes:
        """Read ``num_bytes`` bytes at ``offset``; ``place`` names them in the error when they are not there."""
        left = self.size - offset
        if num_bytes > left:
            raise self.bad(place, f"{num_bytes} bytes", f"{max(left, 0)} before the end of the file")
        buffer = bytearray(num_bytes)
        self.read_into(offset, memoryview(buffer), place)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview, place: str) -> None:
        """Fill ``buffer`` (writable bytes) from ``offset``.

        Raises:
            BadFile: The file ends before the buffer is full (it was cut while in use), or the disk fails.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done : done + _READ_LIMIT]], offset + done)
            except OSError as error:
                raise self.bad(place, "readable data", error.strerror or str(error)) from error
            if count == 0:
                found = f"the end of the file at byte {offset + done}; was it changed while in use?"
                raise self.bad(place, f"{len(buffer)} bytes", found)
            done += count

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def __del__(self) -> None:
        """Close a file that nobody closed."""
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def read_whole(path: str | os.PathLike[str], what: str, most: int) -> bytes:
    """Read a whole file of at most ``most`` bytes.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is larger, or no regular file.
    """
    with CheckedFile(path, what) as file:
        if file.size > most:
            raise file.bad("size", f"at most {most} bytes", f"{file.size} bytes")
        return file.read(0, file.size, "content")


def _open(path: str, what: str) -> int:
    try:
        return os.open(path, _OPEN_FLAGS)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such {what} file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENXIO:  # what opening a socket gives
            raise BadFile(path, "", f"a {what} file", "a socket or a device that is not there") from None
        raise UsageError(f"{path}: cannot open this {what} file: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def new_file(path: str | os.PathLike[str], num_bytes: int) -> Iterator[BinaryIO]:
    """Write a file of ``num_bytes`` bytes beside ``path`` and rename it to ``path`` once it is complete.

    Whatever goes wrong, ``path`` is untouched and nothing else stays behind. Several may write ``path`` at the same
    time; the last to finish wins.

    Raises:
        UsageError: ``path`` cannot be a new regular file.
        DllamaError: The disk is full or fails.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):  # a rename would replace even a device
            raise UsageError(f"{path}: cannot be written: it is not a regular file")
        free = shutil.disk_usage(path.parent).free
        if free < num_bytes:
            raise DllamaError(f"{path}: needs {num_bytes} bytes, and the disk has {free} free")
        file = part.open("xb", buffering=1 << 20)  # never a file or a link that is there already
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be written: {_reason(error)}") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise DllamaError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)
