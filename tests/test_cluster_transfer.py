"""Tiles on their way: every rank gets what it wants, in order; what fails ends all; what rots is sent again."""

import signal
import threading
import time
from collections import Counter

import pytest
from cluster_nodes import FakeNode, assert_same_weights, loaded_node  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.cluster import transfer as module
from dllama.cluster.assembly import Assembly
from dllama.cluster.cache import TileCache
from dllama.cluster.manifest import make_manifest
from dllama.cluster.reading import TileReader
from dllama.cluster.tiles import tiles_for, tiles_of
from dllama.cluster.transfer import load_tiles, missing_tiles, stream_tiles
from dllama.errors import BadFile, DllamaError
from dllama.formats.m_file import open_m_file
from dllama.formats.tensor import Tensor
from dllama.plan import make_plan

PEER = "10.0.0.1:9990"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("transfer") / "model.m"
    sizes = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 32 * 70, "vocab_size": 5000}
    write_tiny_model(path, tiny_config(**sizes))
    with open_m_file(path) as file:
        yield file


@pytest.fixture(scope="module")
def digests(file):
    return make_manifest(file).digests()


def threads_of_transfers() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("dllama-send", "dllama-tiles"))]


@pytest.fixture(autouse=True)
def no_threads_stay():
    yield
    assert threads_of_transfers() == []


# --- the root's side


class Collector:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.tiles: dict[int, bytes] = {}

    def __call__(self, index, data) -> None:
        assert index not in self.tiles
        self.tiles[index] = bytes(data)


def wanted_by(file, world_size) -> dict[int, list[int]]:
    plan = make_plan(file.config, world_size)
    return {rank: tiles_for(file.config, shard, tiles_of(file.config)) for rank, shard in enumerate(plan.shards)}


@pytest.mark.parametrize("buffered", [1, 100_000, 32 << 20])
def test_every_rank_gets_its_tiles_in_order(file, monkeypatch, buffered):
    monkeypatch.setattr(module, "_BUFFERED_BYTES", buffered)
    tiles, wanted, reader = tiles_of(file.config), wanted_by(file, 3), TileReader(file)
    wanted[1] = wanted[1][::3]  # the rest is in its cache
    sinks = {rank: Collector() for rank in wanted}
    calls: list[tuple[int, int, int]] = []
    stream_tiles(file, tiles, wanted, sinks, lambda *call: calls.append(call))
    for rank, sink in sinks.items():
        assert list(sink.tiles) == wanted[rank]
        assert all(data == reader.read(tiles[index]) for index, data in sink.tiles.items())
        total = sum(map(len, sink.tiles.values()))
        done = [call[1:] for call in calls if call[0] == rank]
        assert done == sorted(done)
        assert done[-1] == (total, total)


def test_an_assembly_is_a_sink(file):
    tiles, plan = tiles_of(file.config), make_plan(file.config, 2)
    node = FakeNode(file.config, plan.shards[0])
    assembly = Assembly(file.config, plan.shards[0], node)
    wanted = {0: assembly.needed, 1: [5, 9]}
    stream_tiles(file, tiles, wanted, {0: assembly.take, 1: Collector()})
    assert assembly.is_complete
    assert_same_weights(node, loaded_node(file, plan.shards[0]))


def test_nothing_is_read_twice_nor_what_nobody_wants(file, monkeypatch):
    read: Counter[tuple[str, int]] = Counter()
    read_rows = Tensor.read_rows

    def counting_read_rows(tensor, begin, end, out=None):
        read.update((tensor.name, row) for row in range(begin, end))
        return read_rows(tensor, begin, end, out)

    monkeypatch.setattr(Tensor, "read_rows", counting_read_rows)
    tiles, wanted = tiles_of(file.config), wanted_by(file, 3)
    stream_tiles(file, tiles, wanted, {rank: Collector() for rank in wanted})
    assert set(read.values()) == {1}
    read.clear()
    one = next(index for index, tile in enumerate(tiles) if tile.tensor == "layers.1.gate_proj")
    stream_tiles(file, tiles, {1: [one], 2: []}, {1: Collector(), 2: Collector()})
    assert set(read) == {("layers.1.gate_proj", row) for row in range(tiles[one].rows.size)}


def test_no_rank_waits_for_another_while_there_is_room(file):
    tiles, wanted, may_go = tiles_of(file.config), wanted_by(file, 2), threading.Event()
    fast = Collector()

    def slow(index, data):
        assert may_go.wait(10)

    def progress(rank, done, total):
        if (rank, done) == (0, total):
            may_go.set()

    stream_tiles(file, tiles, wanted, {0: fast, 1: slow}, progress)
    assert len(fast.tiles) == len(wanted[0])


def test_what_waits_is_bounded(file, monkeypatch):
    limit, largest = 100_000, max(tile.num_bytes for tile in tiles_of(file.config))
    monkeypatch.setattr(module, "_BUFFERED_BYTES", limit)
    lock, waiting, most = threading.Lock(), 0, 0
    read = TileReader.read

    def counting_read(reader, tile):
        nonlocal waiting, most
        data = read(reader, tile)
        with lock:
            waiting += len(data)
            most = max(most, waiting)
        return data

    def sink(index, data):
        nonlocal waiting
        time.sleep(0.0005)
        with lock:
            waiting -= len(data)

    monkeypatch.setattr(TileReader, "read", counting_read)
    stream_tiles(file, tiles_of(file.config), {1: wanted_by(file, 2)[1]}, {1: sink})
    assert limit / 2 < most <= limit + largest


class Lost(Exception):
    pass


@pytest.mark.parametrize("buffered", [1, 32 << 20])
@pytest.mark.parametrize("tiles_before", [0, 7])
def test_a_sink_that_fails_ends_all(file, monkeypatch, buffered, tiles_before):
    monkeypatch.setattr(module, "_BUFFERED_BYTES", buffered)
    wanted, others = wanted_by(file, 3), Collector()

    def failing(index, data):
        if wanted[2].index(index) == tiles_before:
            raise Lost("worker 2 is gone")

    with pytest.raises(Lost, match="worker 2 is gone") as caught:
        stream_tiles(file, tiles_of(file.config), wanted, {0: Collector(), 1: others, 2: failing})
    assert caught.value.__notes__ == ["while weights were sent to rank 2"]
    assert threads_of_transfers() == []
    before = len(others.tiles)
    time.sleep(0.01)
    assert len(others.tiles) == before < len(wanted[1])


def test_the_last_tile_may_fail_too(file):
    wanted = wanted_by(file, 2)

    def failing(index, data):
        if index == wanted[1][-1]:
            raise Lost

    with pytest.raises(Lost):
        stream_tiles(file, tiles_of(file.config), wanted, {0: Collector(), 1: failing})


def test_a_file_that_is_cut_ends_all(file, monkeypatch):
    def read(_reader, tile):
        raise BadFile("model.m", f"tensor {tile.tensor}", "rows", "the end of the file")

    monkeypatch.setattr(TileReader, "read", read)
    wanted = wanted_by(file, 2)
    with pytest.raises(BadFile):
        stream_tiles(file, tiles_of(file.config), wanted, {0: Collector(), 1: Collector()})


@pytest.mark.parametrize("buffered", [1, 1 << 30])  # while it reads, and while it waits for the last tiles to be sent
def test_ctrl_c_ends_all(file, monkeypatch, buffered):
    monkeypatch.setattr(module, "_BUFFERED_BYTES", buffered)
    wanted, sink, reader = wanted_by(file, 2), Collector(), threading.get_ident()

    def interrupting(index, data):
        if index == wanted[1][3]:
            time.sleep(0.05)  # by now the other thread waits
            signal.pthread_kill(reader, signal.SIGINT)
            time.sleep(0.05)
        sink(index, data)

    with pytest.raises(KeyboardInterrupt):
        stream_tiles(file, tiles_of(file.config), {1: wanted[1]}, {1: interrupting})
    assert len(sink.tiles) <= 5
    assert threads_of_transfers() == []


# --- the worker's side


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
