"""What is known of a file while it is fetched, as ``NAME.part.json`` beside ``NAME.part`` holds it.

The state names the version of the file that the last bytes belong to, and says how many bytes are certainly on the
disk. Bytes behind those count only if the machine has not been started anew since and a hash will judge them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dllama.hub.remote import Facts

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNKNOWN = Facts()


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a file, as it is stored.

    Attributes:
        sources: What is fetched, in order; another list is another file.
        done: The parts that are whole and verified.
        current: The version of the part that follows them.
        synced: Bytes that are certainly on the disk.
        boot: The run of the system in which this was written.
    """

    sources: tuple[str, ...]
    done: tuple[Facts, ...] = ()
    current: Facts = _UNKNOWN
    synced: int = 0
    boot: str = ""

    @property
    def start(self) -> int:
        """Where the current part begins."""
        return sum(part.size or 0 for part in self.done)

    def trusted(self, file_size: int) -> int:
        """How many bytes of a file of ``file_size`` can be gone on from."""
        if self.current.sha256 and self.boot and self.boot == boot_id():
            return min(file_size, self.start + (self.current.size or 0))
        return min(file_size, self.synced)


def part_path(target: Path) -> Path:
    """Where a file is while it is fetched."""
    return target.with_name(target.name + ".part")


def source_names(urls: Sequence[str]) -> tuple[str, ...]:
    """What files are called on a server, whichever server it is."""
    return tuple(url.partition("?")[0].rpartition("/")[2] for url in urls)


_LARGEST_STATE = 1 << 20  # bytes; some ten thousand for the most parts there are


def bytes_there(target: Path, sources: tuple[str, ...]) -> int:
    """How much of an unfinished file is there and can be gone on from; touches nothing."""
    try:
        size = part_path(target).stat().st_size
    except OSError:
        return 0
    return read_state(target, sources).trusted(size)


def remove_stray_state(target: Path) -> None:
    """Remove the state of a file that is finished: its program ended a moment too early."""
    if target.exists() and not part_path(target).exists():
        state_path(target).unlink(missing_ok=True)


def state_path(target: Path) -> Path:
    """Where its state is."""
    return target.with_name(target.name + ".part.json")


def read_state(target: Path, sources: tuple[str, ...]) -> State:
    """Read the state; one that is missing, damaged or of other sources is that of nothing."""
    path = state_path(target)
    if not path.is_file() or path.stat().st_size > _LARGEST_STATE:
        return State(sources)
    try:
        raw = json.loads(path.read_text("ascii"))
        done = tuple(_facts(part) for part in raw["done"])
        state = State(tuple(raw["sources"]), done, _facts(raw["current"]), raw["synced"], raw["boot"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return State(sources)
    is_sound = type(state.synced) is int and state.synced >= 0 and type(state.boot) is str
    is_sound = is_sound and len(done) <= len(sources) and all(part.size is not None for part in done)
    return state if is_sound and state.sources == sources else State(sources)


def write_state(target: Path, state: State) -> None:
    """Replace the state in one go, so that it outlives a power failure."""
    path = state_path(target)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="ascii") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def _facts(raw: Any) -> Facts:
    """Check and take one part of a stored state. Raises ValueError, TypeError or KeyError."""
    size, sha256, etag = raw["size"], raw["sha256"], raw["etag"]
    if not ((size is None or (type(size) is int and size >= 0)) and isinstance(sha256, str | None)):
        raise ValueError("not a state")
    return Facts(size, sha256, str(etag))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """Tell this run of the system from others; empty where that cannot be told."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
