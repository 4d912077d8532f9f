"""GGUF files that end too early are refused, wherever that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_model import MemoryModel  # type: ignore[import-not-found]
from tiny_families import family_configs  # type: ignore[import-not-found]

from dllama.errors import BadFile
from dllama.formats.gguf import open_gguf
from dllama.formats.gguf_container import read_container
from dllama.formats.gguf_export import export_gguf
from dllama.formats.gguf_writer import Value

FAMILIES = ("llama, llama3", "qwen3_moe", "gemma3_text", "phi3")


@pytest.fixture(scope="module", params=FAMILIES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """Give a file's bytes, and how many of them come before the data."""
    path = tmp_path_factory.mktemp("sound") / "a.gguf"
    tokenizer: dict[str, Value] = {"tokenizer.ggml.tokens": ["a", "bc"], "tokenizer.ggml.scores": [0.0, -1.0]}
    export_gguf(MemoryModel(family_configs()[request.param]), path, tokenizer)
    return path.read_bytes(), read_container(path).data_offset


def test_cut_files(sound: tuple[bytes, int], tmp_path: Path) -> None:
    raw, head = sound
    path = tmp_path / "a.gguf"
    for length in {*range(0, head, max(1, head // 50)), *(len(raw) * part // 20 for part in range(20)), len(raw) - 1}:
        path.write_bytes(raw[:length])
        with pytest.raises(BadFile):
            open_gguf(path)
