"""The catalogue: distributed-llama's names and addresses, and numbers that our own arithmetic repeats."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dllama
from dllama.config import DType, LayerSpec, ModelConfig, QkNorm, RopeScaling
from dllama.engine.sizing import NodeOptions, settle_size
from dllama.formats.m_layout import total_nbytes
from dllama.formats.m_writer import build_header
from dllama.hub.catalogue import CATALOGUE, CONTEXT, find_entry
from dllama.hub.remote import Server
from dllama.plan import make_plan

ROOT = Path(dllama.__file__).resolve().parent.parent
# hidden, FFN, layers, heads, KV heads, head size; vocabulary, context, theta and scaling by family
ARCHITECTURES = {
    "qwen3_0.6b_q40": (1024, 3072, 28, 16, 8, 128),
    "qwen3_1.7b_q40": (2048, 6144, 28, 16, 8, 128),
    "qwen3_8b_q40": (4096, 12288, 36, 32, 8, 128),
    "qwen3_14b_q40": (5120, 17408, 40, 40, 8, 128),
    "qwen3_30b_a3b_q40": (2048, 6144, 48, 32, 4, 128),
    "llama3_2_1b_instruct_q40": (2048, 8192, 16, 32, 8, 64),
    "llama3_2_3b_instruct_q40": (3072, 8192, 28, 24, 8, 128),
    "llama3_1_8b_instruct_q40": (4096, 14336, 32, 32, 8, 128),
    "deepseek_r1_distill_llama_8b_q40": (4096, 14336, 32, 32, 8, 128),
    "llama3_3_70b_instruct_q40": (8192, 28672, 80, 64, 8, 128),
    "llama3_1_405b_instruct_q40": (16384, 53248, 126, 128, 16, 128),
}


def config_of(name: str) -> ModelConfig:
    hidden, ffn, layers, heads, kv_heads, head_dim = ARCHITECTURES[name]
    is_qwen, has_experts = name.startswith("qwen3"), name == "qwen3_30b_a3b_q40"
    return ModelConfig(
        model_type="qwen3_moe" if has_experts else "qwen3" if is_qwen else "llama",
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=151936 if is_qwen else 128256,
        max_seq_len=40960 if is_qwen else 131072,
        rms_norm_eps=1e-6 if is_qwen else 1e-5,
        rope_theta=1e6 if is_qwen else 5e5,
        weight_type=DType.Q40,
        layers=(LayerSpec(QkNorm.HEAD if is_qwen else QkNorm.NONE, has_experts=has_experts),) * layers,
        rope_scaling=None if is_qwen else RopeScaling(8.0, 1.0, 4.0, 8192),
        num_experts=128 if has_experts else 0,
        num_experts_per_tok=8 if has_experts else 0,
        moe_intermediate_size=768 if has_experts else 0,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes(name: str) -> None:
    config = config_of(name)
    assert CATALOGUE[name].model_bytes == len(build_header(config)) + total_nbytes(config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_memory(name: str) -> None:
    config = config_of(name)
    options = NodeOptions(num_threads=4, max_seq_len=CONTEXT)
    needed = settle_size(config, make_plan(config), 0, options, 1 << 50).memory.total
    assert CATALOGUE[name].memory_bytes == pytest.approx(needed, rel=0.02)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("llama3_1_8b_instruct_q40", 6.32),
        ("llama3_1_405b_instruct_q40", 238),
        ("llama3_2_1b_instruct_q40", 1.7),
        ("llama3_2_3b_instruct_q40", 3.4),
        ("qwen3_0.6b_q40", 0.9),
        ("qwen3_1.7b_q40", 2.2),
        ("qwen3_8b_q40", 6.7),
        ("qwen3_14b_q40", 10.9),
    ],
)
def test_sizes_agree_with_what_was_published(name: str, gigabytes: float) -> None:
    assert CATALOGUE[name].model_bytes / 1e9 == pytest.approx(gigabytes, rel=0.07)


@pytest.mark.parametrize(("name", "gib"), [("llama3_3_70b_instruct_q40", 40), ("qwen3_30b_a3b_q40", 17.0)])
def test_sizes_agree_with_what_was_published_in_gib(name: str, gib: float) -> None:
    assert CATALOGUE[name].model_bytes / (1 << 30) == pytest.approx(gib, rel=0.02)


def test_addresses() -> None:
    server = Server("https://huggingface.co")

    def urls(name: str) -> list[str]:
        entry = CATALOGUE[name]
        return [server.url(entry.page, file) for file in (*entry.model_files, entry.tokenizer_file)]

    begin = "https://huggingface.co/b4rtaz/"
    end = "?download=true"
    assert urls("llama3_2_1b_instruct_q40") == [
        f"{begin}Llama-3_2-1B-Q40-Instruct-Distributed-Llama/resolve/main/dllama_model_llama3.2-1b-instruct_q40.m{end}",
        f"{begin}Llama-3_2-1B-Q40-Instruct-Distributed-Llama/resolve/main/dllama_tokenizer_llama3_2.t{end}",
    ]
    big = urls("llama3_1_405b_instruct_q40")
    assert len(big) == 57
    assert big[0].endswith("/dllama_model_llama31_405b_q40_aa?download=true")
    assert big[26].endswith("/dllama_model_llama31_405b_q40_ba?download=true")
    assert big[55].endswith("/dllama_model_llama31_405b_q40_cd?download=true")
    seventy = urls("llama3_3_70b_instruct_q40")
    assert seventy[10] == (
        f"{begin}Llama-3_3-70B-Q40-Instruct-Distributed-Llama/resolve/main/dllama_model_llama-3.3-70b_q40ak{end}"
    )
    assert [len(CATALOGUE[name].model_files) for name in ("qwen3_14b_q40", "qwen3_30b_a3b_q40")] == [2, 5]
    assert urls("qwen3_1.7b_q40") == [
        f"{begin}Qwen3-1.7B-Q40-Distributed-Llama/resolve/main/dllama_model_qwen3_1.7b_q40.m{end}",
        f"{begin}Qwen3-1.7B-Q40-Distributed-Llama/resolve/main/dllama_tokenizer_qwen3_1.7b.t{end}",
    ]


def test_names() -> None:
    entry = find_entry("llama3-2-1b-instruct-q40")
    assert entry is CATALOGUE["llama3_2_1b_instruct_q40"]
    assert entry.model_name == "dllama_model_llama3_2_1b_instruct_q40.m"
    assert entry.tokenizer_name == "dllama_tokenizer_llama3_2_1b_instruct_q40.t"
    assert find_entry("demo") is None


def test_nothing_but_the_standard_library_is_imported() -> None:
    modules = [f"dllama.hub.{path.stem}" for path in (ROOT / "dllama" / "hub").glob("[a-z]*.py")]
    code = f"import sys\nfor name in {modules}: __import__(name)\n"
    code += "print(sorted({'numpy', 'psutil', 'dllama._native', 'dllama.config'} & {*sys.modules}))"
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_launch_can_be_read_by_old_pythons() -> None:
    ast.parse((ROOT / "launch.py").read_text("utf-8"), feature_version=(3, 4))
