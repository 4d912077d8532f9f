"""The converters, as users run them: files equal to distributed-llama's, for any sharding, and errors of one line."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peer_converter as peer  # type: ignore[import-not-found]
import pytest
from checkpoints import bf16, from_bf16, write_folder, write_pth  # type: ignore[import-not-found]
from family_models import FOLDER, FamilyGolden  # type: ignore[import-not-found]

import dllama
from dllama.config import DType
from dllama.formats.hf_folder import open_hf_folder
from dllama.formats.m_copy import copy_to_m_file
from dllama.formats.m_file import open_m_file
from dllama.formats.peer_header import header_of_config

GOLDENS = [FamilyGolden.load(path.stem) for path in sorted(FOLDER.glob("*.npz"))]
CONVERTERS = Path(__file__).resolve().parent.parent / "converters"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BASE = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 160,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def convert(script: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONVERTERS / script), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=60)


def converted(script: str, *words: object, cwd: Path) -> bytes:
    """Run a converter in a folder of its own; give the one file that it made."""
    out = cwd / "out"
    out.mkdir()
    result = convert(script, *words, cwd=out)
    assert (result.returncode, result.stderr) == (0, "")
    (path,) = out.iterdir()
    assert result.stdout.endswith(f"✅ {path.name}\n")
    return path.read_bytes()


def hf_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Give random bfloat16 tensors, as uint16, with a block of zeros and a tie of extremes among them."""
    rng = np.random.default_rng(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q_size, kv_size = (config[name] * head_dim for name in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in {"q": (q_size, hidden), "k": (kv_size, hidden), "v": (kv_size, hidden)}.items():
            shapes[f"{prefix}self_attn.{name}_proj"] = shape
        shapes[f"{prefix}self_attn.o_proj"] = (hidden, q_size)
        blocks = [f"{prefix}mlp."]
        if experts := config.get("num_experts"):
            shapes[f"{prefix}mlp.gate"] = (experts, hidden)
            blocks, ffn = (
                [f"{prefix}mlp.experts.{expert}." for expert in range(experts)],
                config["moe_intermediate_size"],
            )
        for block in blocks:
            shapes |= {f"{block}gate_proj": (ffn, hidden), f"{block}up_proj": (ffn, hidden)}
            shapes[f"{block}down_proj"] = (hidden, ffn)
        if config["model_type"].startswith("qwen3"):
            shapes |= {f"{prefix}self_attn.q_norm": (head_dim,), f"{prefix}self_attn.k_norm": (head_dim,)}
        shapes |= {f"{prefix}input_layernorm": (hidden,), f"{prefix}post_attention_layernorm": (hidden,)}
    shapes["model.norm"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (vocab, hidden)
    weights = {f"{name}.weight": rng.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}
    matrix = weights["model.layers.0.self_attn.v_proj.weight"]
    matrix[0, :32] = 0
    matrix[1, :32] = np.clip(matrix[1, :32], -0.5, 0.5)
    matrix[1, 3], matrix[1, 17] = -0.5, 0.5
    return {name: bf16(values) for name, values in weights.items()}


def floats(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: from_bf16(values) for name, values in weights.items()}


CONFIGS = {
    "llama": {**BASE, "head_dim": 16, "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "llama tied": {**BASE, "tie_word_embeddings": True},
    "mistral": {**BASE, "model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None},
    "qwen3": {**BASE, "model_type": "qwen3", "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 1000000},
    "qwen3_moe": {
        **BASE,
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}


@pytest.mark.verifies(
    "Files equal, byte by byte, what an independent statement of distributed-llama's writer gives.",
    "converters",
    families=peer.ARCHS,
)
@pytest.mark.parametrize("kind", ["q40", "q80", "f16", "f32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_folders_equal_the_peer(tmp_path: Path, name: str, kind: str) -> None:
    config = CONFIGS[name]
    weights = hf_weights(config)
    folder = write_folder(tmp_path / "source", config, weights, shards=3 if kind == "q40" else 1)
    found = converted("convert_hf.py", folder, kind, "x", cwd=tmp_path)
    assert found == peer.hf_file(config, floats(weights), kind)


def test_a_model_that_the_peer_does_not_know_has_a_file_of_ours(tmp_path: Path) -> None:
    config = {**CONFIGS["mistral"], "sliding_window": 32}
    folder = write_folder(tmp_path / "source", config, hf_weights(config))
    result = convert("convert_hf.py", folder, "q40", "x", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "only dllama reads this file" in result.stdout
    with open_m_file(tmp_path / "dllama_model_x_q40.m") as model:
        assert {layer.window for layer in model.config.layers} == {32}


def test_name_of_the_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", BASE, hf_weights(BASE))
    assert convert("convert_hf.py", folder, "q80", "tiny", cwd=tmp_path).returncode == 0
    with open_m_file(tmp_path / "dllama_model_tiny_q80.m") as model:
        assert model.config.weight_type is DType.Q80


@pytest.mark.verifies("A converted file has the model and the numbers of its folder.", "converters")
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_every_family_is_converted_whole(tmp_path: Path, golden: FamilyGolden) -> None:
    folder = golden.model.write(tmp_path / "source")
    path = tmp_path / "x.m"
    for weight_type in (DType.F32, DType.Q40):
        with open_hf_folder(folder, weight_type) as source:
            copy_to_m_file(source, path, header_of_config(golden.model.config, source.config))
            with open_m_file(path) as model:
                # What distributed-llama's header does not tell is how a family is called.
                assert replace(model.config, model_type=golden.family) == source.config
                assert {*model.tensors} == {*source.tensors}
                for name, tensor in model.tensors.items():
                    rows = source.tensors[name].read_rows(0, tensor.rows)
                    assert np.array_equal(tensor.read_rows(0, tensor.rows), rows), name


def test_reads_from_where_python_has_no_packages(tmp_path: Path) -> None:
    """A checkout that is not set up says what to do; one that is has its own Python."""
    shutil.copytree(CONVERTERS, tmp_path / "converters", ignore=shutil.ignore_patterns("__pycache__"))
    bare = [sys.executable, "-S", "-E", str(tmp_path / "converters" / "convert_hf.py"), "a", "q40", "b"]
    result = subprocess.run(bare, capture_output=True, encoding="utf-8")
    assert (result.returncode, result.stderr) == (1, "🚨 dllama is not set up here; run: python3 launch.py setup\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    result = subprocess.run(bare, capture_output=True, encoding="utf-8")
    assert (result.returncode, result.stdout) == (0, f"{bare[3]} a q40 b\n")


# --- Meta's -------------------------------------------------------------------------------------

PARAMS = {"dim": 64, "multiple_of": 32, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": 160}
BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")


def meta_weights(kv_heads: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (160, 64), "norm": (64,), "output": (160, 64)}
    for layer in range(2):
        attention, ffn = f"layers.{layer}.attention.", f"layers.{layer}.feed_forward."
        shapes |= {f"{attention}wq": (64, 64), f"{attention}wo": (64, 64)}
        shapes |= {f"{attention}{name}": (16 * kv_heads, 64) for name in ("wk", "wv")}
        shapes |= {f"{ffn}w1": (128, 64), f"{ffn}w2": (64, 128), f"{ffn}w3": (128, 64)}
        shapes |= {f"layers.{layer}.attention_norm": (64,), f"layers.{layer}.ffn_norm": (64,)}
    return {f"{name}.weight": bf16(rng.standard_normal(shape, np.float32) / 8) for name, shape in shapes.items()}


def write_meta(
    folder: Path, params: Mapping[str, Any], weights: Mapping[str, np.ndarray], shards: int, cut: int
) -> Path:
    """Write a checkpoint in slices; ``cut`` is the axis along which the embedding is cut."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for shard in range(shards):
        tensors = {"rope.freqs": np.ones(8, "<f4")}
        for name, values in weights.items():
            axis = cut if name.startswith("tok_embeddings") else int(name.endswith(BY_COLUMNS))
            whole = values.ndim == 1
            tensors[name] = values if whole else np.ascontiguousarray(np.split(values, shards, axis)[shard])
        write_pth(folder / f"consolidated.{shard:02}.pth", tensors)
    return folder


def meta_pairs(kind: str, kv_heads: int) -> list[tuple[int, int]]:
    """Keys of convert-llama.py for PARAMS with max_seq_len behind them: params.json's order, then its own."""
    own = [(1, 0xABCD00), (7, 0), (8, 0), (13, peer.TYPES[kind]), (3, 128)]
    return [(2, 64), (5, 4), (4, 2), (9, 160), (10, 4096), (6, kv_heads), *own]


@pytest.mark.verifies("So do those of Meta's checkpoints, in one file or several.", "converters", families=["llama"])
@pytest.mark.parametrize("kind", ["q40", "q80", "f16", "f32"])
@pytest.mark.parametrize(("shards", "cut"), [(1, 0), (2, 0), (2, 1)])
def test_meta_folders_equal_the_peer(tmp_path: Path, shards: int, cut: int, kind: str) -> None:
    params = {**PARAMS, "max_seq_len": 4096}
    weights = meta_weights(kv_heads=4)
    folder = write_meta(tmp_path / "Llama-2-Tiny", params, weights, shards, cut)
    found = converted("convert_llama.py", folder, kind, cwd=tmp_path)
    assert (tmp_path / "out" / f"dllama_model_llama-2-tiny_{kind}.m").exists()
    assert found == peer.meta_file(meta_pairs(kind, 4), 2, floats(weights), kind)


def test_what_meta_leaves_out_is_found(tmp_path: Path) -> None:
    params = {**PARAMS, "n_kv_heads": 2, "vocab_size": -1, "rope_theta": 500000.0, "use_scaled_rope": True}
    folder = write_meta(tmp_path / "m", params, meta_weights(kv_heads=2), 2, cut=0)
    converted("convert_llama.py", folder, "q40", cwd=tmp_path)
    with open_m_file(tmp_path / "out" / "dllama_model_m_q40.m") as model:
        config = model.config
    assert (config.vocab_size, config.max_seq_len, config.num_kv_heads) == (160, 131072, 2)
    assert (config.rope_theta, config.intermediate_size) == (500000.0, 128)
    scaling = config.rope_scaling
    assert scaling is not None
    assert (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) == (32.0, 1.0, 4.0)
    assert scaling.original_max_seq_len == 8192


@pytest.mark.parametrize(
    ("changes", "context"),
    [({}, 4096), ({"norm_eps": 1e-6}, 2048), ({"rope_theta": 5e5}, 8192), ({"rope_theta": 1e6}, 16384)],
)
def test_context_that_meta_leaves_out(tmp_path: Path, changes: dict[str, float], context: int) -> None:
    folder = write_meta(tmp_path / "m", {**PARAMS, **changes}, meta_weights(kv_heads=4), 1, cut=0)
    converted("convert_llama.py", folder, "q40", cwd=tmp_path)
    with open_m_file(tmp_path / "out" / "dllama_model_m_q40.m") as model:
        assert model.config.max_seq_len == context
        assert model.config.rms_norm_eps == changes.get("norm_eps", 1e-5)


# --- what goes wrong ----------------------------------------------------------------------------


def complaint(result: subprocess.CompletedProcess[str], status: int) -> str:
    assert result.returncode == status, result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_usage(tmp_path: Path) -> None:
    usage = "usage: python convert_hf.py SRC q40|q80|f16|f32 NAME\n"
    assert complaint(convert("convert_hf.py", "a", cwd=tmp_path), 2).endswith(usage)
    result = convert("convert_hf.py", "--help", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, usage, "")
    folder = write_folder(tmp_path / "source", BASE, hf_weights(BASE))
    assert "one of q40, q80, f16, f32" in complaint(convert("convert_hf.py", folder, "q5", "x", cwd=tmp_path), 2)


def test_what_nobody_expected_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(CONVERTERS)!r})\nfrom _start import start\n"
        "sys.exit(start(lambda words: 1 // 0, 'X', (0,)))\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, encoding="utf-8", timeout=60)
    assert "internal error: ZeroDivisionError" in complaint(result, 1)


def test_a_model_is_checked_without_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BASE))
    assert "no tokenizer" in complaint(convert("check_hf.py", folder, "q40", cwd=tmp_path), 2)
    shutil.copy(Path(dllama.__file__).parent / "demo" / "tokenizer.t", folder)
    for words in (["q40"], ["q40", "64"]):
        result = convert("check_hf.py", folder, *words, cwd=tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    (folder / "config.json").write_text(json.dumps({**BASE, "num_hidden_layers": 1000, "intermediate_size": 1 << 20}))
    assert "MiB of memory" in complaint(convert("check_hf.py", folder, "q40", "64", cwd=tmp_path), 5)
    assert convert("check_hf.py", folder, "q40", cwd=tmp_path).returncode == 0
    (folder / "config.json").write_text(json.dumps({**BASE, "model_type": "gemma3"}))
    assert "vision tower" in complaint(convert("check_hf.py", folder, "q40", cwd=tmp_path), 3)


def test_nothing_is_left_of_a_broken_model(tmp_path: Path) -> None:
    weights = hf_weights(BASE)
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] = 0x7FC0  # NaN
    folder = write_folder(tmp_path / "source", BASE, weights)
    message = complaint(convert("convert_hf.py", folder, "q40", "x", cwd=tmp_path), 3)
    assert "layers.1.mlp.up_proj" in message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_broken_checkpoints_of_meta(tmp_path: Path) -> None:
    params = {**PARAMS, "max_seq_len": 64}
    weights = meta_weights(kv_heads=4)
    folder = write_meta(tmp_path / "m", params, weights, 2, cut=1)
    uneven = {**weights, "layers.1.attention.wv.weight": weights["layers.1.attention.wv.weight"][:62]}
    write_meta(tmp_path / "uneven", params, uneven, 2, cut=1)
    message = complaint(convert("convert_llama.py", tmp_path / "uneven", "q40", cwd=tmp_path), 3)
    assert "layers.1.attention.wv.weight: expected 2 equal slices of [64, 64], found BF16 [31, 64]" in message
    (folder / "consolidated.01.pth").unlink()
    assert "are all consolidated files there" in complaint(convert("convert_llama.py", folder, "q40", cwd=tmp_path), 3)
    write_pth(folder / "consolidated.00.pth", weights, b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.")
    assert "posix.system', which is never run" in complaint(convert("convert_llama.py", folder, "q40", cwd=tmp_path), 3)
    (folder / "params.json").write_text("[" * 100_000)
    assert "params.json" in complaint(convert("convert_llama.py", folder, "q40", cwd=tmp_path), 3)


def test_bar_on_a_terminal_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", BASE, hf_weights(BASE))
    result = convert("convert_hf.py", folder, "q40", "x", cwd=tmp_path)
    assert result.stdout == "✅ dllama_model_x_q40.m\n"
    master, slave = pty.openpty()
    command = [sys.executable, str(CONVERTERS / "convert_hf.py"), str(folder), "q40", "x"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=slave, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(slave)
        process.wait(timeout=60)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "100%" in shown
