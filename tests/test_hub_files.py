"""What is told of a file by its own header, and of work by a bar."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from download_server import model_bytes  # type: ignore[import-not-found]
from model_files import (  # type: ignore[import-not-found]
    DIMS,
    QWEN3,
    QWEN3_MOE,
    header_bytes,
    plain_file,
    tiny_config,
    write_tiny_model,
    write_tiny_tokenizer,
)

from dllama.config import DType
from dllama.errors import BadFile
from dllama.formats.m_file import open_m_file
from dllama.hub.file_check import check_file
from dllama.hub.progress import Progress, size_text, time_text


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("weight_type", list(DType))
@pytest.mark.parametrize("changes", [{}, {"num_layers": 5, "num_kv_heads": 4, "intermediate_size": 160}])
def test_size_is_that_of_the_real_arithmetic(
    model_type: str, weight_type: DType, changes: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "x.m"
    write_tiny_model(path, tiny_config(model_type, weight_type, **changes))
    check_file(path, ".m")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(BadFile, match="by its header, found"):
        check_file(path, ".m")


def test_header_without_head_size(tmp_path: Path) -> None:
    check_file(plain_file(tmp_path / "x.m"), ".m")


def test_models_that_only_others_can_judge(tmp_path: Path) -> None:
    path = tmp_path / "x.m"
    path.write_bytes(header_bytes({**DIMS, 1: QWEN3_MOE, 7: 8, 8: 2, 13: 2}) + bytes(100))
    check_file(path, ".m")
    path.write_bytes(struct.pack("<I", QWEN3) + bytes(100))  # old, or what is now the id of an architecture
    check_file(path, ".m")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<htm",
        b"<html>hello</html>",
        struct.pack("<Ii", 0x0A00ABCD, 4),
        struct.pack("<Ii", 0x0A00ABCD, -8),
        struct.pack("<Ii", 0x0A00ABCD, 800),
        struct.pack("<Ii", 0x0A00ABCD, 1 << 30),
        header_bytes({**DIMS, 2: -64, 13: 0}),
        header_bytes({**DIMS, 5: 0, 13: 0}),
        header_bytes({**DIMS, 4: 1 << 30, 13: 0}),
    ],
)
def test_other_files(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.m.part"
    path.write_bytes(raw)
    with pytest.raises(BadFile):
        check_file(path, ".m")


def test_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "x.t"
    write_tiny_tokenizer(path)
    check_file(path, ".t")
    with pytest.raises(BadFile, match=r"a \.m model file"):
        check_file(path, ".m")
    path.write_bytes(b"<html>")
    with pytest.raises(BadFile, match=r"a \.t tokenizer file"):
        check_file(path, ".t")


def test_model_of_the_download_tests_is_sound(tmp_path: Path) -> None:
    (tmp_path / "x.m").write_bytes(model_bytes(400_000))
    with open_m_file(tmp_path / "x.m") as model:
        assert model.config.num_layers == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_999, "1.00 MB"),
        (1_746_051_248, "1.75 GB"),
        (10_982_707_344, "11.0 GB"),
        (237_908_328_624, "238 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_in_words(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0 s"), (89, "89 s"), (125, "2 min"), (7500, "2 h 5 min"), (400_000, "4 days")]
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_a_line_now_and_then_when_piped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("dllama.hub.progress.time.monotonic", lambda: now)
    with Progress("model", 100_000_000) as bar:
        bar.jump(10_000_000)
        for second in range(1, 31):
            now = 1000.0 + second
            bar.update(10_000_000 + second * 1_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "⏬ model: 10.0 MB of 100 MB, 10%",
        "⏬ model: 20.0 MB of 100 MB, 20%, 1.00 MB/s, 80 s left",
        "⏬ model: 30.0 MB of 100 MB, 30%, 1.00 MB/s, 70 s left",
        "⏬ model: 40.0 MB of 100 MB, 40%, 1.00 MB/s, 60 s left",
        "⏬ model: 40.0 MB of 100 MB, 40%, 1.00 MB/s, 60 s left",
    ]
