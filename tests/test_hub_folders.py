"""Where dllama keeps things, and which models it finds there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllama.hub import folders

ROOT = Path(folders.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DLLAMA_MODELS", str(tmp_path / "models"))
    return tmp_path


def make_model(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"12345")


def make_named(home: Path, name: str) -> Path:
    folder = home / "models" / name
    make_model(folder, f"dllama_model_{name}.m", f"dllama_tokenizer_{name}.t")
    return folder


def test_folders_follow_xdg(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folders.config_file() == home / ".config/dllama/config.toml"
    assert folders.state_dir() == home / ".local/state/dllama"
    assert folders.data_dir() == home / ".local/share/dllama"
    assert folders.cache_dir() == home / ".cache/dllama"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert folders.config_file() == home / "c/dllama/config.toml"
    assert folders.state_dir() == home / ".local/state/dllama"
    assert folders.data_dir() == home / ".local/share/dllama"


@pytest.mark.parametrize("home_variable", [None, "", "relative"])
def test_no_home(home_variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    if home_variable is not None:
        monkeypatch.setenv("HOME", home_variable)
    assert folders.config_file().is_absolute()
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 5)  # as containers run: a user without an entry
    assert folders.state_dir() == Path("/.local/state/dllama")


def test_state_folder_is_private(home: Path) -> None:
    previous = os.umask(0)
    try:
        assert folders.make_state_dir() == folders.make_state_dir() == home / ".local/state/dllama"
    finally:
        os.umask(previous)
    assert folders.state_dir().stat().st_mode & 0o777 == 0o700


def test_folders_of_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_MODELS", os.pathsep.join(["/a", "", "b", "/a"]))
    own = home / ".local/share/dllama/models"
    assert folders.model_dirs() == [Path("/a"), Path.cwd() / "b", ROOT / "models", own]
    monkeypatch.delenv("DLLAMA_MODELS")
    assert folders.model_dirs() == [ROOT / "models", own]
    monkeypatch.setattr(folders, "_PACKAGE", home / "site-packages/dllama")  # installed, not a checkout
    assert folders.model_dirs() == [own]


def test_finds_models_by_name(home: Path) -> None:
    folder = make_named(home, "llama3_2_1b")
    make_named(home, "qwen3_0.6b-x")
    found = folders.find_model("llama3_2_1b")
    assert found is not None
    assert found.model == folder / "dllama_model_llama3_2_1b.m"
    assert found.tokenizer == folder / "dllama_tokenizer_llama3_2_1b.t"
    assert (found.num_bytes, found.is_complete, found.is_bundled) == (10, True, False)
    assert folders.find_model("llama3-2-1b") == found
    assert folders.find_model("qwen3_0.6b-x") is not None
    assert folders.find_model("llama3") is None


def test_the_bundled_model_has_a_name(home: Path) -> None:
    make_named(home, "demo")
    found = folders.find_model("demo")
    assert found == folders.bundled_model()
    assert found is not None
    assert found.is_bundled
    assert found.is_complete


def test_any_folder_with_one_model_and_one_tokenizer(home: Path) -> None:
    make_model(home / "models/mine", "x.m", "y.t", "readme")
    make_model(home / "models/two", "x.m", "z.m", "y.t")
    make_model(home / "models/other", "notes.txt")
    make_model(home / "models/.hidden", "x.m", "x.t")
    make_model(home / "models", "x.m")
    assert [model.name for model in folders.installed_models()] == ["mine"]
    mine = folders.find_model("mine")
    assert mine is not None
    assert (mine.model.name, mine.tokenizer.name) == ("x.m", "y.t")


@pytest.mark.parametrize(
    "names",
    [
        ["dllama_model_big.m.part"],
        ["dllama_model_big.m.part", "dllama_model_big.m.part.json", "dllama_tokenizer_big.t"],
        ["dllama_tokenizer_big.t"],
        ["dllama_model_big.m", "dllama_tokenizer_big.t.part"],
    ],
)
def test_unfinished_downloads_are_known_and_not_used(names: list[str], home: Path) -> None:
    make_model(home / "models/big", *names)
    found = folders.find_installed("big")
    assert found is not None
    assert not found.is_complete
    assert {path.name for path in found.files} == {*names}
    assert found.num_bytes == 5 * len(names)
    assert folders.find_model("big") is None


def test_files_of_the_user_beside_a_model_are_not_its_leftovers(home: Path) -> None:
    folder = make_named(home, "big")
    make_model(folder, "dllama_model_big.m.bak", "dllama_model_big.m.notes.txt", "dllama_model_big.m.part.json.new")
    found = folders.find_installed("big")
    assert found is not None
    assert [path.name for path in found.leftovers] == ["dllama_model_big.m.part.json.new"]


def test_whole_models_go_before_unfinished_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_MODELS", f"{home / 'other'}:{home / 'models'}")
    make_model(home / "other/big", "dllama_model_big.m.part")
    folder = make_named(home, "big")
    found = folders.find_installed("big")
    assert found is not None
    assert found.folder == folder


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../models/x", "a/b", "a\\b", ".x", "a\nb", "a\0b", "/etc"])
def test_names_never_become_paths(name: str, home: Path) -> None:
    make_named(home, "x")
    assert not folders.is_plain_name(name)
    assert folders.find_installed(name) is None
    assert folders.find_model(name) is None


def test_tokenizer_beside_a_model(home: Path) -> None:
    make_model(home / "a", "dllama_model_x.m", "dllama_tokenizer_x.t", "dllama_tokenizer_y.t", "same.m", "same.t")
    assert folders.find_tokenizer(home / "a/dllama_model_x.m") == home / "a/dllama_tokenizer_x.t"
    assert folders.find_tokenizer(home / "a/same.m") == home / "a/same.t"
    assert folders.find_tokenizer(home / "a/dllama_model_z.m") is None  # which of the three?
    make_model(home / "b", "x.m", "only.t")
    assert folders.find_tokenizer(home / "b/x.m") == home / "b/only.t"
    make_model(home / "c", "x.m")
    (home / "c/folder.t").mkdir()
    assert folders.find_tokenizer(home / "c/x.m") is None
    assert folders.find_tokenizer(home / "gone/x.m") is None


def test_needs_the_standard_library_only() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from dllama.hub import folders; folders.installed_models(); "
        "names = {name.partition('.')[0] for name in sys.modules} - {'dllama', '__main__'}; "
        "assert names <= sys.stdlib_module_names, names"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_hugging_face_folders_and_gguf_files_are_models(home: Path) -> None:
    own = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json")
    make_model(home / "models/hf", *own, "README.md")
    make_model(home / "models/gguf", "x-q4_0.gguf", "notes.txt")
    make_model(home / "models/none", "config.json", "pytorch_model.bin")
    make_model(home / "models/bare", "config.json", "model.safetensors")
    assert [model.name for model in folders.installed_models()] == ["bare", "gguf", "hf"]
    found, gguf = folders.find_model("hf"), folders.find_model("gguf")
    assert found is not None
    assert gguf is not None
    assert found.model == found.tokenizer == found.folder
    assert [path.name for path in found.files] == [*own]
    assert found.num_bytes == 5 * len(own)
    assert gguf.model == gguf.tokenizer == home / "models/gguf/x-q4_0.gguf"
    assert gguf.files == [gguf.model]
    assert folders.find_model("bare") is None  # it has no tokenizer
    make_model(home / "models/bare", "any.t")
    bare = folders.find_model("bare")
    assert bare is not None
    assert bare.tokenizer == home / "models/bare/any.t"
    assert {path.name for path in bare.files} == {"config.json", "model.safetensors", "any.t"}


def test_copies_are_found_by_where_the_model_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    make_model(home / "a/model", "config.json")
    make_model(home / "b/model", "config.json")
    (home / "link").symlink_to(home / "a/model")
    places = [folders.copy_path(home / name, "q40") for name in ("a/model", "b/model", "link")]
    assert places[0] == places[2] != places[1]
    assert folders.copies_of(home / "a/model") == []
    make_model(places[0].parent, places[0].name)
    assert folders.copies_of(home / "link") == [places[0]]
    assert folders.copies_of(home / "b/model") == []


def test_of_a_fetched_folder_only_what_was_fetched_is_the_models(home: Path) -> None:
    model = "dllama_model_org_x_q40.m"
    own = {"origin.json", "config.json", "tokenizer.json", "model.safetensors.part", model, f"{model}.0a1b2c3d.part"}
    make_model(home / "models/org_x", *own, "notes.txt", "notes.part", "mine.m", "README.md")
    found = folders.find_model("org_x")
    assert found is not None
    assert found.model.name == model
    assert {path.name for path in found.files} == own
