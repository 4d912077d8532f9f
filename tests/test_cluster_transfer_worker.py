"""A worker loads tiles: what it has is not sent, what is wrong is refused, and what rots is sent again."""

import os

import pytest
from cluster_nodes import FakeNode, assert_same_weights, loaded_node, open_transfer_model  # type: ignore[import-not-found]

from dllama.cluster import cache as cache_module
from dllama.cluster.assembly import Assembly
from dllama.cluster.cache import TileCache
from dllama.cluster.manifest import make_manifest
from dllama.cluster.reading import TileReader, look_ahead
from dllama.cluster.tiles import tiles_for, tiles_of
from dllama.cluster.transfer import load_tiles, missing_tiles
from dllama.errors import DllamaError
from dllama.plan import make_plan

PEER = "10.0.0.1:9990"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    with open_transfer_model(tmp_path_factory.mktemp("transfer") / "model.m") as file:
        yield file


@pytest.fixture(scope="module")
def digests(file):
    return make_manifest(file).digests()


@pytest.fixture(autouse=True)
def any_disk_will_do(monkeypatch):
    monkeypatch.setattr(cache_module, "RESERVED_BYTES", 0)


class Lost(Exception):
    pass


def test_some_things_are_started_ahead():
    started: list[int] = []

    def start():
        for number in range(10):
            started.append(number)
            yield 5, number

    given = []
    for number in look_ahead(start(), 15):
        given.append(number)
        assert len(started) == min(10, len(given) + 3)
    assert given == list(range(10))


class Worker:
    """A worker of rank 1 of two, whose root is the file; counts the bytes that are sent."""

    def __init__(self, file, digests, folder) -> None:
        self.file, self.digests, self.folder = file, digests, folder
        self.shard = make_plan(file.config, 2).shards[1]
        self.node = FakeNode(file.config, self.shard)
        self.cache = TileCache(folder, 1 << 40)
        self.reader = TileReader(file)
        self.sent: list[int] = []

    def receive(self, index, size) -> bytes:
        data = bytes(self.reader.read(tiles_of(self.file.config)[index]))
        assert len(data) == size
        self.sent.append(index)
        return data

    def load(self, receive=None, progress=None) -> list[list[int]]:
        """Announce and load until all is there; give what was announced each time."""
        announced: list[list[int]] = []
        needed = tiles_for(self.file.config, self.shard, tiles_of(self.file.config))
        missing = missing_tiles(tiles_of(self.file.config), needed, self.digests, self.cache)
        while missing or not announced:
            announced.append(missing)
            self.node.num_rows = dict.fromkeys(self.node.num_rows, 0)
            assembly = Assembly(self.file.config, self.shard, self.node)
            receive = receive or self.receive
            missing = load_tiles(assembly, missing, self.digests, self.cache, receive, PEER, progress)
        assert assembly.is_complete
        assert_same_weights(self.node, loaded_node(self.file, self.shard))
        return announced

    def path_of(self, index):
        name = self.digests[index].hex()
        return self.folder / name[:2] / name[2:]


@pytest.fixture
def worker(file, digests, tmp_path):
    return lambda: Worker(file, digests, tmp_path / "cache")


def test_a_first_start_takes_all_from_the_root_and_a_second_nothing(worker):
    calls: list[tuple[int, int]] = []
    first = worker()
    (announced,) = first.load(progress=lambda *call: calls.append(call))
    assert announced == first.sent == tiles_for(first.file.config, first.shard, tiles_of(first.file.config))
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] == sum(tiles_of(first.file.config)[index].num_bytes for index in announced)
    second = worker()
    assert second.load() == [[]]
    assert second.sent == []


def test_another_plan_takes_only_what_is_missing(worker):
    worker().load()
    other = worker()
    other.shard = make_plan(other.file.config, 3).shards[2]
    other.node = FakeNode(other.file.config, other.shard)
    (announced,) = other.load()
    assert announced == []  # the last third is in the last half
    other = worker()
    other.shard = make_plan(other.file.config, 3).shards[1]
    other.node = FakeNode(other.file.config, other.shard)
    needed = tiles_for(other.file.config, other.shard, tiles_of(other.file.config))
    (announced,) = other.load()
    assert 0 < len(announced) < len(needed)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_interrupted_transfer_goes_on_where_it_was(worker, part):
    first = worker()
    needed = tiles_for(first.file.config, first.shard, tiles_of(first.file.config))
    stop = int(len(needed) * part)

    def receive(index, size):
        if len(first.sent) == stop:
            raise Lost
        return first.receive(index, size)

    with pytest.raises(Lost):
        first.load(receive)
    second = worker()
    assert second.load() == [needed[stop:]]


@pytest.mark.parametrize("wrong", ["flipped", "cut", "longer"])
def test_what_is_not_what_was_announced_is_refused_and_not_kept(worker, wrong):
    bad = worker()
    needed = tiles_for(bad.file.config, bad.shard, tiles_of(bad.file.config))
    chosen = needed[5]

    def receive(index, size):
        data = bad.receive(index, size)
        changed = {"flipped": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"x"}
        return changed[wrong] if index == chosen else data

    tensor = tiles_of(bad.file.config)[chosen].tensor
    with pytest.raises(DllamaError, match=rf"^{tensor}: what {PEER} sent is not what it announced"):
        bad.load(receive)
    assert not worker().cache.has(bad.digests[chosen], tiles_of(bad.file.config)[chosen].num_bytes)


def test_rotten_tiles_are_asked_for_again(worker):
    first = worker()
    (needed,) = first.load()
    rotten, gone = [needed[4], needed[-3]], [needed[1], needed[9]]
    for index in rotten:
        raw = first.path_of(index).read_bytes()
        first.path_of(index).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    for index in gone:
        first.path_of(index).unlink()
    second = worker()
    assert second.load() == [gone, rotten]
    assert worker().load() == [[]]


def test_rot_without_a_cache_that_can_be_written_asks_for_all_that_is_lacking(worker):
    (needed,) = worker().load()
    bad = worker()
    raw = bad.path_of(needed[4]).read_bytes()
    bad.path_of(needed[4]).write_bytes(bytes(len(raw)))
    bad.path_of(needed[9]).unlink()
    bad.cache.problem = "no space"
    assert bad.load() == [[needed[9]], [needed[4], needed[9]]]


def test_a_full_cache_keeps_what_this_session_needs(worker):
    (needed,) = worker().load()
    other = worker()
    gone, kept = needed[:3], needed[3:]
    for index in needed:
        os.utime(other.path_of(index), (1, 1))
    for index in gone:
        other.path_of(index).unlink()
    other.cache = TileCache(other.folder, sum(tiles_of(other.file.config)[index].num_bytes for index in kept))
    assert other.load() == [gone]
    assert "full" in other.cache.problem
    assert worker().load() == [gone]


def test_tiles_that_vanish_and_come_back_do_not_count_as_loaded(worker, monkeypatch):
    (needed,) = worker().load()
    other = worker()  # another process finds a tile rotten, and has it again before this one announces
    path = other.path_of(needed[4])
    raw = path.read_bytes()
    missing = missing_tiles(tiles_of(other.file.config), needed, other.digests, other.cache)
    path.unlink()
    assembly = Assembly(other.file.config, other.shard, other.node)

    def progress(done, total):
        if done == total:
            path.write_bytes(raw)

    again = load_tiles(assembly, missing, other.digests, other.cache, other.receive, PEER, progress)
    assert again == [needed[4]]


def test_a_session_without_a_cache(worker, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    for _ in range(2):
        without = worker()
        (announced,) = without.load()
        assert announced == without.sent
        assert "cannot be written" in without.cache.problem
