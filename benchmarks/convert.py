"""How fast checkpoints become ``.m`` files, and in how much memory, against the disk's own pace.

Run from the root: ``.venv/bin/python benchmarks/convert.py [--gigabytes N] [--type q40] [--rounds N] [--json FILE]``.
Makes a Hugging Face folder of random BF16 weights, converts it by ``converters/convert_hf.py`` and, in turns, copies
its bytes: what the disk alone would take. Rates count bytes of the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import records
from benchmarks.facts import machine_facts
from benchmarks.models import ROOT
from dllama.cli.parser import whole

REQUIRED_MB_S, REQUIRED_MIB = 400.0, 1024.0
_HIDDEN, _FFN, _HEADS, _KV_HEADS, _HEAD_DIM, _VOCAB = 2048, 8192, 32, 8, 64, 32000  # Llama 3.2 1B but for the words
_LAYER_BYTES = 2 * (2 * _HIDDEN * _HEADS * _HEAD_DIM + 2 * _HIDDEN * _KV_HEADS * _HEAD_DIM + 3 * _HIDDEN * _FFN)


def shapes(num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the tensors of a Llama."""
    q_size, kv_size = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
    yield "model.embed_tokens", (_VOCAB, _HIDDEN)
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}self_attn.q_proj", (q_size, _HIDDEN)
        yield f"{prefix}self_attn.k_proj", (kv_size, _HIDDEN)
        yield f"{prefix}self_attn.v_proj", (kv_size, _HIDDEN)
        yield f"{prefix}self_attn.o_proj", (_HIDDEN, q_size)
        yield f"{prefix}mlp.gate_proj", (_FFN, _HIDDEN)
        yield f"{prefix}mlp.up_proj", (_FFN, _HIDDEN)
        yield f"{prefix}mlp.down_proj", (_HIDDEN, _FFN)
        yield f"{prefix}input_layernorm", (_HIDDEN,)
        yield f"{prefix}post_attention_layernorm", (_HIDDEN,)
    yield "model.norm", (_HIDDEN,)
    yield "lm_head", (_VOCAB, _HIDDEN)


def make_folder(folder: Path, num_bytes: int) -> int:
    """Write a Hugging Face folder of about this size; give the bytes of its weights."""
    num_layers = max(1, num_bytes // _LAYER_BYTES)
    config = {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": _HIDDEN, "intermediate_size": _FFN,
        "num_hidden_layers": num_layers, "num_attention_heads": _HEADS, "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM, "max_position_embeddings": 4096, "vocab_size": _VOCAB, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes(num_layers):
        begin, end = end, end + 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    values = np.random.default_rng(0).standard_normal(1 << 22, np.float32) / 32
    piece = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for begin in range(0, end, len(piece)):
            file.write(piece[: end - begin])
    return end


def convert(folder: Path, type_name: str) -> tuple[float, float]:
    """Run the converter once; give its seconds and its peak of resident MiB."""
    command = [sys.executable, str(ROOT / "converters" / "convert_hf.py"), str(folder), type_name, "x"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # which Popen did not see
    if status:
        raise SystemExit(f"the converter ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024  # Linux counts KiB


def copy(folder: Path) -> float:
    """Copy the weights; give the seconds."""
    start = time.perf_counter()
    shutil.copyfile(folder / "model.safetensors", folder / "copy")
    with (folder / "copy").open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (folder / "copy").unlink()
    return seconds


def measure(type_name: str, num_bytes: int, rounds: int) -> list[records.Record]:
    """Convert and copy in turns."""
    with tempfile.TemporaryDirectory(prefix="dllama-convert-") as name:
        folder = Path(name)
        size = make_folder(folder, num_bytes)
        copies, conversions, peaks = [], [], []
        for _ in range(rounds):
            copies.append(size / copy(folder) / 1e6)
            seconds, peak = convert(folder, type_name)
            conversions.append(size / seconds / 1e6)
            peaks.append(peak)
    case = f"BF16 to {type_name}"
    return [
        records.figure("convert", case, statistics.median(conversions), REQUIRED_MB_S, "MB/s", rounds=conversions),
        records.figure("convert", f"{case}, memory", max(peaks), REQUIRED_MIB, "MiB", at_least=False),
        records.figure("convert", "copying the same bytes", statistics.median(copies), None, "MB/s", rounds=copies),
    ]


def main() -> int:
    """Measure, and print what was found; 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the checkpoint (default: %(default)s)")
    parser.add_argument("--type", choices=["q40", "q80", "f16", "f32"], default="q40")
    parser.add_argument("--rounds", type=whole(1, 1024), default=5)
    parser.add_argument("--json", type=Path, help="write the records there, too")
    options = parser.parse_args()
    found = records.show(measure(options.type, int(options.gigabytes * 1e9), options.rounds))
    if options.json:
        records.write(options.json, found, machine_facts())
    return 0 if all(map(records.is_met, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
