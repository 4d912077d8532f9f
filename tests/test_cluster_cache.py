"""The worker's cache: what is read is what was written or nothing, and it is never in the way."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from dllama.cluster import cache as module
from dllama.cluster.cache import CHECKSUM, TileCache
from dllama.cluster.manifest import digest_of

MIB = 1 << 20
SIZE = MIB - CHECKSUM.size  # so that each file has a MiB
DATA = [bytes([number]) * SIZE for number in range(8)]
DIGESTS = [digest_of(data) for data in DATA]


@pytest.fixture(autouse=True)
def plenty_of_disk(monkeypatch):
    set_free(monkeypatch, 100 << 30)


def set_free(monkeypatch, *free: int) -> None:
    """Let the disk have so many bytes free, at the first question, at the second, and so on."""
    answers = list(free)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(answers.pop(0) if len(answers) > 1 else answers[0]))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "parent" / "cache"


def make_cache(folder, limit=1 << 40) -> TileCache:
    return TileCache(folder, limit)


def fill(folder, numbers, first_time_s=1000) -> None:
    """Write tiles, each used a second after the one before, long ago."""
    cache = make_cache(folder)
    for age, number in enumerate(numbers):
        cache.write(DIGESTS[number], DATA[number])
        os.utime(file_of(folder, number), (first_time_s + age,) * 2)


def file_of(folder, number):
    name = DIGESTS[number].hex()
    return folder / name[:2] / name[2:]


def present(folder) -> set[int]:
    return {number for number in range(len(DATA)) if file_of(folder, number).exists()}


def test_what_was_written_is_read(folder):
    cache = make_cache(folder)
    assert not cache.has(DIGESTS[0], SIZE)
    cache.write(DIGESTS[0], DATA[0])
    for other in (cache, make_cache(folder)):
        assert other.has(DIGESTS[0], SIZE)
        assert other.read(DIGESTS[0], SIZE) == DATA[0]
    assert not cache.problem
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir()] == [DIGESTS[0].hex()[:2]]


def test_what_is_not_there_is_missing(folder):
    cache = make_cache(folder)
    assert not cache.has(DIGESTS[0], SIZE)
    assert cache.read(DIGESTS[0], SIZE) is None


@pytest.mark.parametrize("digest", [b"", b"short", bytes(31), bytes(33), b"/" * 64, b"../../../../etc/passwd"])
def test_only_hashes_name_files(folder, digest):
    cache = make_cache(folder)
    for call in (lambda: cache.has(digest, 1), lambda: cache.read(digest, 1), lambda: cache.write(digest, b"1")):
        with pytest.raises(ValueError, match="a hash has 32 bytes"):
            call()
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty"])
def test_a_rotten_file_is_removed_and_missing(folder, damage):
    fill(folder, [0])
    path = file_of(folder, 0)
    raw = path.read_bytes()
    path.write_bytes({"flipped": b"x" + raw[1:], "cut": raw[:-1], "longer": raw + b"x", "empty": b""}[damage])
    cache = make_cache(folder)
    assert cache.has(DIGESTS[0], SIZE) == (damage == "flipped")
    assert cache.read(DIGESTS[0], SIZE) is None
    assert not path.exists()
    cache.write(DIGESTS[0], DATA[0])
    assert not cache.has(DIGESTS[0], SIZE)  # a disk that rots once is not asked again
    assert make_cache(folder).read(DIGESTS[0], SIZE) == DATA[0]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_things_that_are_no_files_are_missing(folder, tmp_path, kind):
    fill(folder, [0])
    path = file_of(folder, 0)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "none")
    cache = make_cache(folder)
    assert not cache.has(DIGESTS[0], SIZE)
    assert cache.read(DIGESTS[0], SIZE) is None


def test_those_not_used_for_longest_go_first(folder):
    fill(folder, [0, 1, 2, 3])
    assert make_cache(folder).read(DIGESTS[0], SIZE) == DATA[0]
    cache = make_cache(folder, 4 * MIB)
    cache.write(DIGESTS[4], DATA[4])
    assert present(folder) == {0, 2, 3, 4}
    cache.write(DIGESTS[5], DATA[5])
    assert present(folder) == {0, 3, 4, 5}
    assert not cache.problem


def test_what_another_process_uses_meanwhile_stays(folder):
    fill(folder, [0, 1, 2])
    cache = make_cache(folder, 4 * MIB)
    cache.write(DIGESTS[3], DATA[3])
    assert make_cache(folder).read(DIGESTS[0], SIZE) == DATA[0]
    cache.write(DIGESTS[4], DATA[4])
    assert present(folder) == {0, 2, 3, 4}


def test_what_the_session_needs_is_held(folder):
    fill(folder, [0, 1, 2])
    cache = make_cache(folder, 3 * MIB)
    cache.hold(DIGESTS[number] for number in (0, 1, 3, 4))
    cache.write(DIGESTS[3], DATA[3])
    assert not cache.problem
    cache.write(DIGESTS[4], DATA[4])
    assert present(folder) == {0, 1, 3}
    assert cache.problem == f"{folder}: full with 3 MiB; the rest will be sent again at the next start"
    shutil.rmtree(folder)
    cache.write(DIGESTS[4], DATA[4])  # it has stopped
    assert not folder.exists()


def test_a_limit_of_nothing_keeps_nothing(folder):
    cache = make_cache(folder, 0)
    cache.write(DIGESTS[0], DATA[0])
    assert present(folder) == set()


def test_some_of_the_disk_is_left_free(folder, monkeypatch):
    fill(folder, [0])
    set_free(monkeypatch, module.RESERVED_BYTES, module.RESERVED_BYTES + MIB, module.RESERVED_BYTES)
    cache = make_cache(folder)
    cache.write(DIGESTS[1], DATA[1])  # there is room when tile 0 is gone
    assert present(folder) == {1}
    assert not cache.problem
    cache.write(DIGESTS[2], DATA[2])
    assert present(folder) == {1}
    assert cache.problem == f"{folder}: less than 1024 MiB of the disk are free; no more is kept there"
    assert cache.read(DIGESTS[1], SIZE) == DATA[1]


def test_foreign_files_in_the_folder_are_left_alone(folder):
    fill(folder, [0])
    foreign = [folder / "notes.txt", folder / "ab" / "notes.txt", folder / "abc" / ("0" * 62), folder / "new-house"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (1, 1))
    cache = make_cache(folder, MIB)
    cache.write(DIGESTS[1], DATA[1])
    assert present(folder) == {1}
    assert all(path.read_bytes() == b"mine" for path in foreign)


def test_a_folder_that_cannot_be_is_no_failure(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    cache = make_cache(tmp_path / "file")
    cache.write(DIGESTS[0], DATA[0])
    assert not cache.has(DIGESTS[0], SIZE)
    assert cache.read(DIGESTS[0], SIZE) is None
    assert cache.problem.startswith(f"{tmp_path / 'file'}: cannot be written: ")


def test_a_disk_that_fills_up_leaves_nothing_half_written(folder, monkeypatch):
    fill(folder, [0])

    def replace(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    cache = make_cache(folder)
    cache.write(DIGESTS[1], DATA[1])
    assert cache.problem == f"{folder}: cannot be written: No space left on device"
    assert {path.name for path in folder.iterdir() if path.is_file()} == set()


def test_a_killed_writer_leaves_no_tile_and_its_stray_is_cleaned_up(folder):
    code = f"""if True:
        import os, pathlib
        from dllama.cluster import cache
        from dllama.cluster.manifest import digest_of
        cache.RESERVED_BYTES = 0
        pathlib.Path.replace = lambda *_: os._exit(9)  # dead before the file has its name
        data = bytes(1000)
        cache.TileCache(pathlib.Path({str(folder)!r}), 1 << 40).write(digest_of(data), data)
    """
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    (stray,) = (path for path in folder.iterdir() if path.is_file())
    cache = make_cache(folder)
    assert not cache.has(digest_of(bytes(1000)), 1000)
    cache.write(DIGESTS[0], DATA[0])
    assert stray.exists()  # its writer may live
    os.utime(stray, (time.time() - 3600,) * 2)
    make_cache(folder).write(DIGESTS[1], DATA[1])
    assert not stray.exists()


def test_several_share_a_folder(folder):
    def work(first):
        cache = make_cache(folder, 5 * MIB)
        for number in [*range(first, 8), *range(first)] * 3:
            cache.write(DIGESTS[number], DATA[number])
            data = cache.read(DIGESTS[number], SIZE)
            if cache.problem or data not in (None, DATA[number]):
                wrong.append((cache.problem, number))

    wrong: list[tuple[str, int]] = []
    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("full" in problem for problem, _ in wrong)
    assert not [path for path in folder.iterdir() if path.is_file()]
