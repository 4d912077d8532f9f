"""The hashes of all tiles of a model: what root and workers mean when they speak of a tile's content.

The root makes a manifest by hashing its whole file, once: it is remembered in this user's cache folder until the file's
size, time or inode change. A worker takes the root's word for it, and checks every tile against it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.cluster.protocol import Bytes
from dllama.cluster.reading import TileReader, look_ahead
from dllama.cluster.tiles import TILING, Tile, tiles_of
from dllama.config import ModelConfig
from dllama.engine.loading import Progress, start_thread
from dllama.errors import DllamaError
from dllama.formats.checked_file import CheckedFile, new_file
from dllama.hub import folders

if TYPE_CHECKING:
    from dllama.formats.source import ModelSource

DIGEST_SIZE = 32  # bytes
_NUM_THREADS = 4
_AHEAD_BYTES = 32 << 20  # read and not yet hashed


@dataclass(frozen=True, slots=True)
class Manifest:
    """The digest of every tile of a model, in the order of ``tiles_of``.

    Attributes:
        raw: Its bytes, as they are sent and kept: the hash of the config, then the digests.
    """

    raw: bytes

    @property
    def id(self) -> bytes:
        """Hash of ``raw``: equal manifests are of the same weights of the same config."""
        return digest_of(self.raw)

    def digests(self) -> list[bytes]:
        """Give the digests, 32 bytes each."""
        return [self.raw[begin : begin + DIGEST_SIZE] for begin in range(DIGEST_SIZE, len(self.raw), DIGEST_SIZE)]


def digest_of(data: Bytes) -> bytes:
    """Hash bytes: BLAKE2b of 32 bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def manifest_size(config: ModelConfig) -> int:
    """Bytes of the manifest of a model."""
    return DIGEST_SIZE * (1 + len(tiles_of(config)))


def parse_manifest(config: ModelConfig, raw: Bytes, manifest_id: bytes) -> Manifest:
    """Take a manifest from a peer or a file.

    Raises:
        DllamaError: It is not the one of this id, or not one of this config.
    """
    if len(raw) != manifest_size(config):
        raise DllamaError(f"manifest: expected {manifest_size(config)} bytes, found {len(raw)}")
    manifest = Manifest(bytes(raw))
    if manifest.id != manifest_id or not manifest.raw.startswith(_config_digest(config)):
        raise DllamaError("manifest: expected the one that was announced, found another")
    return manifest


def manifest_of(file: ModelSource, progress: Progress | None = None) -> Manifest:
    """Give the manifest of a model file, remembered or made anew and then remembered.

    Raises:
        BadFile, NotEnoughMemory: As ``make_manifest``.
    """
    known = remembered(file)
    if known is not None:
        return known
    before = _state(file)
    manifest = make_manifest(file, progress)
    if before == _state(file):
        _remember(file, before, manifest)
    return manifest


def make_manifest(file: ModelSource, progress: Progress | None = None) -> Manifest:
    """Read and hash all tiles of a model file.

    Raises:
        BadFile: The file changed or cannot be read.
        NotEnoughMemory: The system refused a thread.
    """
    tiles = tiles_of(file.config)
    total = sum(tile.num_bytes for tile in tiles)
    digests, done = [_config_digest(file.config)], 0
    with ThreadPoolExecutor(min(_NUM_THREADS, os.cpu_count() or 1), thread_name_prefix="dllama-hash") as pool:
        started = _start_hashing(file, tiles, pool)
        for tile, digest in zip(tiles, look_ahead(started, _AHEAD_BYTES), strict=True):
            digests.append(digest.result())
            done += tile.num_bytes
            if progress:
                progress(done, total)
    return Manifest(b"".join(digests))


def remembered(file: ModelSource) -> Manifest | None:
    """Give the manifest of a file that was hashed before and has not changed since; None if there is none."""
    state, path = _state(file), _memory_path(file)
    size = 2 * DIGEST_SIZE + manifest_size(file.config)
    try:
        with CheckedFile(path, "manifest") as memory:
            if memory.size != size:
                return None
            raw = memory.read(0, size, "digests")
        if raw[:DIGEST_SIZE] != state:
            return None
        return parse_manifest(file.config, raw[2 * DIGEST_SIZE :], raw[DIGEST_SIZE : 2 * DIGEST_SIZE])
    except DllamaError:  # not there, or damaged: it is made again
        return None


def _remember(file: ModelSource, state: bytes, manifest: Manifest) -> None:
    """Keep a manifest for the next start, if that can be done."""
    path = _memory_path(file)
    raw = state + manifest.id + manifest.raw
    with suppress(OSError, DllamaError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new_file(path, len(raw)) as memory:
            memory.write(raw)


def _start_hashing(
    file: ModelSource, tiles: Sequence[Tile], pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Future[bytes]]]:
    reader = TileReader(file)
    for tile in tiles:
        yield tile.num_bytes, start_thread(pool.submit, digest_of, reader.read(tile))


def _config_digest(config: ModelConfig) -> bytes:
    return digest_of(f"{TILING} {config!r}".encode())


def _memory_path(file: ModelSource) -> Path:
    name = digest_of(os.fsencode(os.path.realpath(file.path))).hex()
    return folders.cache_dir() / "manifests" / name


def _state(file: ModelSource) -> bytes:
    """Hash what changes when a file does."""
    return digest_of(file.identity().encode())
