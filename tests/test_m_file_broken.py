"""Model files broken in every way that a download or a stranger can break them."""

from __future__ import annotations

import os
import socket
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from model_files import (  # type: ignore[import-not-found]
    DIMS,
    MAGIC,
    QWEN3,
    QWEN3_MOE,
    header_bytes,
    plain_file,
    tensor_bytes,
    tiny_config,
    write_tiny_model,
)

from dllama.errors import BadFile, UnsupportedModel, UsageError
from dllama.formats.m_file import open_m_file

# The smallest model there can be, 6 KB.
SMALLEST = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "vocab_size": 4,
}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def refusal(path: Path) -> str:
    """Open a file that must be refused, cheaply and without leaving it open; give the text."""
    before, start = open_descriptors(), time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises((BadFile, UsageError)) as caught:
            open_m_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 0.5
    assert open_descriptors() == before
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


SCALED = {14: 8, 15: 1, 16: 4, 17: 8192}
UNSOUND = [
    ({0: 1}, "header key 0, version): expected 0, found 1"),
    ({1: 0xABCD03}, "expected one of 0xABCD00, 0xABCD01, 0xABCD02, 0xD11A00, found 0xABCD03"),
    ({1: None}, "expected key 1 (arch_type), found a header without it"),
    ({2: None}, "key 2 (hidden_size)"),
    ({13: None}, "key 13 (weight_type)"),
    ({13: 4}, "expected 0 (F32), 1 (F16), 2 (Q40), 3 (Q80), found 4"),
    ({13: -1}, "header key 13, weight_type)"),
    ({2: 0}, "byte 20 (header key 2, hidden_size): expected 1 to 1048576, found 0"),
    ({2: -64}, "hidden_size): expected 1 to"),
    ({2: 2**31 - 1, 19: 16}, "hidden_size): expected 1 to 1048576, found 2147483647"),
    ({2: 48, 19: 16}, "hidden_size): expected a multiple of 32, found 48"),
    ({3: 31}, "intermediate_size): expected a multiple of 32, found 31"),
    ({3: -(2**31)}, "intermediate_size): expected 1 to"),
    ({4: 0}, "num_layers): expected 1 to 4096, found 0"),
    ({4: 2**31 - 1}, "num_layers): expected 1 to 4096"),
    ({4: -1}, "num_layers): expected 1 to 4096"),
    ({5: 0}, "num_heads): expected a divisor of hidden_size=64"),
    ({5: 3}, "num_heads): expected a divisor of hidden_size=64"),
    ({6: 3}, "num_heads): expected a multiple of num_kv_heads=3, found 4"),
    ({6: 0}, "num_kv_heads): expected 1 to 4096, found 0"),
    ({19: 15}, "head_dim): expected an even number, found 15"),
    ({19: 4, 5: 4}, "q_size): expected a multiple of 32, found 16"),
    ({9: 0}, "vocab_size): expected 1 to 16777216"),
    ({10: 0}, "max_seq_len): expected 1 to"),
    ({11: 2}, "hidden_act): expected 1 (SiLU), found 2"),
    ({12: 0}, "rope_theta): expected a number from 1e-30 to 1e+30, found 0.0"),
    ({18: 3}, "rope_type): expected 0, 1 or 2, found 3"),
    ({20: 7}, "rms_norm_eps): expected 5 or 6 (for 1e-05 or 1e-06), found 7"),
    ({**SCALED, 14: 0}, "rope_scaling_factor): expected 1 or more, found 0"),
    ({**SCALED, 16: 1}, "rope_high_freq_factor): expected more than rope_low_freq_factor=1, found 1"),
    ({**SCALED, 15: -1}, "rope_low_freq_factor): expected 0 or more"),
    ({**SCALED, 17: 0}, "rope_original_max_seq_len): expected 1 or more, found 0"),
    ({**SCALED, 18: 1}, "expected 1, as there is no scaling with Falcon rotation"),
    ({**SCALED, 1: QWEN3}, "expected 1, as there is no scaling with Falcon rotation"),
    ({22: 1}, "byte 80: expected a header key from 0 to 21, found key 22"),
    ({-1: 1}, "found key -1"),
    ({1001: 1}, "found key 1001; a newer dllama can read it"),
    # Sizes that no file has, products near 2^63 among them.
    ({9: 1 << 24, 2: 1 << 20, 5: 1 << 12, 3: 1 << 20, 4: 1 << 12, 6: 1 << 12}, "the file ends in tensor embed_tokens"),
    ({4: 4096}, "the file ends in tensor layers.1.q_proj"),
    ({1: QWEN3_MOE, 7: 1 << 16, 8: 2, 21: 32}, "the file ends in tensor layers.0.router"),
    ({1: QWEN3_MOE, 7: 0, 8: 2, 21: 32}, "num_experts): expected 1 to"),
    ({1: QWEN3_MOE, 7: 1 << 20, 8: 2, 21: 32}, "num_experts): expected 1 to"),
    ({1: QWEN3_MOE, 7: 8, 8: 9, 21: 32}, "num_experts_per_tok): expected 1 to 8, found 9"),
    ({1: QWEN3_MOE, 7: 8, 8: 2, 21: 33}, "moe_intermediate_size): expected a multiple of 32, found 33"),
]


@pytest.mark.parametrize(("changes", "text"), UNSOUND, ids=[str(changes) for changes, _ in UNSOUND])
def test_unsound_headers_are_refused(tmp_path, changes, text):
    assert text in refusal(plain_file(tmp_path / "a.m", changes))


UNSUPPORTED = [
    ({1: QWEN3_MOE, 7: 8, 8: 2}, "a Mixtral file of a distributed-llama before 0.16"),
    ({7: 8, 8: 2}, "8 experts: Mixtral"),
    ({1: QWEN3, 7: 8, 8: 2}, "8 experts: Grok-1"),
    ({11: 0}, "GELU"),
]


@pytest.mark.parametrize(("changes", "text"), UNSUPPORTED)
def test_other_models_are_refused_by_name(tmp_path, changes, text):
    with pytest.raises(UnsupportedModel, match=text):
        open_m_file(plain_file(tmp_path / "a.m", changes))


def test_a_repeated_key_is_refused(tmp_path):
    path = tmp_path / "a.m"
    path.write_bytes(header_bytes([*DIMS.items(), (13, 0), (9, 8)]) + tensor_bytes())
    assert "byte 80: expected every header key once, found key 9 (vocab_size) again" in refusal(path)


# ---- files that are not what they should be ----


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.m"
    write_tiny_model(path, tiny_config(**SMALLEST))
    size = path.stat().st_size
    with open_m_file(path):
        pass
    for length in range(size - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(BadFile):
            open_m_file(path)


def test_a_short_file_says_where_it_ends(tmp_path):
    path = plain_file(tmp_path / "a.m")
    size = path.stat().st_size
    os.truncate(path, size - 1)
    text = refusal(path)
    assert f"expected {size} bytes, found {size - 1} bytes: the file ends in tensor lm_head" in text


def test_a_long_file_is_refused(tmp_path):
    path = plain_file(tmp_path / "a.m")
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"abc")
    assert f"expected {size} bytes, found {size + 3} bytes: 3 more than the header describes" in refusal(path)


@pytest.mark.parametrize("size", [-8, 0, 4, 7, 9, 8 + 8 * 1025, 2**31 - 8, -(2**31)])
def test_a_wrong_header_size_is_refused(tmp_path, size):
    path = tmp_path / "a.m"
    path.write_bytes(struct.pack("<ii", MAGIC, size) + bytes(100))
    assert "byte 4 (header size)" in refusal(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    path = tmp_path / "a.m"
    path.write_bytes(struct.pack("<ii", MAGIC, 8 + 8 * 100) + bytes(100))
    assert "expected at most the file's 108 bytes, found 808" in refusal(path)


def test_an_empty_header_misses_its_first_key(tmp_path):
    path = tmp_path / "a.m"
    path.write_bytes(struct.pack("<ii", MAGIC, 8))
    assert "expected key 1 (arch_type)" in refusal(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.m"
    path.write_bytes(b"GGUF" + bytes(1000))
    assert "byte 0 (magic number): expected 0x0A00ABCD, a .m model file, found 0x46554747" in refusal(path)
    path.write_bytes(b"abc")
    assert "magic number: expected 4 bytes, found 3 before the end of the file" in refusal(path)
    path.write_bytes(b"")
    assert "found an empty file" in refusal(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "expected a model file, found a directory" in refusal(tmp_path)
    assert "found a pipe" in refusal(tmp_path / "fifo")
    assert "found a device" in refusal(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "a socket" in refusal(tmp_path / "socket")


def test_a_missing_file_is_a_mistake_in_the_command(tmp_path):
    for name in ("missing.m", "x" * 300, "nul\0byte"):
        with pytest.raises(UsageError):
            open_m_file(f"{tmp_path}/{name}")
    assert "no such model file" in refusal(tmp_path / "missing.m")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = plain_file(tmp_path / "a.m")
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_a_link_to_a_file_is_followed(tmp_path):
    plain_file(tmp_path / "a.m")
    (tmp_path / "b.m").symlink_to(tmp_path / "a.m")
    open_m_file(tmp_path / "b.m").close()


def test_a_file_cut_while_in_use_ends_in_an_error(tmp_path):
    path = plain_file(tmp_path / "a.m")
    with open_m_file(path) as model:
        os.truncate(path, 4000)
        for name in ("layers.0.q_proj", "layers.0.down_proj"):
            with pytest.raises(BadFile, match=f"tensor {name}: .* the end of the file at byte .* changed while in use"):
                model.tensors[name].read_rows(0, model.tensors[name].rows)


def test_closing_twice_is_harmless(tmp_path):
    before = open_descriptors()
    model = open_m_file(plain_file(tmp_path / "a.m"))
    assert open_descriptors() == before + 1
    model.close()
    model.close()
    assert open_descriptors() == before
