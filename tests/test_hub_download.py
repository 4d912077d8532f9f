"""Downloads from a server that misbehaves: nothing is lost, nothing wrong is kept, and nothing takes forever."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from download_server import DownloadServer, model_bytes, serve, tokenizer_bytes  # type: ignore[import-not-found]

from dllama.hub import part_file, part_state
from dllama.hub.download import _CHUNK, Download, Patience
from dllama.hub.part_file import NotEnoughDisk, PartFile
from dllama.hub.part_state import part_path, state_path
from dllama.hub.probe import ask_facts
from dllama.hub.remote import Answer, DownloadFailed, Facts, Server

MODEL = model_bytes(600_000)
QUICK = Patience(attempts=4, first_wait_s=0.001, longest_wait_s=0.05, window_s=0.1, least_speed=100_000.0)
PATHS = ("/b4rtaz/repo/resolve/main/x_aa", "/b4rtaz/repo/resolve/main/x_ab")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[DownloadServer]:
    with serve({PATHS[0]: MODEL}) as state:
        yield state


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "dllama_model_x.m"


def fetch(state: DownloadServer, target: Path, patience: Patience = QUICK, token: str = "", asks: bool = True) -> bool:
    target.parent.mkdir(exist_ok=True)
    server = Server(state.url, token, timeout_s=0.5)
    urls = [state.url + path + "?download=true" for path in state.files]
    facts = ask_facts(server, urls)[0] if asks else [Facts()] * len(urls)
    return bool(Download(server, urls, target, facts, patience).run(len(MODEL)))


def only_file(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def whole(target: Path) -> bool:
    return target.read_bytes() == MODEL and only_file(target)


def test_a_good_server(server: DownloadServer, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(server, target)
    assert whole(target)
    assert server.sent_bytes == len(MODEL)
    assert "100%" in capsys.readouterr().out


def test_parts_are_joined(server: DownloadServer, target: Path) -> None:
    server.files = {PATHS[0]: MODEL[:123_456], PATHS[1]: MODEL[123_456:]}
    assert fetch(server, target)
    assert whole(target)
    assert server.sent_bytes == len(MODEL)


@pytest.mark.parametrize("redirects", [True, False])
def test_connections_that_end_early(server: DownloadServer, target: Path, redirects: bool) -> None:
    server.redirects = redirects
    server.faults.drop_after = 70_000
    assert fetch(server, target)
    assert whole(target)
    assert server.sent_bytes == len(MODEL)  # not a byte twice
    ranges = [seen.range for seen in server.gets() if seen.status in (200, 206)]
    assert ranges == [None, *(f"bytes={start}-" for start in range(70_000, len(MODEL), 70_000))]


def test_etags_that_change_from_server_to_server_do_no_harm_where_the_hash_is_known(
    server: DownloadServer, target: Path
) -> None:
    server.faults.etags = [f'"{number}"' for number in range(100)]
    server.faults.drop_after = 70_000
    assert fetch(server, target)
    assert server.sent_bytes == len(MODEL)
    assert {seen.if_range for seen in server.gets()} == {None}


def test_without_a_hash_the_etag_is_compared(server: DownloadServer, target: Path) -> None:
    server.gives_hash = False
    server.faults.drop_after = 200_000
    assert fetch(server, target) is False
    assert server.sent_bytes == len(MODEL)
    etag = f'"{hashlib.md5(MODEL).hexdigest()}"'
    served = [seen for seen in server.gets() if seen.status in (200, 206)]
    assert [seen.if_range for seen in served] == [None, etag, etag]


def test_range_that_is_refused(server: DownloadServer, target: Path) -> None:
    server.faults.drop_after = 400_000
    with pytest.raises(DownloadFailed):
        fetch(server, target, Patience(attempts=1))
    server.faults.drop_after, server.faults.statuses = None, [416]
    assert fetch(server, target)
    assert whole(target)


def test_goes_on_from_a_mirror_that_gives_no_hash(server: DownloadServer, target: Path) -> None:
    interrupted(server, target)
    server.gives_hash, server.faults.etags = False, ['"mirror"']
    assert fetch(server, target)  # compared with the hash that is known
    assert server.sent_bytes == len(MODEL) - 300_000
    assert whole(target)


def test_ranges_that_are_ignored(server: DownloadServer, target: Path) -> None:
    server.faults.ignore_ranges = True
    server.faults.drop_after = 400_000
    target.parent.mkdir()
    with pytest.raises(DownloadFailed, match=r"connection was cut; tried 4 times"):
        fetch(server, target)
    assert not target.exists()
    assert part_path(target).read_bytes() == MODEL[:400_000]
    server.faults.drop_after = None
    assert fetch(server, target)
    assert whole(target)


def test_ranges_that_are_ignored_by_a_server_without_etag_or_hash(server: DownloadServer, target: Path) -> None:
    server.faults.ignore_ranges, server.gives_hash, server.gives_etag = True, False, False
    server.faults.drop_after = 400_000
    with pytest.raises(DownloadFailed):
        fetch(server, target)
    server.faults.drop_after = None
    assert fetch(server, target) is False
    assert whole(target)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 0])
def test_answers_that_ask_for_patience(server: DownloadServer, target: Path, status: int) -> None:
    server.faults.statuses = [status] * 3
    assert fetch(server, target)
    assert whole(target)


@pytest.mark.parametrize("status", [429, 500, 0])
def test_answers_that_ask_for_too_much_patience(server: DownloadServer, target: Path, status: int) -> None:
    server.faults.statuses = [status] * 4
    server.faults.head_statuses = [429, 429]
    with pytest.raises(DownloadFailed, match="tried 4 times") as caught:
        fetch(server, target, asks=False)
    assert caught.value.exit_code == 6
    assert list(target.parent.iterdir()) == []
    assert len(server.gets()) == 4


def test_retry_after_is_heeded_within_bounds(
    server: DownloadServer, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("dllama.hub.download.time.sleep", waits.append)
    patience = Patience(first_wait_s=0.5, longest_wait_s=60.0)
    server.faults.statuses, server.faults.headers = [429, 503], {"Retry-After": "20"}
    assert fetch(server, target, patience)
    assert [wait for wait in waits if wait > 1] == [20, 20]  # the server sleeps too, shortly
    assert "127.0.0.1: answered 429; trying again in 20 s" in capsys.readouterr().out
    target.unlink()
    waits.clear()
    server.faults.statuses, server.faults.headers = [429], {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}
    assert fetch(server, target, patience)
    assert [wait for wait in waits if wait > 1] == [60]


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "HF_TOKEN"), (403, "accept the terms"), (404, "no such file"), (418, "of no use")]
)
def test_answers_that_are_final(server: DownloadServer, target: Path, status: int, advice: str) -> None:
    server.faults.statuses = [status] * 9
    with pytest.raises(DownloadFailed, match=f"answered {status}: .*{advice}") as caught:
        fetch(server, target)
    assert caught.value.exit_code == 6
    assert len(server.gets()) == 1
    assert list(target.parent.iterdir()) == []


def test_final_answers_are_known_before_anything_is_made(server: DownloadServer, target: Path) -> None:
    server.faults.head_statuses = [404]
    with pytest.raises(DownloadFailed, match="x_aa: answered 404"):
        fetch(server, target)
    assert server.gets() == []


def test_a_server_that_answers_no_head(server: DownloadServer, target: Path) -> None:
    server.faults.head_statuses = [405]
    assert fetch(server, target)
    assert whole(target)


@pytest.mark.parametrize("field", ["length_delta", "body_delta"])
@pytest.mark.parametrize("delta", [-100, 100])
@pytest.mark.parametrize("gives_hash", [True, False])
def test_lies_about_lengths(server: DownloadServer, target: Path, field: str, delta: int, gives_hash: bool) -> None:
    setattr(server.faults, field, delta)
    server.gives_hash = gives_hash
    if (field, delta) == ("body_delta", 100):  # nobody reads what comes behind the length that was announced
        assert fetch(server, target) is gives_hash
        assert whole(target)
        return
    with pytest.raises(DownloadFailed, match="tried 4 times"):
        fetch(server, target)
    assert not target.exists()
    assert len(server.gets()) <= 12


@pytest.mark.parametrize("gives_hash", [True, False])
@pytest.mark.parametrize("delta", [-100, 0, 100])
def test_bodies_without_a_length(server: DownloadServer, target: Path, delta: int, gives_hash: bool) -> None:
    server.faults.chunked, server.faults.body_delta, server.gives_hash = True, delta, gives_hash
    if delta == 0 or (delta > 0 and gives_hash):
        assert fetch(server, target) is gives_hash
        assert whole(target)
    else:
        with pytest.raises(DownloadFailed):
            fetch(server, target)
        assert not target.exists()


@pytest.mark.parametrize("delta", [-50_000, 50_000, 10_000_000])
def test_lies_about_ranges(server: DownloadServer, target: Path, delta: int) -> None:
    server.faults.range_delta, server.faults.drop_after = delta, 100_000
    with pytest.raises(DownloadFailed, match=r"asked for bytes from 100000 on"):
        fetch(server, target)
    assert part_path(target).read_bytes() == MODEL[:100_000]


def test_a_cut_line_without_hash_or_etag_begins_anew_and_says_why(target: Path) -> None:
    with serve({PATHS[0]: MODEL}, gives_hash=False, gives_etag=False) as server:
        server.faults.drop_after = len(MODEL) // 2
        with pytest.raises(DownloadFailed, match="neither a hash nor an ETag"):
            fetch(server, target)
        server.faults.drop_after = None
        assert not fetch(server, target)
        assert target.read_bytes() == MODEL


def test_a_416_throws_nothing_away_where_the_hash_is_known(server: DownloadServer, target: Path) -> None:
    server.faults.drop_after = len(MODEL) // 2
    with pytest.raises(DownloadFailed):
        fetch(server, target, Patience(attempts=1, first_wait_s=0.001))
    there = part_path(target).stat().st_size
    sent = server.sent_bytes
    server.faults.drop_after = None
    server.faults.statuses = [416]
    assert fetch(server, target)
    assert target.read_bytes() == MODEL
    assert server.sent_bytes - sent <= len(MODEL) - there + _CHUNK


@pytest.mark.parametrize("raw", [b"[" * 200_000, b"{}", b"[1]", b"\xff", b" " * (2 << 20)])
def test_odd_states_count_as_none(server: DownloadServer, target: Path, raw: bytes) -> None:
    target.parent.mkdir()
    part_path(target).write_bytes(MODEL[:1000])
    state_path(target).write_bytes(raw)
    assert fetch(server, target)
    assert target.read_bytes() == MODEL


def test_a_state_that_is_a_pipe(server: DownloadServer, target: Path) -> None:
    target.parent.mkdir()
    os.mkfifo(state_path(target))
    assert fetch(server, target)


def test_a_file_that_was_cut_on_the_server(server: DownloadServer, target: Path) -> None:
    server.faults.drop_after = 400_000
    with pytest.raises(DownloadFailed):
        fetch(server, target, Patience(attempts=1))
    other = model_bytes(200_000, seed=1)
    server.files[PATHS[0]] = other
    server.faults.drop_after = None
    assert fetch(server, target)
    assert target.read_bytes() == other


@pytest.mark.parametrize("gives_hash", [True, False])
def test_a_file_that_was_replaced_between_attempts(server: DownloadServer, target: Path, gives_hash: bool) -> None:
    server.gives_hash = gives_hash
    server.faults.drop_after = 300_000
    with pytest.raises(DownloadFailed):
        fetch(server, target, Patience(attempts=1))
    other = model_bytes(600_000, seed=1)
    assert len(other) == len(MODEL)
    server.files[PATHS[0]] = other
    server.faults.drop_after = None
    assert fetch(server, target, asks=False) is gives_hash
    assert target.read_bytes() == other


def test_a_file_that_is_another_each_time(server: DownloadServer, target: Path) -> None:
    server.gives_hash = False
    server.faults.etags = [f'"{number}"' for number in range(100)]
    server.faults.drop_after = 300_000
    with pytest.raises(DownloadFailed, match="another file each time"):
        fetch(server, target)
    assert len(server.gets()) < 20


def test_parts_of_different_versions_are_not_joined(server: DownloadServer, target: Path) -> None:
    server.files = {PATHS[0]: MODEL[:300_000], PATHS[1]: MODEL[300_000:]}
    server.faults.drop_after = 100_000
    url = server.url
    target.parent.mkdir()
    asked = ask_facts(Server(url), [url + path for path in PATHS])[0]

    class Replaces(Server):
        """The first part is replaced while the second is fetched."""

        def ask(self, url: str, method: str = "GET", start: int = 0, etag: str = "") -> Answer:
            if url.endswith("ab") and method == "GET":
                server.files[PATHS[0]] = MODEL[:300_000].replace(b"a", b"b")
            return super().ask(url, method, start, etag)

    with pytest.raises(DownloadFailed, match="was replaced on the server meanwhile"):
        Download(Replaces(url), [url + path for path in PATHS], target, asked, QUICK).run(len(MODEL))
    assert not target.exists()
    server.files[PATHS[0]] = MODEL[:300_000]
    assert fetch(server, target)
    assert whole(target)


def test_a_wrong_byte_costs_one_more_copy(
    server: DownloadServer, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.wrong_bytes = 1
    assert fetch(server, target)
    assert whole(target)
    assert server.sent_bytes == 2 * len(MODEL)
    assert "came wrong (SHA-256 " in capsys.readouterr().out


def test_a_wrong_byte_in_the_second_part_leaves_the_first(server: DownloadServer, target: Path) -> None:
    server.files = {PATHS[0]: MODEL[:500_000], PATHS[1]: MODEL[500_000:]}
    server.faults.wrong_bytes = 2
    with pytest.raises(DownloadFailed, match="x_aa: came wrong twice"):
        fetch(server, target)
    server.faults.wrong_hash_of, server.faults.wrong_bytes = PATHS[1], 0
    with pytest.raises(DownloadFailed, match="x_ab: came wrong twice"):
        fetch(server, target)
    server.faults.wrong_hash_of, server.sent_bytes = "", 0
    assert fetch(server, target)
    assert whole(target)
    assert server.sent_bytes == len(MODEL) - 500_000


def test_a_wrong_hash_names_both(server: DownloadServer, target: Path) -> None:
    server.faults.wrong_hash_of = PATHS[0]
    found, expected = (hashlib.sha256(MODEL + tail).hexdigest() for tail in (b"", b"x"))
    with pytest.raises(DownloadFailed, match=f"expected SHA-256 {expected}, found {found}"):
        fetch(server, target)
    assert server.sent_bytes == 2 * len(MODEL)
    assert list(target.parent.iterdir()) == []


def test_damage_on_the_disk_is_found(server: DownloadServer, target: Path) -> None:
    server.faults.drop_after = 300_000
    with pytest.raises(DownloadFailed):
        fetch(server, target, Patience(attempts=1))
    with part_path(target).open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    server.faults.drop_after = None
    assert fetch(server, target)
    assert whole(target)


def test_without_a_hash_the_header_is_checked(server: DownloadServer, target: Path) -> None:
    server.gives_hash = False
    server.files[PATHS[0]] = b"<html>Please log in to this network</html>" * 10_000
    with pytest.raises(DownloadFailed, match=r"thrown away: .*magic number"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []
    server.files[PATHS[0]] = MODEL[:-1]
    with pytest.raises(DownloadFailed, match=rf"expected {len(MODEL)} bytes, by its header, found {len(MODEL) - 1}"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []
    server.files[PATHS[0]] = MODEL
    assert fetch(server, target) is False
    assert whole(target)


def test_a_slow_line_is_used(server: DownloadServer, target: Path) -> None:
    server.files[PATHS[0]] = data = model_bytes(60_000)
    server.faults.rate = 200_000.0
    assert fetch(server, target)
    assert target.read_bytes() == data
    assert len([seen for seen in server.gets() if seen.status == 200]) == 1


def test_a_line_that_has_become_slow_is_asked_for_anew(server: DownloadServer, target: Path) -> None:
    server.files[PATHS[0]] = data = model_bytes(120_000)
    server.faults.rate = 150_000.0
    patience = Patience(first_wait_s=0.001, window_s=0.2, least_speed=1e6)
    assert fetch(server, target, patience)
    assert target.read_bytes() == data
    assert len([seen for seen in server.gets() if seen.status == 206]) >= 1


def test_a_line_that_brings_next_to_nothing_is_given_up(server: DownloadServer, target: Path) -> None:
    server.faults.drop_after = 10
    with pytest.raises(DownloadFailed, match="tried 4 times"):
        fetch(server, target)


def test_a_server_that_falls_silent(server: DownloadServer, target: Path) -> None:
    server.faults.drop_after, server.faults.silence_s = 10_000, 1.0
    with pytest.raises(DownloadFailed, match="no answer; tried 2 times"):
        fetch(server, target, Patience(attempts=2, first_wait_s=0.001))


def test_a_full_disk_keeps_what_is_there(server: DownloadServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, room = PartFile.append, 300_000

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            free = room - self.file.tell()  # type: ignore[attr-defined]
            if free <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[:free])  # type: ignore[attr-defined]

    def full(self: PartFile, data: bytes) -> None:
        if not isinstance(self._file, Full):
            self._file = Full(self._file)
        append(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "append", full)
        with pytest.raises(NotEnoughDisk, match="the disk is full") as caught:
            fetch(server, target)
    assert caught.value.exit_code == 5
    assert part_path(target).stat().st_size == room
    server.sent_bytes = 0
    assert fetch(server, target)
    assert whole(target)
    assert server.sent_bytes == len(MODEL) - room


def test_two_at_once_fetch_once(server: DownloadServer, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults.rate = 2_000_000.0
    target.parent.mkdir()
    threads = [threading.Thread(target=fetch, args=(server, target)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(target)
    assert server.sent_bytes == len(MODEL)
    assert "Another program is fetching dllama_model_x.m" in capsys.readouterr().out


# --- what is trusted after an end without warning ------------------------------------------------------------------


def interrupted(server: DownloadServer, target: Path) -> dict[str, object]:
    server.faults.drop_after = 300_000
    with pytest.raises(DownloadFailed):
        fetch(server, target, Patience(attempts=1))
    server.faults.drop_after, server.sent_bytes = None, 0
    state: dict[str, object] = json.loads(state_path(target).read_text())
    return state


def test_bytes_behind_the_state_count_while_the_system_runs(server: DownloadServer, target: Path) -> None:
    state = interrupted(server, target)
    state_path(target).write_text(json.dumps({**state, "synced": 1000}))
    assert fetch(server, target)
    assert server.sent_bytes == len(MODEL) - 300_000
    assert whole(target)


@pytest.mark.parametrize("gives_hash", [True, False])
def test_bytes_behind_the_state_do_not_count_after_a_power_failure(
    server: DownloadServer, target: Path, gives_hash: bool
) -> None:
    server.gives_hash = gives_hash
    state = interrupted(server, target)
    state_path(target).write_text(json.dumps({**state, "synced": 1000, "boot": "another"}))
    assert fetch(server, target) is gives_hash
    assert server.sent_bytes == len(MODEL) - 1000
    assert whole(target)


class Crash(BaseException):
    """The program ends here."""


@contextlib.contextmanager
def crashing_at(step: int) -> Iterator[list[str]]:
    """Let nothing reach the disk from the given step on, as if the program had been killed before it."""
    steps: list[str] = []

    def watched(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            steps.append(name)
            if len(steps) == step:
                raise Crash
            if len(steps) > step:
                raise OSError("dead")
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (PartFile, "_cut")):
            patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield steps


@pytest.mark.parametrize("gives_hash", [True, False])
def test_an_end_before_any_step_loses_at_most_what_was_on_its_way(
    server: DownloadServer, target: Path, gives_hash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_file, "_SYNC_BYTES", 100_000)
    server.gives_hash = gives_hash
    server.files = {PATHS[0]: MODEL[:300_000], PATHS[1]: MODEL[300_000:]}
    for step in itertools.count(1):
        with crashing_at(step) as steps, contextlib.suppress(Crash):
            fetch(server, target)
        assert not target.exists() or target.read_bytes() == MODEL
        if len(steps) < step:
            break
        if not target.exists():
            there = part_path(target).stat().st_size
            server.seen.clear()
            fetch(server, target)
            served = [seen for seen in server.gets() if seen.status in (200, 206)]
            asked = sum(len(server.files[seen.path]) - int((seen.range or "bytes=0-")[6:-1]) for seen in served)
            # Without a hash only what is certainly on the disk counts, else all that is in the file.
            assert asked <= len(MODEL) - there + (0 if gives_hash else 100_000 + _CHUNK)
        part_state.remove_stray_state(target)
        assert whole(target)
        target.unlink()
    assert step > 20
    assert {*steps} == {"fsync", "replace", "unlink", "_cut"}


def test_bytes_without_hash_or_etag_do_not_count(server: DownloadServer, target: Path) -> None:
    server.gives_hash = server.gives_etag = False
    interrupted(server, target)
    fetch(server, target)
    assert server.sent_bytes == len(MODEL)
    assert whole(target)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"sources": 1}', '{"sources": ["x_aa"], "done": [{}]}', "null", "\xff", "[" * 200_000],
)
def test_a_damaged_state_is_that_of_nothing(server: DownloadServer, target: Path, text: str) -> None:
    interrupted(server, target)
    state_path(target).write_text(text, "latin-1")
    assert fetch(server, target)
    assert server.sent_bytes == len(MODEL)
    assert whole(target)


@pytest.mark.parametrize(
    "change",
    [
        {"synced": -1},
        {"synced": True},
        {"synced": "9"},
        {"boot": None},
        {"sources": ["other"]},
        {"done": [{"size": None, "sha256": None, "etag": ""}]},
        {"done": [{"size": 10**9, "sha256": None, "etag": ""}]},
        {"done": [{"size": -5, "sha256": None, "etag": ""}]},
        {"done": [{"size": 5, "sha256": None, "etag": ""}] * 3},
        {"current": {"size": 5, "sha256": "0" * 64, "etag": ""}},
        {"current": 3},
    ],
)
def test_a_state_that_lies_does_no_harm(server: DownloadServer, target: Path, change: dict[str, object]) -> None:
    state = interrupted(server, target)
    state_path(target).write_text(json.dumps({**state, **change}))
    assert fetch(server, target)
    assert whole(target)


def test_a_part_file_that_was_cut(server: DownloadServer, target: Path) -> None:
    interrupted(server, target)
    with part_path(target).open("r+b") as file:
        file.truncate(50_000)
    assert fetch(server, target)
    assert server.sent_bytes == len(MODEL) - 50_000
    assert whole(target)


def test_a_part_file_that_was_cut_inside_finished_parts(server: DownloadServer, target: Path) -> None:
    server.files = {PATHS[0]: MODEL[:200_000], PATHS[1]: MODEL[200_000:]}
    interrupted(server, target)
    with part_path(target).open("r+b") as file:
        file.truncate(50_000)
    assert fetch(server, target)
    assert server.sent_bytes == len(MODEL)
    assert whole(target)


def test_an_end_between_the_last_byte_and_the_name(server: DownloadServer, target: Path) -> None:
    server.files[PATHS[0]] = MODEL
    interrupted(server, target)
    part_path(target).write_bytes(MODEL)
    assert fetch(server, target)
    assert server.sent_bytes == 0
    assert whole(target)


def test_what_is_there_is_told_without_touching_it(server: DownloadServer, target: Path) -> None:
    assert part_state.bytes_there(target, ("x_aa",)) == 0
    interrupted(server, target)
    before = {path: path.read_bytes() for path in target.parent.iterdir()}
    assert part_state.bytes_there(target, ("x_aa",)) == 300_000
    assert part_state.bytes_there(target, ("other",)) == 0
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == before


def test_a_part_that_is_a_link_is_not_followed(server: DownloadServer, target: Path, tmp_path: Path) -> None:
    target.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    part_path(target).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        fetch(server, target)
    assert precious.read_text() == "mine"
    assert not target.exists()


def test_a_tokenizer(server: DownloadServer, target: Path) -> None:
    server.files = {PATHS[0]: tokenizer_bytes()}
    path = target.with_suffix(".t")
    assert fetch(server, path)
    assert path.read_bytes() == tokenizer_bytes()
