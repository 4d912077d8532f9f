"""Model files: written, read back, and broken in every way that a download or a stranger can break them."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import LLAMA3_SCALING, random_weights, tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.config import DType, LayerSpec
from dllama.errors import BadFile, DllamaError, UnsupportedModel, UsageError
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.m_layout import tensors_in_order, total_nbytes
from dllama.formats.quants import decode, encode
from dllama.formats.tensor import TensorInfo

MAGIC = 0x0A00ABCD
LLAMA, QWEN3, QWEN3_MOE = 0xABCD00, 0xABCD01, 0xABCD02
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
DIMS = {1: LLAMA, 2: 64, 3: 96, 4: 1, 5: 4, 6: 2, 9: 8, 10: 128}  # header keys of `plain_file`


def header_bytes(pairs: dict[int, int] | list[tuple[int, int]]) -> bytes:
    items = list(pairs.items()) if isinstance(pairs, dict) else pairs
    body = b"".join(struct.pack("<ii", key, value) for key, value in items)
    return struct.pack("<ii", MAGIC, 8 + len(body)) + body


def tensor_bytes(weight_type: DType = DType.F32, vocab: int = 8, qk_norm: bool = False) -> bytes:
    """Tensors of DIMS, written out in the order of the format, every value its own."""
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (64, 96), (96, 64)]
    norms = [(1, 16), (1, 16)] * qk_norm + [(1, 64), (1, 64)]
    plan = [(DType.F32, (vocab, 64)), *((weight_type, shape) for shape in shapes)]
    plan += [(DType.F32, shape) for shape in norms] + [(DType.F32, (1, 64)), (weight_type, (vocab, 64))]
    rng = np.random.default_rng(7)
    return b"".join(encode(dtype, rng.standard_normal(shape, np.float32)).tobytes() for dtype, shape in plan)


def plain_file(path: Path, changes: dict[int, int | None] | None = None, **kinds: object) -> Path:
    pairs = {**DIMS, 13: 0, **(changes or {})}
    header = header_bytes({key: value for key, value in pairs.items() if value is not None})
    path.write_bytes(header + tensor_bytes(**kinds))  # type: ignore[arg-type]
    return path


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


# ---- what is written is read ----


@pytest.mark.parametrize("weight_type", list(DType))
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_written_model_is_read_back(tmp_path, model_type, weight_type):
    config = tiny_config(model_type, weight_type)
    weights = write_tiny_model(tmp_path / "a.m", config)
    with open_m_file(tmp_path / "a.m") as model:
        assert model.config == config
        assert list(model.tensors) == [info.name for info in tensors_in_order(config)]
        for name, tensor in model.tensors.items():
            rows = np.atleast_2d(weights[name])
            assert tensor.dtype is (weight_type if name.endswith(("_proj", "lm_head")) else DType.F32)
            assert (tensor.read_rows(0, tensor.rows) == encode(tensor.dtype, rows)).all()
            assert (tensor.read_floats() == decode(tensor.dtype, encode(tensor.dtype, rows))).all()
        assert model.file_size == (tmp_path / "a.m").stat().st_size


@pytest.mark.parametrize("scaling", [None, LLAMA3_SCALING])
def test_rope_scaling_is_read_back(tmp_path, scaling):
    config = tiny_config(rope_scaling=scaling, rope_theta=500000.0)
    write_tiny_model(tmp_path / "a.m", config)
    with open_m_file(tmp_path / "a.m") as model:
        assert model.config == config


@pytest.mark.parametrize("weight_type", list(DType))
def test_tensors_lie_in_the_order_of_the_format(tmp_path, weight_type):
    path = plain_file(tmp_path / "a.m", {13: weight_type}, weight_type=weight_type)
    with open_m_file(path) as model:
        assert model.config == tiny_config(
            weight_type=weight_type, num_layers=1, vocab_size=8, rms_norm_eps=1e-5, rope_theta=1e4
        )
        assert not model.tensors["embed_tokens"].offset - len(header_bytes({**DIMS, 13: 0}))
        weights = {name: tensor.read_floats() for name, tensor in model.tensors.items()}
    write_m_file(tmp_path / "b.m", model.config, weights)
    tensors = path.read_bytes()[len(header_bytes({**DIMS, 13: 0})) :]
    if weight_type in (DType.F32, DType.F16):  # blocks do not survive a second quantization bit for bit
        assert (tmp_path / "b.m").read_bytes().endswith(tensors)
    raw = np.frombuffer(tensors, np.uint8)
    begin = 8 * 64 * 4 + (64 + 32) * weight_type.row_bytes(64)  # after the embedding, q and k
    v_proj = raw[begin : begin + 32 * weight_type.row_bytes(64)].reshape(32, -1)
    assert (weights["layers.0.v_proj"] == decode(weight_type, v_proj)).all()


def test_query_and_key_rows_are_stored_as_pairs(tmp_path):
    config = tiny_config(weight_type=DType.F32)
    weights = write_tiny_model(tmp_path / "a.m", config)
    raw = (tmp_path / "a.m").read_bytes()
    with open_m_file(tmp_path / "a.m") as model:
        for name in ("layers.1.q_proj", "layers.0.k_proj"):
            offset, half = model.tensors[name].offset, config.head_dim // 2
            for row, values in enumerate(weights[name]):
                head, (part, pair) = row // config.head_dim, divmod(row % config.head_dim, half)
                begin = offset + (head * config.head_dim + 2 * pair + part) * values.nbytes
                assert raw[begin : begin + values.nbytes] == values.tobytes()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_can_be_read(tmp_path, data):
    path = tmp_path / "a.m"
    if not path.exists():
        write_tiny_model(path)
    with open_m_file(path) as model:
        tensor = model.tensors[data.draw(st.sampled_from(sorted(model.tensors)))]
        begin = data.draw(st.integers(0, tensor.rows))
        end = data.draw(st.integers(begin, tensor.rows))
        out = np.full((end - begin, tensor.row_bytes), 99, np.uint8)
        assert tensor.read_rows(begin, end, out=out) is out
        assert (out == tensor.read_rows(0, tensor.rows)[begin:end]).all()


def test_rows_outside_a_tensor_are_refused(tmp_path):
    write_tiny_model(tmp_path / "a.m")
    with open_m_file(tmp_path / "a.m") as model:
        tensor = model.tensors["layers.0.v_proj"]
        for begin, end in ((-1, 2), (2, 1), (0, tensor.rows + 1)):
            with pytest.raises(ValueError, match="outside its 32 rows"):
                tensor.read_rows(begin, end)
        with pytest.raises(ValueError, match="need contiguous uint8"):
            tensor.read_rows(0, 2, out=np.empty((2, 7), np.uint8))


def test_embeddings_are_read_by_token(tmp_path):
    weights = write_tiny_model(tmp_path / "a.m")
    with open_m_file(tmp_path / "a.m") as model:
        assert (model.embedding_rows([319, 0, 7, 7]) == weights["embed_tokens"][[319, 0, 7, 7]]).all()
        assert model.embedding_rows([]).shape == (0, 64)
        for token_id in (-1, 320):
            with pytest.raises(UsageError, match=f"token {token_id} is outside the model's vocabulary of 320"):
                model.embedding_rows([1, token_id])


def test_the_facts_that_are_printed(tmp_path):
    write_tiny_model(tmp_path / "a.m", tiny_config(rope_scaling=LLAMA3_SCALING))
    with open_m_file(tmp_path / "a.m") as model:
        facts = model.summary(max_seq_len=64)
    assert facts["Arch"] == "Llama"
    assert (facts["OrigSeqLen"], facts["SeqLen"]) == ("128", "64")
    assert facts["NormEpsilon"] == "0.000010"
    assert (facts["RopeType"], facts["RopeScaling"]) == ("Llama3.1", "f=32.0, l=1.0, h=4.0, o=8192")
    assert list(facts)[:5] == ["Arch", "HiddenAct", "Dim", "HeadDim", "QDim"]


# ---- old and foreign headers ----


@pytest.mark.parametrize("weight_type", list(DType))
def test_old_headers_tell_their_weight_type_by_size(tmp_path, weight_type):
    old = struct.pack("<10i", LLAMA, 64, 96, 1, 4, 2, 0, 0, 8, 128)
    path = tmp_path / "old.m"
    path.write_bytes(old + tensor_bytes(weight_type))
    with open_m_file(path) as model:
        assert model.config == tiny_config(weight_type=weight_type, num_layers=1, vocab_size=8)
        assert model.tensors["layers.0.q_proj"].interleaved_head_dim == 16
    path.write_bytes(old + tensor_bytes(weight_type)[:-1])
    assert "size of a file with an old header" in refusal(path)


def test_old_headers_of_experts_are_refused_by_name(tmp_path):
    path = tmp_path / "old.m"
    path.write_bytes(struct.pack("<10i", QWEN3, 64, 96, 1, 4, 2, 8, 2, 8, 128) + bytes(100))
    assert "old Grok-1 or Mixtral" in refusal(path)


def test_defaults_of_absent_keys(tmp_path):
    with open_m_file(plain_file(tmp_path / "a.m")) as model:
        config = model.config
        assert (config.rms_norm_eps, config.rope_theta, config.head_dim) == (1e-5, 10000.0, 16)
        assert config.rope_scaling is None
        assert config.layers == (LayerSpec(),)


def test_qwen3_rows_are_never_reordered(tmp_path):
    path = plain_file(tmp_path / "a.m", {1: QWEN3, 18: 0}, qk_norm=True)
    with open_m_file(path) as model:
        assert model.config.layers[0].has_qk_norm
        assert model.tensors["layers.0.q_proj"].interleaved_head_dim == 0


def test_a_llama_file_may_hold_halves(tmp_path):
    with open_m_file(plain_file(tmp_path / "a.m", {18: 1})) as model:
        assert model.tensors["layers.0.q_proj"].interleaved_head_dim == 0


SCALED = {14: 8, 15: 1, 16: 4, 17: 8192}
UNSOUND = [
    ({0: 1}, "header key 0, version): expected 0, found 1"),
    ({1: 0xABCD03}, "expected one of 0xABCD00, 0xABCD01, 0xABCD02, found 0xABCD03"),
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
    ({12: 0}, "rope_theta): expected a positive number, found 0.0"),
    ({18: 3}, "rope_type): expected 0, 1 or 2, found 3"),
    ({20: 7}, "rms_norm_eps): expected 5 or 6 (for 1e-05 or 1e-06), found 7"),
    ({**SCALED, 14: 0}, "rope_scaling_factor): expected 1 or more, found 0"),
    ({**SCALED, 16: 1}, "rope_high_freq_factor): expected more than rope_low_freq_factor=1, found 1"),
    ({**SCALED, 15: -1}, "rope_low_freq_factor): expected 0 or more"),
    ({**SCALED, 17: 0}, "rope_original_max_seq_len): expected 1 or more, found 0"),
    ({**SCALED, 18: 1}, "expected 1, as there is no scaling with Llama rotation"),
    ({22: 1}, "byte 80: expected a header key from 0 to 21, found key 22"),
    ({-1: 1}, "found key -1"),
    ({1000: 1}, "found key 1000; a newer dllama can read it"),
    # Sizes that no file has, products near 2^63 among them.
    ({9: 1 << 24, 2: 1 << 20, 5: 1 << 12, 3: 1 << 20, 4: 1 << 12, 6: 1 << 12}, "the file ends in tensor embed_tokens"),
    ({4: 4096}, "the file ends in tensor layers.1.q_proj"),
]


@pytest.mark.parametrize(("changes", "text"), UNSOUND, ids=[str(changes) for changes, _ in UNSOUND])
def test_unsound_headers_are_refused(tmp_path, changes, text):
    assert text in refusal(plain_file(tmp_path / "a.m", changes))


UNSUPPORTED = [
    ({1: QWEN3_MOE, 7: 128, 8: 8, 21: 32}, "Qwen3 MoE"),
    ({7: 8, 8: 2}, "8 experts: Mixtral"),
    ({1: QWEN3, 7: 8, 8: 2}, "8 experts: Grok-1 or Qwen3 MoE"),
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


def test_changed_bytes_of_the_header_are_refused_or_loaded(tmp_path):
    path = tmp_path / "a.m"
    write_tiny_model(path, tiny_config(**SMALLEST))
    good = path.read_bytes()
    size = struct.unpack_from("<i", good, 4)[0]
    rng, loaded = random.Random(3), 0
    descriptors = open_descriptors()
    with path.open("r+b", buffering=0) as file:
        for offset in range(size):
            for value in {0, 1, 0x7F, 0x80, 0xFF, good[offset] ^ 1, good[offset] ^ 16, rng.randrange(256)}:
                os.pwrite(file.fileno(), bytes([value]), offset)
                try:
                    with open_m_file(path) as model:
                        assert model.file_size == size + total_nbytes(model.config)
                        model.tensors["lm_head"].read_rows(0, model.config.vocab_size)
                        loaded += 1
                except BadFile:
                    pass
            os.pwrite(file.fileno(), good[offset : offset + 1], offset)
    assert loaded > size // 8  # the unchanged ones at least
    assert open_descriptors() == descriptors


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


# ---- the writer ----


@pytest.mark.parametrize("step", [1, 5, 16, 1000])
@pytest.mark.parametrize("encoded", [False, True])
def test_rows_may_come_in_chunks(tmp_path, step, encoded):
    config = tiny_config()
    weights = write_tiny_model(tmp_path / "whole.m", config)

    def chunks(info):
        rows = np.atleast_2d(weights[info.name])
        rows = encode(info.dtype, rows) if encoded else rows
        return (rows[begin : begin + step] for begin in range(0, len(rows), step))

    done: list[TensorInfo] = []
    write_m_file(tmp_path / "chunks.m", config, chunks, on_tensor=done.append)
    assert (tmp_path / "chunks.m").read_bytes() == (tmp_path / "whole.m").read_bytes()
    assert done == list(tensors_in_order(config))


def test_a_large_tensor_is_written_in_pieces(tmp_path, monkeypatch):
    weights = write_tiny_model(tmp_path / "whole.m")
    monkeypatch.setattr("dllama.formats.m_writer._PIECE_VALUES", 200)  # 3 rows
    write_m_file(tmp_path / "pieces.m", tiny_config(), weights)
    assert (tmp_path / "pieces.m").read_bytes() == (tmp_path / "whole.m").read_bytes()


BAD_WEIGHTS = [
    ("layers.0.q_proj", None, "this tensor is missing"),
    ("layers.0.q_proj", np.zeros((63, 64)), "ends inside a head"),
    ("layers.0.q_proj", np.zeros((48, 64)), "expected 64 rows, found 48"),
    ("layers.0.v_proj", np.zeros((33, 64)), "expected 32 rows, found 33"),
    ("layers.0.v_proj", np.zeros((32, 65)), r"expected rows of 64, found an array of shape \[32, 65\]"),
    ("norm", np.zeros((64, 1)), "expected rows of 64"),
    ("layers.0.o_proj", np.full((64, 64), np.nan), "magnitude nan cannot be stored as Q40"),
    ("layers.0.o_proj", np.full((64, 64), 6e5), "magnitude 600000.0 cannot be stored as Q40"),
    ("norm", np.full(64, np.inf), "magnitude inf cannot be stored as F32"),
]


@pytest.mark.parametrize(("name", "rows", "text"), BAD_WEIGHTS)
def test_unfit_tensors_leave_the_target_untouched(tmp_path, name, rows, text):
    weights = random_weights(tiny_config())
    weights.pop(name)
    if rows is not None:
        weights[name] = rows
    (tmp_path / "a.m").write_bytes(b"before")
    with pytest.raises(UsageError, match=text):
        write_m_file(tmp_path / "a.m", tiny_config(), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["a.m"]
    assert (tmp_path / "a.m").read_bytes() == b"before"


UNFIT_CONFIGS = [
    ({"rms_norm_eps": 1e-4}, "rms_norm_eps"),
    ({"rope_theta": 10000.5}, "rope_theta"),
    ({"rope_scaling": replace(LLAMA3_SCALING, factor=1.5)}, "rope_scaling.factor"),
    ({"model_type": "gemma"}, "'gemma'"),
    ({"model_type": "qwen3"}, "'qwen3'"),  # without q and k norms
    ({"hidden_size": 65}, "hidden_size: expected a multiple of 32"),
]


@pytest.mark.parametrize(("changes", "text"), UNFIT_CONFIGS)
def test_models_that_the_format_cannot_hold_are_refused(tmp_path, changes, text):
    with pytest.raises(UsageError, match=text):
        write_m_file(tmp_path / "a.m", replace(tiny_config(), **changes), {})
    assert not list(tmp_path.iterdir())


def test_only_files_are_replaced(tmp_path):
    for path in (tmp_path, Path("/dev/null"), tmp_path / "missing" / "a.m", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match="cannot be written"):
            write_tiny_model(path)
    assert Path("/dev/null").is_char_device()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(DllamaError, match=r"bytes, and the disk has \d+ free"):
        write_m_file(tmp_path / "a.m", tiny_config(vocab_size=1 << 24, hidden_size=1 << 20), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_total_is_the_sum_of_the_tensors(model_type):
    config = tiny_config(model_type, num_layers=3)
    assert total_nbytes(config) == sum(info.nbytes for info in tensors_in_order(config))
