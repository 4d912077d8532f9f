"""The copy in GGUF holds the same blocks, in llama.cpp's order; where the extra ``compare`` is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_files import LLAMA3_SCALING, tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.config import DType, ModelConfig
from dllama.engine import Engine
from dllama.formats.m_file import open_m_file

gguf = pytest.importorskip("gguf")

from benchmarks.gguf_copy import gguf_name, write_gguf  # noqa: E402

CONFIGS = {
    "llama": tiny_config(rope_scaling=LLAMA3_SCALING),
    "llama, Q80": tiny_config(weight_type=DType.Q80),
    "llama, F16": tiny_config(weight_type=DType.F16),
    "qwen3": tiny_config("qwen3"),
}


def copied(folder: Path, config: ModelConfig) -> tuple[Path, Path]:
    write_tiny_model(folder / "a.m", config)
    write_gguf(folder / "a.m", folder / "a.gguf")
    return folder / "a.m", folder / "a.gguf"


@pytest.mark.parametrize("name", CONFIGS)
def test_all_values_are_there(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    model, copy = copied(tmp_path, config)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(copy).tensors}
    with open_m_file(model) as file:
        for tensor in file.tensors.values():
            theirs = found.pop(gguf_name(tensor.name))
            values = gguf.dequantize(theirs.data, theirs.tensor_type).reshape(tensor.rows, tensor.cols)
            if config.model_type == "llama" and tensor.name.endswith(("q_proj", "k_proj")):  # neighbours, not halves
                pairs = values.reshape(-1, config.head_dim // 2, 2, tensor.cols)
                values = pairs.transpose(0, 2, 1, 3).reshape(values.shape)
            np.testing.assert_array_equal(values, tensor.read_floats())
    assert list(found) == (["rope_freqs.weight"] if config.rope_scaling else [])


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_the_same(tmp_path: Path, name: str) -> None:
    pytest.importorskip("llama_cpp")
    from benchmarks.llama_cpp_side import LlamaCpp

    model, copy = copied(tmp_path, CONFIGS[name])
    tokens = [(index * 37 + 5) % 320 for index in range(40)]
    with Engine.load(model, num_threads=1) as engine:
        ours = engine.logits(tokens)[-1]
    theirs = LlamaCpp(copy).logits(tokens, 1)
    assert float(ours @ theirs) / float(np.linalg.norm(ours) * np.linalg.norm(theirs)) > 0.999
