"""Tiny model and tokenizer files for tests, made in milliseconds: written by our writer, and byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from dllama.config import DType, LayerSpec, ModelConfig, QkNorm, RopeScaling
from dllama.formats.m_file import write_m_file
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.quants import encode
from dllama.formats.t_file import TokenizerData, write_t_file

MAGIC = 0x0A00ABCD
LLAMA, QWEN3, QWEN3_MOE = 0xABCD00, 0xABCD01, 0xABCD02
DIMS = {1: LLAMA, 2: 64, 3: 96, 4: 1, 5: 4, 6: 2, 9: 8, 10: 128}  # header keys of `plain_file`
LLAMA3_SCALING = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)


def tiny_config(model_type: str = "llama", weight_type: DType = DType.Q40, **changes: object) -> ModelConfig:
    """Give a model of two layers, 4 query heads on 2 KV heads, if of experts 3 of 8; ``changes`` replace any field."""
    num_layers = changes.get("num_layers", 2)
    assert isinstance(num_layers, int)
    is_qwen, has_experts = model_type.startswith("qwen3"), model_type == "qwen3_moe"
    fields: dict[str, object] = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": num_layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32 if is_qwen else 16,
        "vocab_size": 320,
        "max_seq_len": 128,
        "rms_norm_eps": 1e-6 if is_qwen else 1e-5,
        "rope_theta": 1e6 if is_qwen else 1e4,
        "weight_type": weight_type,
        "layers": (LayerSpec(QkNorm.HEAD if is_qwen else QkNorm.NONE, has_experts=has_experts),) * num_layers,
        **({"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 96} if has_experts else {}),
    }
    return ModelConfig(**(fields | changes))  # type: ignore[arg-type]


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Give float32 tensors by name in Hugging Face's row order, scaled so that activations stay near 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for info in tensors_in_order(config):
        values = rng.standard_normal(info.shape, dtype=np.float32)
        is_norm = len(info.shape) == 1
        weights[info.name] = 1 + values / 8 if is_norm else values / np.float32(info.cols**0.5)
    return weights


def write_tiny_model(path: Path, config: ModelConfig | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Write a ``.m`` file of random weights; give the weights before they were quantized."""
    config = config or tiny_config()
    weights = random_weights(config, seed)
    write_m_file(path, config, weights)
    return weights


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


def byte_tokenizer_data(vocab_size: int = 320, chat_template: str | None = None) -> TokenizerData:
    """Give a rank vocabulary: 256 bytes, pairs of letters, then 8 special tokens with the names of Llama 3."""
    special = [b"<|begin_of_text|>", b"<|end_of_text|>", b"<|start_header_id|>", b"<|end_header_id|>", b"<|eot_id|>"]
    special += [b"<|reserved_%d|>" % number for number in range(3)]
    letters = b"etaoinshrdlu "
    pairs = [bytes([first, second]) for first in letters for second in letters]
    num_pairs = vocab_size - 256 - len(special)
    assert 0 <= num_pairs <= len(pairs)
    pieces = [bytes([byte]) for byte in range(256)] + pairs[:num_pairs] + special
    bos_id = vocab_size - len(special)
    scores = -np.arange(vocab_size, dtype=np.float32)
    return TokenizerData(tuple(pieces), scores, bos_id, (bos_id + 1, bos_id + 4), True, chat_template)


def write_tiny_tokenizer(path: Path, vocab_size: int = 320, chat_template: str | None = None) -> TokenizerData:
    """Write ``byte_tokenizer_data`` as a ``.t`` file and give it."""
    data = byte_tokenizer_data(vocab_size, chat_template)
    write_t_file(path, data)
    return data
