"""GGUF files with changed bytes end in an error of ours or are read; nothing else happens, whatever they say.

``FUZZ_FILES=N`` tries N files of each kind.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from memory_model import MemoryModel  # type: ignore[import-not-found]
from tiny_families import family_configs  # type: ignore[import-not-found]

from dllama.errors import BadFile, UsageError
from dllama.formats.gguf import open_gguf
from dllama.formats.gguf_container import read_container
from dllama.formats.gguf_export import export_gguf
from dllama.formats.gguf_writer import Value

NUM_FILES = int(os.environ.get("FUZZ_FILES", "300"))
FAMILIES = ("llama, llama3", "qwen3_moe", "gemma3_text", "phi3")
EXTREMES = [bytes(8), b"\xff" * 8, b"\0\0\0\0\0\0\0\x80", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\1\0\0\0\0\0\0\0"]


@pytest.fixture(scope="module", params=FAMILIES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """Give a file's bytes, and how many of them come before the data."""
    path = tmp_path_factory.mktemp("sound") / "a.gguf"
    tokenizer: dict[str, Value] = {"tokenizer.ggml.tokens": ["a", "bc"], "tokenizer.ggml.scores": [0.0, -1.0]}
    export_gguf(MemoryModel(family_configs()[request.param]), path, tokenizer)
    return path.read_bytes(), read_container(path).data_offset


def changed(raw: bytes, head: int, rng: random.Random) -> bytes:
    """Change a byte or a number, repeat, drop or insert some bytes; mostly before the data."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(head if rng.random() < 0.95 else len(data))
        match rng.randrange(6):
            case 0 | 1:
                data[at] = rng.randrange(256)
            case 2:
                data[at : at + 8] = rng.choice(EXTREMES)
            case 3:
                data[at : at + 4] = rng.choice(EXTREMES)[4:]
            case 4:
                del data[at : at + rng.randint(1, 40)]
            case 5:
                other = rng.randrange(head)
                data[at:at] = data[other : other + rng.randint(1, 40)]
    return bytes(data)


def test_changed_files(sound: tuple[bytes, int], tmp_path: Path) -> None:
    raw, head = sound
    rng, path = random.Random(head), tmp_path / "a.gguf"
    opened = 0
    for _ in range(NUM_FILES):
        path.write_bytes(changed(raw, head, rng))
        try:
            with open_gguf(path) as model:
                opened += 1
                model.summary()
                model.embedding_rows([0])
                model.tensors["layers.0.q_proj"].read_rows(0, 1)
        except (BadFile, UsageError) as error:
            assert "\n" not in str(error)  # noqa: PT017 - which of the two it is does not matter
    assert opened < NUM_FILES


def test_cut_files(sound: tuple[bytes, int], tmp_path: Path) -> None:
    raw, head = sound
    path = tmp_path / "a.gguf"
    for length in {*range(0, head, max(1, head // 50)), *(len(raw) * part // 20 for part in range(20)), len(raw) - 1}:
        path.write_bytes(raw[:length])
        with pytest.raises(BadFile):
            open_gguf(path)
