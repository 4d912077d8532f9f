"""Manifests: hashes of what a model file holds, made once and remembered while the file stays as it is."""

import hashlib
import os

import pytest
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.cluster import cache as cache_module
from dllama.cluster import manifest as module
from dllama.cluster.cache import TileCache
from dllama.cluster.manifest import Manifest, make_manifest, manifest_of, manifest_size, parse_manifest, remembered
from dllama.cluster.tiles import tiles_of
from dllama.errors import DllamaError
from dllama.formats.m_file import open_m_file
from dllama.hub import folders


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_model(tmp_path / "model.m")
    return tmp_path / "model.m"


def no_hashing(*_):
    raise AssertionError("the file was hashed again")


def memory_file():
    (found,) = (folders.cache_dir() / "manifests").iterdir()
    return found


def test_digests_are_of_each_tiles_bytes(path):
    with open_m_file(path) as file:
        digests, tiles = make_manifest(file).digests(), tiles_of(file.config)
        assert len(digests) == len(tiles)
        for tile, digest in zip(tiles, digests, strict=True):
            tensor = file.tensors[tile.tensor]
            begin, end = (tile.dtype.row_bytes(column) for column in (tile.columns.begin, tile.columns.end))
            rows = tensor.read_rows(tile.rows.begin, tile.rows.end)[:, begin:end]
            assert digest == hashlib.blake2b(rows.tobytes(), digest_size=32).digest()


def test_progress_ends_at_the_total(path):
    calls: list[tuple[int, int]] = []
    with open_m_file(path) as file:
        make_manifest(file, lambda done, total: calls.append((done, total)))
        assert calls[-1] == (sum(tile.num_bytes for tile in tiles_of(file.config)),) * 2
    assert calls == sorted(calls)


def test_ids_tell_weights_and_configs_apart(path, tmp_path):
    others = {"weights": (tiny_config(), 1), "config": (tiny_config(rope_theta=5e5), 0)}
    with open_m_file(path) as file:
        ids = {make_manifest(file).id}
    for name, (config, seed) in others.items():
        write_tiny_model(tmp_path / name, config, seed)
        with open_m_file(tmp_path / name) as file:
            ids.add(make_manifest(file).id)
    assert len(ids) == 3


def test_what_a_peer_sends_is_checked(path):
    with open_m_file(path) as file:
        ours = make_manifest(file)
        assert parse_manifest(file.config, ours.raw, ours.id) == ours
        for raw in (b"", ours.raw[:-1], ours.raw + bytes(32)):
            with pytest.raises(DllamaError, match=rf"expected {len(ours.raw)} bytes, found {len(raw)}"):
                parse_manifest(file.config, raw, Manifest(raw).id)
        changed = ours.raw[:-1] + bytes([ours.raw[-1] ^ 1])
        with pytest.raises(DllamaError, match="the one that was announced"):
            parse_manifest(file.config, changed, ours.id)
        with pytest.raises(DllamaError, match="the one that was announced"):
            parse_manifest(tiny_config(rope_theta=5e5), ours.raw, ours.id)


def test_a_workers_cache_keeps_manifests_by_their_id(path, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "RESERVED_BYTES", 0)
    cache = TileCache(tmp_path / "tiles", 1 << 40)
    with open_m_file(path) as file:
        ours = make_manifest(file)
        cache.write(ours.id, ours.raw)
        raw = cache.read(ours.id, manifest_size(file.config))
        assert raw is not None
        assert parse_manifest(file.config, raw, ours.id) == ours


def test_a_second_start_hashes_nothing(path, monkeypatch):
    with open_m_file(path) as file:
        assert remembered(file) is None
        expected = manifest_of(file)
        assert expected == make_manifest(file)
    monkeypatch.setattr(module, "make_manifest", no_hashing)
    with open_m_file(path) as file:
        assert manifest_of(file) == expected
    assert memory_file().parent.stat().st_mode & 0o077 == 0


def test_a_changed_or_replaced_file_is_hashed_again(path, tmp_path):
    with open_m_file(path) as file:
        first = manifest_of(file)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with open_m_file(path) as file:
        assert remembered(file) is None
        assert manifest_of(file) == first
    write_tiny_model(tmp_path / "new.m", seed=1)
    os.utime(tmp_path / "new.m", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (tmp_path / "new.m").replace(path)
    with open_m_file(path) as file:
        assert manifest_of(file) == make_manifest(file) != first


def test_a_file_replaced_after_opening_is_not_taken_for_the_new_one(path, tmp_path):
    with open_m_file(path) as file:
        write_tiny_model(tmp_path / "new.m", seed=1)
        (tmp_path / "new.m").replace(path)
        old = manifest_of(file)
    with open_m_file(path) as file:
        assert manifest_of(file) == make_manifest(file) != old


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "longer", "folder"])
def test_a_damaged_memory_is_ignored_and_made_anew(path, damage):
    with open_m_file(path) as file:
        expected = manifest_of(file)
        memory = memory_file()
        raw = memory.read_bytes()
        memory.unlink()
        if damage == "folder":
            memory.mkdir()
        else:
            broken = {"empty": b"", "cut": raw[:-1], "flipped": raw[:-1] + bytes([raw[-1] ^ 1]), "longer": raw + b"1"}
            memory.write_bytes(broken[damage])
        assert remembered(file) is None
        assert manifest_of(file) == expected
        assert damage == "folder" or memory.read_bytes() == raw


def test_a_cache_folder_that_cannot_be_is_not_in_the_way(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file
    with open_m_file(path) as file:
        assert manifest_of(file) == make_manifest(file)
