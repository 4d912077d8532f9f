"""The root sends tiles: every rank gets what it wants, in order, and what fails ends all."""

import signal
import threading
import time
from collections import Counter

import pytest
from cluster_nodes import FakeNode, assert_same_weights, loaded_node, open_transfer_model  # type: ignore[import-not-found]

from dllama.cluster import transfer as module
from dllama.cluster.assembly import Assembly
from dllama.cluster.reading import TileReader
from dllama.cluster.tiles import tiles_for, tiles_of
from dllama.cluster.transfer import check_wanted, stream_tiles
from dllama.errors import BadFile, DllamaError, NotEnoughMemory
from dllama.formats.tensor import Tensor
from dllama.plan import make_plan

PEER = "10.0.0.1:9990"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    with open_transfer_model(tmp_path_factory.mktemp("transfer") / "model.m") as file:
        yield file


def threads_of_transfers() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("dllama-send")]


@pytest.fixture(autouse=True)
def no_threads_stay():
    yield
    assert threads_of_transfers() == []


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
    assert 0 < most <= max(limit, largest)


class Lost(Exception):
    pass


@pytest.fixture
def failed(monkeypatch):
    """Give the event that a transfer has noted a failure."""
    event, fail = threading.Event(), module._Budget.fail

    def noted_fail(budget, error):
        fail(budget, error)
        event.set()

    monkeypatch.setattr(module._Budget, "fail", noted_fail)
    return event


@pytest.mark.parametrize("buffered", [1, 32 << 20])
@pytest.mark.parametrize("tiles_before", [0, 7])
def test_a_sink_that_fails_ends_all(file, monkeypatch, buffered, tiles_before):
    monkeypatch.setattr(module, "_BUFFERED_BYTES", buffered)
    wanted = wanted_by(file, 3)

    def failing(index, data):
        if wanted[2].index(index) == tiles_before:
            raise Lost("worker 2 is gone")

    with pytest.raises(Lost, match="worker 2 is gone") as caught:
        stream_tiles(file, tiles_of(file.config), wanted, {0: Collector(), 1: Collector(), 2: failing})
    assert caught.value.__notes__ == ["while weights were sent to rank 2"]
    assert threads_of_transfers() == []


def test_others_get_nothing_after_a_failure(file, failed):
    wanted, others = wanted_by(file, 2), Collector()

    def failing(index, data):
        raise Lost

    def waiting(index, data):
        assert failed.wait(10)
        others(index, data)

    with pytest.raises(Lost):
        stream_tiles(file, tiles_of(file.config), wanted, {0: failing, 1: waiting})
    assert len(others.tiles) <= 1


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


def test_a_refused_thread_ends_all(file, monkeypatch):
    start, wanted = threading.Thread.start, wanted_by(file, 3)

    def refuse_the_second(thread):
        if thread.name == "dllama-send-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(NotEnoughMemory, match="refused a thread"):
        stream_tiles(file, tiles_of(file.config), wanted, {rank: Collector() for rank in wanted})


@pytest.mark.parametrize("buffered", [1, 1 << 30])  # while it reads, and while it waits for the last tiles to be sent
def test_ctrl_c_ends_all(file, monkeypatch, failed, buffered):
    monkeypatch.setattr(module, "_BUFFERED_BYTES", buffered)
    wanted, sink, reader = wanted_by(file, 2), Collector(), threading.get_ident()

    def interrupting(index, data):
        if index == wanted[1][3]:
            time.sleep(0.05)  # by now the other thread waits
            signal.pthread_kill(reader, signal.SIGINT)
            assert failed.wait(10)
        sink(index, data)

    with pytest.raises(KeyboardInterrupt):
        stream_tiles(file, tiles_of(file.config), {1: wanted[1]}, {1: interrupting})
    assert len(sink.tiles) == 4
    assert threads_of_transfers() == []


@pytest.mark.parametrize("wanted", [[], [4], [2, 4, 9], [2, 9]])
def test_a_worker_may_ask_for_what_it_needs(wanted):
    check_wanted(wanted, [2, 4, 9], PEER)


@pytest.mark.parametrize("wanted", [[3], [-1], [2, 2], [4, 2], [2, 4, 9, 10], [1 << 40]])
def test_a_worker_that_asks_for_anything_else_is_refused(wanted):
    with pytest.raises(DllamaError, match=f"^{PEER} asked for tiles that it does not need"):
        check_wanted(wanted, [2, 4, 9], PEER)
