"""What distributed-llama's converters write, said once more in plain steps: the files that ours must equal.

From the facts of its format, not from our writer: keys and their order, the order of tensors, which are F32, how rows
of heads are laid out, and how blocks are rounded. Number types are its own ids.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

TYPES = {"f32": 0, "f16": 1, "q40": 2, "q80": 3}
ARCHS = {"llama": 0xABCD00, "mistral": 0xABCD00, "qwen3": 0xABCD01, "qwen3_moe": 0xABCD02}
Weights = Mapping[str, np.ndarray]  # float32


def encode(values: np.ndarray, kind: str) -> bytes:
    flat = values.astype(np.float32).reshape(-1)
    if kind in ("f32", "f16"):
        return flat.astype("<f4" if kind == "f32" else "<f2").tobytes()
    return b"".join(map(q40_block if kind == "q40" else q80_block, flat.reshape(-1, 32)))


def q40_block(block: np.ndarray) -> bytes:
    """The scale makes the value furthest from zero -8; of two equally far ones the positive counts."""
    low, high = block.min(), block.max()
    scale = (low if -low > high else high) / np.float32(-8)
    inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
    quants = [int(min(max(value * inverse + np.float32(8.5), 0), 15)) for value in block]
    return struct.pack("<e", scale) + bytes(quants[i] | quants[i + 16] << 4 for i in range(16))


def q80_block(block: np.ndarray) -> bytes:
    """The scale makes the value furthest from zero 127; halves go to the even neighbour."""
    low, high = block.min(), block.max()
    scale = max(high, -low) / np.float32(127)
    inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
    return struct.pack("<e32b", scale, *(int(np.round(value * inverse)) for value in block))


def header(pairs: Sequence[tuple[int, int]]) -> bytes:
    raw = b"".join(struct.pack("<ii", key, value) for key, value in pairs)
    return struct.pack("<ii", 0x0A00ABCD, 8 + len(raw)) + raw


def hf_pairs(config: Mapping[str, Any], kind: str) -> Iterator[tuple[int, int]]:
    """Keys of convert-hf.py, in its order; a field that config.json lacks has none."""
    yield 0, 0
    yield 1, ARCHS[config["model_type"]]
    yield 11, 1
    yield 2, config["hidden_size"]
    yield 3, config["intermediate_size"]
    yield 4, config["num_hidden_layers"]
    yield 5, config["num_attention_heads"]
    yield 6, config["num_key_value_heads"]
    yield 13, TYPES[kind]
    yield 10, config["max_position_embeddings"]
    yield 9, config["vocab_size"]
    yield 7, config.get("num_experts") or 0
    yield 8, config.get("num_experts_per_tok") or 0
    if "rope_theta" in config:
        yield 12, int(config["rope_theta"])
    if scaling := config.get("rope_scaling"):
        yield 14, int(scaling["factor"])
        yield 15, int(scaling["low_freq_factor"])
        yield 16, int(scaling["high_freq_factor"])
        yield 17, int(scaling["original_max_position_embeddings"])
        yield 18, 2
    if "head_dim" in config:
        yield 19, config["head_dim"]
    if "rms_norm_eps" in config:
        yield 20, {1e-5: 5, 1e-6: 6}[config["rms_norm_eps"]]
    if "moe_intermediate_size" in config:
        yield 21, config["moe_intermediate_size"]


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Of each head, row j and row j + half go side by side."""
    head_dim = len(rows) // heads
    order = [
        head * head_dim + half * head_dim // 2 + j
        for head in range(heads)
        for j in range(head_dim // 2)
        for half in (0, 1)
    ]
    return rows[order]


def hf_file(config: Mapping[str, Any], weights: Weights, kind: str) -> bytes:
    """The whole file that convert-hf.py makes of a folder."""
    is_llama = ARCHS[config["model_type"]] == 0xABCD00
    parts = [header(list(hf_pairs(config, kind))), encode(weights["model.embed_tokens.weight"], "f32")]

    def add(name: str, as_kind: str, heads: int = 0) -> None:
        rows = weights[name + ".weight"]
        parts.append(encode(interleaved(rows, heads) if heads and is_llama else rows, as_kind))

    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        add(prefix + "self_attn.q_proj", kind, config["num_attention_heads"])
        add(prefix + "self_attn.k_proj", kind, config["num_key_value_heads"])
        add(prefix + "self_attn.v_proj", kind)
        add(prefix + "self_attn.o_proj", kind)
        blocks = [prefix + "mlp."]
        if config.get("num_experts"):
            add(prefix + "mlp.gate", "f32")
            blocks = [f"{prefix}mlp.experts.{expert}." for expert in range(config["num_experts"])]
        for block in blocks:
            for matrix in ("gate_proj", "down_proj", "up_proj"):
                add(block + matrix, kind)
        norms = ("input_layernorm", "post_attention_layernorm")
        for norm in norms if is_llama else ("self_attn.q_norm", "self_attn.k_norm", *norms):
            add(prefix + norm, "f32")
    add("model.norm", "f32")
    add("lm_head" if "lm_head.weight" in weights else "model.embed_tokens", kind)
    return b"".join(parts)


def meta_file(pairs: Sequence[tuple[int, int]], layers: int, weights: Weights, kind: str) -> bytes:
    """The whole file that convert-llama.py makes of a checkpoint whose slices are put together; it permutes nothing."""
    parts = [header(pairs), encode(weights["tok_embeddings.weight"], "f32")]
    for layer in range(layers):
        matrices = [f"attention.{name}" for name in ("wq", "wk", "wv", "wo")]
        matrices += [f"feed_forward.{name}" for name in ("w1", "w2", "w3")]
        parts += [encode(weights[f"layers.{layer}.{name}.weight"], kind) for name in matrices]
        parts += [encode(weights[f"layers.{layer}.{name}.weight"], "f32") for name in ("attention_norm", "ffn_norm")]
    return b"".join([*parts, encode(weights["norm.weight"], "f32"), encode(weights["output.weight"], kind)])
