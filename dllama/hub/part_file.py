"""A file while it is fetched: ``NAME.part`` beside its final name, and in ``NAME.part.json`` what is known of it.

Parts follow each other in one growing file. A program killed at any moment goes on where it was: the state is replaced
in one go, and always names the version of the file that the last bytes belong to. Knows nothing of servers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from dllama.errors import DllamaError
from dllama.hub.part_state import State, boot_id, part_path, read_state, state_path, sync_folder, write_state
from dllama.hub.remote import Facts

_SYNC_BYTES, _SYNC_S = 32 << 20, 10.0  # what a power failure may cost
_READ_BYTES = 1 << 20


class NotEnoughDisk(DllamaError):
    """The disk lacks room for a file; what is there of it is kept."""

    exit_code = 5


class PartFile:
    """An unfinished file, locked against other programs. Use it as a context: leaving it syncs what is there."""

    def __init__(self, target: Path, sources: tuple[str, ...], on_wait: Callable[[], None]) -> None:
        """Open or make it; ``on_wait`` is called before waiting for another program that works on it.

        Raises:
            OSError: The file cannot be made.
        """
        self.target, self.path = target, part_path(target)
        self._is_complete = False
        self._file = _open_locked(self.path, on_wait)
        try:
            state, size = read_state(target, sources), os.fstat(self._file.fileno()).st_size
            while state.start > min(size, state.synced):
                state = State(sources, state.done[:-1], synced=state.synced)
            self._sources, self._done, self.current = sources, list(state.done), state.current
            self._size = max(state.trusted(size), state.start)
            self._cut()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Keep what is there, and let other programs have it."""
        with contextlib.suppress(OSError):  # what went wrong before is what the user should hear of
            if self._size and not self._is_complete:
                self.sync()
            elif not self._is_complete:
                self.path.unlink()
                state_path(self.target).unlink(missing_ok=True)
        self._file.close()

    @property
    def done(self) -> tuple[Facts, ...]:
        """The parts that are whole."""
        return tuple(self._done)

    @property
    def start(self) -> int:
        """Bytes of the whole parts."""
        return sum(part.size or 0 for part in self._done)

    @property
    def have(self) -> int:
        """Bytes of the current part."""
        return self._size - self.start

    def keep_done(self, number: int) -> None:
        """Throw away all but the first ``number`` parts."""
        if number < len(self._done):
            self._done = self._done[:number]
            self.begin(Facts())

    def begin(self, facts: Facts) -> None:
        """Start the current part from nothing: a version of which ``facts`` are known."""
        self._size = self.start
        self._cut()  # before the state: never are bytes of one version there under the name of another
        self.current = facts
        self._write_state()

    def renew(self, facts: Facts) -> None:
        """Note what a server now says of the same version."""
        if facts != self.current:
            self.current = facts
            self.sync()

    def rehash(self, progress: Callable[[int], None]) -> None:
        """Read the current part again for its hash, which cannot be stored half done."""
        self._hash = hashlib.sha256()
        self._file.seek(self.start)
        left = self.have
        while left:
            data = self._file.read(min(left, _READ_BYTES))
            if not data:
                raise OSError(errno.EIO, "the file was cut by another program", str(self.path))
            self._hash.update(data)
            left -= len(data)
            progress(self.have - left)

    def append(self, data: bytes) -> None:
        """Add bytes to the current part.

        Raises:
            NotEnoughDisk: The disk is full.
        """
        rest = memoryview(data)
        try:
            while rest:
                count = self._file.write(rest) or 0
                self._hash.update(rest[:count])
                self._size += count
                rest = rest[count:]
            if self._size - self._synced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_S:
                self.sync()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NotEnoughDisk(f"{self.path}: the disk is full; make room and run the same command again") from error

    def digest(self) -> str:
        """SHA-256 of the current part, as 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def finish_part(self) -> None:
        """The current part is whole and right; begin the next."""
        os.fsync(self._file.fileno())
        self._done.append(self.current)
        self.begin(Facts())

    def sync(self) -> None:
        """Bring everything to the disk, and note that."""
        os.fsync(self._file.fileno())
        self._write_state()

    def complete(self) -> None:
        """Give the file its final name; nothing is left beside it."""
        os.fsync(self._file.fileno())
        self.path.replace(self.target)
        self._is_complete = True
        sync_folder(self.target.parent)
        state_path(self.target).unlink(missing_ok=True)

    def discard(self) -> None:
        """Throw everything away."""
        self.keep_done(0)
        self.begin(Facts())

    def _cut(self) -> None:
        """Make the file as long as what is trusted of it; the hash is that of nothing."""
        self._file.truncate(self._size)
        self._file.seek(self._size)
        self._hash = hashlib.sha256()
        self._synced, self._synced_at = self._size, time.monotonic()

    def _write_state(self) -> None:
        write_state(self.target, State(self._sources, self.done, self.current, self._size, boot_id()))
        self._synced, self._synced_at = self._size, time.monotonic()


def _open_locked(path: Path, on_wait: Callable[[], None]) -> Any:
    """Open a file for this program alone; it may be finished, and so renamed, by another while this one waits."""
    import fcntl

    while True:
        file = os.fdopen(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "r+b", buffering=0
        )
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                return file
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
