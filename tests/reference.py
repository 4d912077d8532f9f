"""The transformer in plain numpy, in float64 or float32: the readable oracle that the engine is compared with.

It evaluates the numbers that a model file holds, as the engine defines them: Q40 and Q80 weights multiply activations
that were quantized to blocks of 32 with a full-precision scale, and the KV cache rounds to F16 if it is asked to.
Everything else is exact in the number type chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama.config import BLOCK_SIZE, DType, ModelConfig, QkNorm
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.tensor import TensorInfo

Array = npt.NDArray[Any]


class Reference:
    """One model, evaluated a whole sequence at a time.

    Attributes:
        config: The model; replace it to see what a wrong setting does to the logits.
        rounded: The activations of the last evaluation that were rounded, just before that, and the scales of their
            blocks: a pair of arrays for each quantization, in order.
    """

    def __init__(self, path: Path, kv_type: DType = DType.F32, dtype: type[np.floating[Any]] = np.float64) -> None:
        with open_m_file(path) as model:
            self.config: ModelConfig = model.config
            self.weights = {
                name: tensor.read_floats().reshape(tensor.shape).astype(dtype) for name, tensor in model.tensors.items()
            }
        self.kv_type, self.dtype = kv_type, dtype
        self.rounded: list[tuple[Array, Array]] = []

    def logits(self, token_ids: Sequence[int] | npt.NDArray[np.int32]) -> Array:
        """Give the logits of all positions, ``[len, vocab_size]``."""
        self.rounded = []
        x = self.weights["embed_tokens"][np.asarray(token_ids)]
        for i in range(self.config.num_layers):
            x = x + self.attention(i, self.norm(x, f"layers.{i}.input_layernorm"))
            x = x + self.feed_forward(i, self.norm(x, f"layers.{i}.post_attention_layernorm"))
        return self.products(self.norm(x, "norm"), "lm_head")[0]

    def attention(self, i: int, x: Array) -> Array:
        """Causal attention of layer ``i``; ``num_heads / num_kv_heads`` query heads share one KV head."""
        config, layer = self.config, f"layers.{i}."
        q, k, v = self.products(x, layer + "q_proj", layer + "k_proj", layer + "v_proj")
        q, k, v = (self.heads(part) for part in (q, k, v))
        if config.layers[i].qk_norm is not QkNorm.NONE:
            q, k = self.norm(q, layer + "q_norm"), self.norm(k, layer + "k_norm")
        q, k = self.rotate(q), self.cached(self.rotate(k))
        k, v = (np.repeat(part, config.group_size, axis=0) for part in (k, self.cached(v)))
        scores = q @ k.swapaxes(1, 2) / self.dtype(np.sqrt(config.head_dim))
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights @ v / weights.sum(axis=-1, keepdims=True)
        return self.products(mixed.swapaxes(0, 1).reshape(len(x), -1), layer + "o_proj")[0]

    def feed_forward(self, i: int, x: Array) -> Array:
        """SwiGLU: down(silu(gate(x)) * up(x))."""
        layer = f"layers.{i}."
        gate, up = self.products(x, layer + "gate_proj", layer + "up_proj")
        return self.products(gate / (1 + np.exp(-gate)) * up, layer + "down_proj")[0]

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm over the last axis."""
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.dtype(self.config.rms_norm_eps)) * self.weights[name]

    def heads(self, x: Array) -> Array:
        """Cut ``[len, heads * head_dim]`` into ``[heads, len, head_dim]``."""
        return x.reshape(len(x), -1, self.config.head_dim).swapaxes(0, 1)

    def rotate(self, x: Array) -> Array:
        """Rotate the pairs (j, j + head_dim / 2) of ``[heads, len, head_dim]`` by position times frequency."""
        positions = np.arange(x.shape[1], dtype=self.dtype)
        angles = positions[:, None] * self.config.rope_frequencies().astype(self.dtype)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def cached(self, x: Array) -> Array:
        """Give keys or values as the cache returns them."""
        if self.kv_type is DType.F16:
            return x.astype(np.float16).astype(self.dtype)
        if self.kv_type is DType.Q80:
            scales = np.abs(x).max(axis=-1, keepdims=True) / self.dtype(127)
            return np.rint(x / scales) * scales
        return x

    def products(self, x: Array, *names: str) -> tuple[Array, ...]:
        """Multiply the same activations with each of the matrices named."""
        if self.config.weight_type.is_quantized:
            x = self.quantized(x)
        return tuple(x @ self.weights[name].T for name in names)

    def quantized(self, x: Array) -> Array:
        """Round activations to 8-bit blocks, halves to even, the scale at full precision."""
        blocks = x.reshape(len(x), -1, BLOCK_SIZE)
        scales = np.abs(blocks).max(axis=-1, keepdims=True) / self.dtype(127)
        self.rounded.append((blocks, scales))
        units = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
        return (np.rint(units) * scales).reshape(x.shape)


def write_random_model(path: Path, config: ModelConfig, seed: int) -> None:
    """Write a model whose weights are random but scaled so that attention is peaked and no feature is lost in noise."""
    rng = np.random.default_rng(seed)
    write_m_file(path, config, lambda info: _random_tensor(rng, info))


def _random_tensor(rng: np.random.Generator, info: TensorInfo) -> npt.NDArray[np.float32]:
    values = rng.standard_normal(info.shape, dtype=np.float32)
    kind = info.name.rpartition(".")[2]
    if len(info.shape) == 1:
        return values * np.float32(0.3) + np.float32(1.5 if kind in ("q_norm", "k_norm") else 1.0)
    if kind == "embed_tokens":
        return values * np.float32(0.05)
    gain = {"q_proj": 1.6, "k_proj": 1.6, "o_proj": 0.3, "down_proj": 0.3, "lm_head": 2.0}.get(kind, 1.2)
    return values * np.float32(gain / np.sqrt(info.cols))
