"""A lock on a model's folder, so that two programs never fetch, make and tidy up the same model at the same time.

The folder itself is locked: nothing is left in it. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def only_one_in(folder: Path) -> Iterator[None]:
    """Wait until no other program works in ``folder``, which is made if it is not there."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, folder)
            if _is_same(descriptor, folder):  # it was not removed meanwhile
                yield
                return
        finally:
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another program has locked a file or folder."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # not ours to read
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"⏳ Another program works on {folder}: waiting for it", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_same(descriptor: int, folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    return False
