"""``launch.py hf:ORG/MODEL`` against a server on loopback: what is fetched, what is made of it, what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_safetensors  # type: ignore[import-not-found]
from download_server import DownloadServer, serve  # type: ignore[import-not-found]

from dllama.cli.models import state_of
from dllama.errors import NotEnoughMemory, UnsupportedModel, UsageError
from dllama.hub import checkout, folders, launcher, repository, repository_plan
from dllama.hub.part_file import NotEnoughDisk
from dllama.hub.remote import DownloadFailed
from dllama.hub.repository import Reference, parse_reference

PAGE, COMMIT, OTHER = "Tiny/Model-1B", "a" * 40, "b" * 40
NAME = "tiny_model_1b"
CONFIG = {"model_type": "llama", "vocab_size": 8, "hidden_size": 32, "torch_dtype": "float32"}
SMALL = {
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
}
# Stands for .venv's Python: finds every model right, and makes the file that the converter would make, of all weights.
CONVERTER = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/words"
case "$1" in *check_hf.py) exit 0;; esac
cat "$2"/*.safetensors > "dllama_model_$4_$3.m"
"""


def safetensors(tmp_path: Path, seed: int) -> bytes:
    path = tmp_path / f"{seed}.safetensors"
    values = np.random.default_rng(seed).standard_normal((1000, 8)).astype("<f4")
    write_safetensors(path, {f"t{seed}": values})
    return path.read_bytes()


class Hub:
    """A server with repositories, a disk for models, and a launcher whose set-up is noted instead of done."""

    def __init__(self, tmp_path: Path, server: DownloadServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp_path, self.server, self.models = tmp_path, server, tmp_path / "models"
        self.command: list[str] = []
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("DLLAMA_MODELS", str(self.models))
        monkeypatch.setattr(checkout, "ROOT", tmp_path)
        monkeypatch.setattr(checkout, "VENV", tmp_path / ".venv")
        monkeypatch.setattr(checkout, "check_can_set_up", lambda: None)
        monkeypatch.setattr(checkout, "set_up", lambda _extras: None)
        monkeypatch.setattr(os, "execv", self._exec)
        (tmp_path / "launch.py").touch()
        self.python = tmp_path / ".venv" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        self.python.write_text(CONVERTER)
        self.python.chmod(0o755)

    def _exec(self, _path: str, command: list[str]) -> None:
        self.command = command
        raise SystemExit(0)

    def publish(self, files: dict[str, bytes], commit: str = COMMIT, revisions: tuple[str, ...] = ("main",)) -> None:
        listing = {"sha": commit, "siblings": [{"rfilename": name} for name in files]}
        for revision in (*revisions, commit):
            self.server.files[f"/api/models/{PAGE}/revision/{revision}"] = json.dumps(listing).encode()
        for name, data in files.items():
            path = f"/{PAGE}/resolve/{commit}/{name}"
            self.server.files[path] = data
            if name in SMALL or name.endswith(".index.json"):
                self.server.direct.add(path)

    def run(self, *arguments: str) -> int | str | None:
        self.command = []
        try:
            return launcher.main(list(arguments))
        except SystemExit as end:
            return end.code

    def files(self, name: str = NAME) -> list[str]:
        return sorted(path.name for path in (self.models / name).iterdir())

    def fetched(self) -> set[str]:
        return {seen.path.rpartition("/")[2] for seen in self.server.gets() if "/resolve/" in seen.path}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve({}) as server:
        yield Hub(tmp_path, server, monkeypatch)


def publish_sharded(hub: Hub, commit: str = COMMIT, seed: int = 0) -> dict[str, bytes]:
    shards = {f"model-0000{number}-of-00002.safetensors": safetensors(hub.tmp_path, seed + number) for number in (1, 2)}
    index = {"weight_map": {f"t{seed + number}": name for number, name in enumerate(shards, 1)}}
    extra = {"pytorch_model.bin": b"x", "original/consolidated.00.pth": b"x", "consolidated.safetensors": b"x"}
    files = {**SMALL, "model.safetensors.index.json": json.dumps(index).encode(), **shards, **extra, "README.md": b"x"}
    hub.publish(files, commit)
    return shards


def test_fetches_makes_and_runs(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shards = publish_sharded(hub)
    assert hub.run(f"hf:{PAGE}", "-y") == 0
    model = hub.models / NAME / f"dllama_model_{NAME}_q40.m"
    assert model.read_bytes() == b"".join(shards.values())
    assert hub.files() == sorted([model.name, "origin.json", *SMALL])
    assert hub.command[1:6] == ["chat", "--model", str(model), "--tokenizer", str(model.parent)]
    assert hub.fetched() == {*SMALL, *shards, "model.safetensors.index.json"}
    converters = hub.tmp_path / "converters"
    assert (hub.python.parent / "words").read_text().splitlines() == [
        f"{converters / 'check_hf.py'} {model.parent} q40 4096",
        f"{converters / 'convert_hf.py'} {model.parent} q40 {NAME}",
    ]
    assert re.search(r"64\.\d kB of fetched weights were removed", capsys.readouterr().out)
    tokens = {(seen.host, seen.token) for seen in hub.server.gets()}
    assert tokens == {(hub.server.url[7:], "Bearer hf_secret"), (hub.server.other_url[7:], None)}
    assert (hub.tmp_path / f"run_{NAME}.sh").exists()


def test_a_file_that_is_all_is_fetched_without_the_index(hub: Hub) -> None:
    index = json.dumps({"weight_map": {"t": "other.safetensors"}}).encode()
    whole = {"model.safetensors": safetensors(hub.tmp_path, 1)}
    hub.publish({**SMALL, "model.safetensors.index.json": index, **whole, "other.safetensors": b"x"})
    assert hub.run(f"hf:{PAGE}", "-y", "-skip-run") == 0
    assert hub.fetched() == {*SMALL, "model.safetensors"}


def test_what_is_there_is_run(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_sharded(hub)
    assert hub.run(f"hf:{PAGE}", "-y", "-skip-run") == 0
    assert hub.command == []
    hub.server.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.run(f"hf:{PAGE}") == 0
    assert hub.command
    assert hub.server.seen == []
    found = folders.find_model(NAME)
    assert found is not None
    assert {path.name for path in found.files} == {*hub.files()}


def test_an_interrupted_download_stays_with_its_commit(hub: Hub) -> None:
    shards = publish_sharded(hub)
    second = f"/{PAGE}/resolve/{COMMIT}/model-00002-of-00002.safetensors"
    data = hub.server.files[second]
    hub.server.files[second] = data[:-1] + b"!"
    hub.server.faults.wrong_hash_of = second
    assert hub.run(f"hf:{PAGE}", "-y") == DownloadFailed.exit_code
    assert folders.find_model(NAME) is None
    unfinished = folders.find_installed(NAME)
    assert unfinished is not None
    assert state_of(unfinished).problem == f"python3 launch.py hf:{PAGE} goes on with the download"
    hub.server.files[second], hub.server.faults.wrong_hash_of = data, ""
    publish_sharded(hub, OTHER, seed=5)  # main moves on
    assert hub.run(f"hf:{PAGE}", "-y") == 0
    assert (hub.models / NAME / f"dllama_model_{NAME}_q40.m").read_bytes() == b"".join(shards.values())


def test_another_revision_needs_room_made(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    assert hub.run(f"hf:{PAGE}", "-y") == 0
    assert hub.run(f"hf:{PAGE}@v2", "-y") == 2
    assert f"holds hf:{PAGE}; remove it first: dllama models remove {NAME}" in capsys.readouterr().err


def test_revision_with_a_slash(hub: Hub) -> None:
    hub.publish({**SMALL, "model.safetensors": safetensors(hub.tmp_path, 1)}, revisions=("refs%2Fpr%2F3",))
    assert hub.run(f"hf:{PAGE}@refs/pr/3", "-y") == 0
    assert json.loads((hub.models / NAME / "origin.json").read_text())["commit"] == COMMIT


def test_a_model_that_was_made_needs_no_weights(hub: Hub) -> None:
    publish_sharded(hub)
    assert hub.run(f"hf:{PAGE}", "-y") == 0
    (hub.models / NAME / "tokenizer.json").unlink()
    hub.server.seen.clear()
    assert hub.run(f"hf:{PAGE}", "-y") == 0
    assert hub.fetched() == {"tokenizer.json", "config.json", "model.safetensors.index.json"}


def test_weights_that_somebody_else_put_there_stay(hub: Hub) -> None:
    folder = hub.models / NAME
    folder.mkdir(parents=True)
    for name in (f"{NAME}.m", f"{NAME}.t", "model.safetensors"):
        (folder / name).write_bytes(b"x")
    assert hub.run(f"hf:{PAGE}") == 0
    assert "model.safetensors" in hub.files()
    (folder / f"{NAME}.m").unlink()
    publish_sharded(hub)
    assert hub.run(f"hf:{PAGE}", "-y") == 2
    assert hub.files() == ["model.safetensors", f"{NAME}.t"]


def test_a_converter_that_fails_keeps_what_was_fetched(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    hub.python.write_text('#!/bin/sh\ncase "$1" in *convert_hf.py) exit 3;; esac\n')
    assert hub.run(f"hf:{PAGE}", "-y") == 3
    assert "no model was made; what was fetched is kept" in capsys.readouterr().err
    assert "model-00002-of-00002.safetensors" in hub.files()


def test_weights_are_fetched_once_all_else_is_right(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    hub.python.write_text('#!/bin/sh\necho "🚨 config.json: wrong" >&2\nexit 3\n')
    assert hub.run(f"hf:{PAGE}", "-y") == 3
    assert capsys.readouterr().err == f"🚨 hf:{PAGE}: config.json: wrong; its weights were not fetched\n"
    assert hub.files() == sorted(["origin.json", *SMALL])


def test_memory_is_compared_where_the_model_is_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_sharded(hub)
    monkeypatch.setattr(repository_plan, "free_memory", lambda: 8000)
    for flags in (["-y"], ["--dry-run"]):
        assert hub.run(f"hf:{PAGE}", *flags) == NotEnoughMemory.exit_code
        out, err = capsys.readouterr()
        assert "needs at least 8.89 kB of memory, but 8.00 kB are free" in out + err
    assert not hub.models.exists()
    assert hub.run(f"hf:{PAGE}", "-y", "--workers", "10.0.0.2:9990") == 0
    assert "check_hf.py" in (words := (hub.python.parent / "words").read_text())
    assert "4096" not in words


def test_who_waits_for_another_launcher_takes_what_that_made(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    folder = hub.models / NAME
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    launched = threading.Thread(target=hub.run, args=(f"hf:{PAGE}", "-y"), daemon=True)
    launched.start()
    out, end = "", time.monotonic() + 20
    while "Another program works on" not in out and time.monotonic() < end:
        time.sleep(0.01)
        out += capsys.readouterr().out
    (folder / f"dllama_model_{NAME}_q40.m").write_bytes(b"made")
    (folder / "origin.json").write_text(json.dumps({"reference": f"hf:{PAGE}", "commit": COMMIT}))
    os.close(held)
    launched.join(timeout=20)
    assert hub.command
    assert hub.fetched() == {*SMALL, "model.safetensors.index.json"}
    assert not (hub.python.parent / "words").exists()


def test_another_commit_is_not_mixed_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_sharded(hub)

    def set_up(_extras: list[str]) -> None:  # meanwhile another launcher has begun
        (hub.models / NAME).mkdir(parents=True)
        origin = {"reference": f"hf:{PAGE}", "commit": OTHER}
        (hub.models / NAME / "origin.json").write_text(json.dumps(origin))

    monkeypatch.setattr(checkout, "set_up", set_up)
    assert hub.run(f"hf:{PAGE}", "-y") == DownloadFailed.exit_code
    assert hub.files() == ["origin.json"]


# --- GGUF ---------------------------------------------------------------------------------------

GGUFS = {f"model-{kind}.gguf": b"GGUF" + kind.encode() * 100 for kind in ("Q4_K_M", "Q4_0", "Q8_0")}


def test_gguf_is_chosen_and_run_as_it_is(hub: Hub) -> None:
    hub.publish(GGUFS)
    assert hub.run(f"hf:{PAGE}:q4_k_m", "-y") == 0
    path = hub.models / f"{NAME}_q4_k_m" / "model-Q4_K_M.gguf"
    assert hub.command[2:6] == ["--model", str(path), "--tokenizer", str(path)]
    assert hub.fetched() == {path.name}
    assert not (hub.python.parent / "words").exists()


def test_gguf_choices_are_told(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.publish(GGUFS)
    for choice in ("", ":Q5_0"):
        assert hub.run(f"hf:{PAGE}{choice}", "-y") == 2
        err = capsys.readouterr().err
        assert err.endswith(f"choose one, e.g. hf:{PAGE}:model-Q4_0, of: model-Q4_0, model-Q4_K_M, model-Q8_0\n")
        assert err.count("\n") == 1
        assert ("no GGUF file's name ends in" in err) == bool(choice)


def test_gguf_types_that_cannot_be_read_are_refused_before_they_are_fetched(hub, capsys) -> None:
    hub.publish({f"x-{kind}.gguf": b"GGUF" for kind in ("IQ4_NL", "Q8_0")})
    assert hub.run(f"hf:{PAGE}:IQ4_NL", "-y") == 3
    assert capsys.readouterr().err.endswith("found IQ4_NL; choose another file\n")
    assert not list(hub.models.rglob("*.gguf*"))


def test_gguf_choices_that_fit_several_are_told(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.publish({f"x-{kind}.gguf": b"GGUF" for kind in ("Q4_K_M", "UD-Q4_K_M", "Q8_0")})
    assert hub.run(f"hf:{PAGE}:Q4_K_M", "-y") == 2
    choice = f"hf:{PAGE}:x-Q4_K_M"
    text = f"2 GGUF files fit Q4_K_M; choose one, e.g. {choice}, of: x-Q4_K_M, x-UD-Q4_K_M\n"
    assert capsys.readouterr().err.endswith(text)
    assert hub.run(choice, "-y") == 0
    assert hub.run(f"hf:{PAGE}:M", "-y") == 2
    assert "2 GGUF files fit M; choose one" in capsys.readouterr().err


def test_the_only_gguf_needs_no_choice(hub: Hub) -> None:
    hub.publish(dict.fromkeys(("model-Q8_0.gguf", "mmproj-F16.gguf", "README.md"), GGUFS["model-Q8_0.gguf"]))
    assert hub.run(f"hf:{PAGE}", "-y") == 0
    assert hub.command[3].endswith(f"{NAME}/model-Q8_0.gguf")


def test_split_gguf_is_whole_or_not_there(hub: Hub) -> None:
    parts = {f"big/model-Q8_0-0000{part}-of-00002.gguf": b"GGUF" + bytes([part]) * 99 for part in (1, 2)}
    hub.publish({**parts, **GGUFS})
    second = f"/{PAGE}/resolve/{COMMIT}/big/model-Q8_0-00002-of-00002.gguf"
    data = hub.server.files.pop(second)
    hub.server.files[second] = b"<html>"
    choice = f"hf:{PAGE}:big/model-Q8_0"
    assert hub.run(choice, "-y") == DownloadFailed.exit_code
    assert folders.find_model(f"{NAME}_big_model_q8_0") is None
    hub.server.files[second] = data
    assert hub.run(choice, "-y") == 0
    assert hub.command[3].endswith("model-Q8_0-00001-of-00002.gguf")


# --- what is refused ----------------------------------------------------------------------------


def refused(hub: Hub, capsys: pytest.CaptureFixture[str], status: int, reference: str = f"hf:{PAGE}") -> str:
    assert hub.run(reference, "-y") == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not hub.models.exists() or not any(hub.models.iterdir())
    return err


def test_gates(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    hub.server.gate = "hf_right"
    assert "accept the terms on the model's page, and set HF_TOKEN" in refused(hub, capsys, 6)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "accept the terms on the model's page, and set HF_TOKEN" in refused(hub, capsys, 6)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert hub.run(f"hf:{PAGE}", "-y") == 0


def test_unknown_repository(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "answered 404" in refused(hub, capsys, 6)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"pytorch_model.bin": b"x"}, "pickled files can run any program"),
        ({"README.md": b"x"}, "choose another repository"),
        ({"consolidated.safetensors": b"x", "config.json": b"{}"}, "found consolidated.safetensors"),
        ({"model.safetensors": b"x"}, "expected config.json, found none"),
        (
            {"model.safetensors": b"x", "config.json": b"{}"},
            "expected tokenizer.json or tokenizer.model, found neither",
        ),
        ({"../model.gguf": b"x", ".hidden.gguf": b"x"}, "choose another repository"),
    ],
)
def test_repositories_without_a_model(
    hub: Hub, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], what: str
) -> None:
    hub.publish(files)
    assert what in refused(hub, capsys, UnsupportedModel.exit_code)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "mamba"}, r"model_type: expected one of gemma2, .*qwen3_moe, found 'mamba'"),
        ({"model_type": "_fields"}, r"model_type: expected one of"),
        ({"model_type": ["llama"]}, r"model_type: expected one of"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config: expected no such field.* found {'bits': 4}"),
    ],
)
def test_models_that_no_dllama_runs(
    hub: Hub, capsys: pytest.CaptureFixture[str], changes: dict[str, object], what: str
) -> None:
    config = json.dumps({**CONFIG, **changes}).encode()
    hub.publish({**SMALL, "config.json": config, "model.safetensors": b"x"})
    assert re.search(what, refused(hub, capsys, UnsupportedModel.exit_code))
    assert hub.run(f"hf:{PAGE}", "--dry-run") == UnsupportedModel.exit_code


def test_a_busy_server_is_given_the_time_that_it_asks_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_sharded(hub)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.server.faults.statuses, hub.server.faults.headers = [429, 429], {"Retry-After": "7"}
    assert hub.run(f"hf:{PAGE}", "--dry-run") == 0
    assert [wait_s for wait_s in waits if wait_s >= 1] == [7, 7]


def test_a_listing_that_trickles_is_given_up(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_sharded(hub)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(repository, "_LONGEST_ANSWER_S", 0.0)
    assert "not all came in 0 s" in refused(hub, capsys, DownloadFailed.exit_code)


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/evil.safetensors", "a/b.safetensors", "absent.safetensors"]
)
def test_hostile_index(hub: Hub, capsys: pytest.CaptureFixture[str], name: str) -> None:
    index = json.dumps({"weight_map": {"t": name}}).encode()
    files = {**SMALL, "model.safetensors.index.json": index, "a/b.safetensors": b"x", "../evil.safetensors": b"x"}
    hub.publish(files)
    assert name in refused(hub, capsys, 3)


@pytest.mark.parametrize(
    "answer", [b"<html>", b"{}", b"[" * 50_000, b'{"sha": "../..", "siblings": []}', b"x" * (33 << 20)]
)
def test_hostile_listing(hub: Hub, capsys: pytest.CaptureFixture[str], answer: bytes) -> None:
    hub.server.files[f"/api/models/{PAGE}/revision/main"] = answer
    refused(hub, capsys, 6)


def test_error_page_instead_of_weights(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.publish({**SMALL, "model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"})
    assert hub.run(f"hf:{PAGE}", "-y") == 6
    assert "thrown away" in capsys.readouterr().err


def test_disk_is_looked_at_first(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    monkeypatch.setattr(repository_plan, "free_disk", lambda _folder: 64 << 20)
    err = refused(hub, capsys, NotEnoughDisk.exit_code)
    assert "for its files and the model that is made of them, but 67.1 MB are free" in err


def test_dry_run_writes_nothing(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    publish_sharded(hub)
    assert hub.run(f"hf:{PAGE}", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "model-00001-of-00002.safetensors: 32.1 kB, to fetch" in out
    assert f"dllama_model_{NAME}_q40.m: at most 19.3 kB, made of these (Q40)" in out
    assert hub.run(f"hf:{PAGE}", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["name"], plan["commit"], plan["problems"]) == (NAME, COMMIT, [])
    assert len(plan["files"]) == 7
    assert not hub.models.exists()


def test_references() -> None:
    assert parse_reference("hf:a/b") == Reference("a/b")
    assert parse_reference("hf:a/B-1.5@refs/pr/1:Q4_K_M") == Reference("a/B-1.5", "refs/pr/1", "Q4_K_M")
    assert str(parse_reference("hf:a/b@v1:x.gguf")) == "hf:a/b@v1:x.gguf"
    assert parse_reference("hf:Qwen/Qwen3-0.6B").name == "qwen_qwen3_0.6b"
    for text in (
        "hf:",
        "hf:a",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/b@",
        "hf:a/b:",
        "hf:a b/c",
        "hf:-/_",
        "hf:a/b@../..",
        "hf:ä/b",
    ):
        with pytest.raises(UsageError):
            parse_reference(text)


# --- paths --------------------------------------------------------------------------------------


def test_a_folder_is_run_where_it_is(hub: Hub) -> None:
    folder = hub.tmp_path / "my model"
    folder.mkdir()
    for name, data in {**SMALL, "model.safetensors": safetensors(hub.tmp_path, 1)}.items():
        (folder / name).write_bytes(data)
    assert hub.run(str(folder)) == 0
    assert hub.command[1:] == ["chat", "--model", str(folder), "--max-seq-len", "4096"]
    assert (hub.tmp_path / "run_my_model.sh").exists()


def test_workers_are_passed_on(hub: Hub) -> None:
    path = hub.tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    assert hub.run(str(path), "--workers", "10.0.0.2:9990", "10.0.0.3:9990", "--key-file", "/k") == 0
    assert hub.command[-5:] == ["--workers", "10.0.0.2:9990", "10.0.0.3:9990", "--key-file", "/k"]
    assert hub.run(str(path), "--workers", "10.0.0.2:9990", "--nodes", "2") == 2


@pytest.mark.parametrize(
    ("files", "name", "status", "what"),
    [
        ({}, "absent.m", 2, "no such file or folder"),
        ({"a.txt": b"x"}, "a.txt", 2, "a .m or .gguf file, or a folder with config.json"),
        ({"a.gguf": b"<html>"}, "a.gguf", 3, "expected GGUF"),
        ({"x/params.json": b"{}", "x/consolidated.00.pth": b"x"}, "x", 3, "converters/convert_llama.py"),
        ({"x/a.txt": b""}, "x", 3, "no config.json"),
        ({"x/config.json": b"{}", "x/pytorch_model.bin": b""}, "x", 3, "pickled weights"),
    ],
)
def test_paths_that_are_no_model(
    hub: Hub, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], name: str, status: int, what: str
) -> None:
    for file, data in files.items():
        path = hub.tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert hub.run(str(hub.tmp_path / name)) == status
    err = capsys.readouterr().err
    assert what in err
    assert err.count("\n") == 1
