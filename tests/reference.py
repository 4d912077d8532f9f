"""The transformer in plain numpy, in float64 or float32: the readable oracle that the engine is compared with.

It evaluates the numbers that a model holds, as the engine defines them: Q40 and Q80 weights multiply activations
that were quantized to blocks of 32 with a full-precision scale, and the KV cache rounds to F16 if it is asked to.
Everything else is exact in the number type chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from memory_model import random_values  # type: ignore[import-not-found]

from dllama.config import BLOCK_SIZE, Activation, DType, ModelConfig, QkNorm
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.source import ModelSource

Array = npt.NDArray[Any]
Block = Callable[[int, Array], Array]  # (layer, what it reads of the residual) -> what it adds to it


class Reference:
    """One model, evaluated a whole sequence at a time.

    Attributes:
        config: The model; replace it to see what a wrong setting does to the logits.
        max_seq_len: The context in use; None: the model's own.
        rounded: The activations of the last evaluation that were rounded, just before that, and the scales of their
            blocks: a pair of arrays for each quantization, in order.
    """

    def __init__(
        self, model: Path | ModelSource, kv_type: DType = DType.F32, dtype: type[np.floating[Any]] = np.float64
    ) -> None:
        with open_m_file(model) if isinstance(model, Path) else model as source:
            self.config: ModelConfig = source.config
            self.weights = {
                name: tensor.read_floats().reshape(tensor.shape).astype(dtype)
                for name, tensor in source.tensors.items()
            }
        self.kv_type, self.dtype = kv_type, dtype
        self.max_seq_len: int | None = None
        self.rounded: list[tuple[Array, Array]] = []

    def logits(self, token_ids: Sequence[int] | npt.NDArray[np.int32]) -> Array:
        """Give the logits of all positions, ``[len, vocab_size]``."""
        self.rounded = []
        x = self.weights["embed_tokens"][np.asarray(token_ids)] * self.dtype(self.config.embedding_multiplier)
        for i, layer in enumerate(self.config.layers):
            x = x + self.added(i, self.attention, x, "input_layernorm", "attention_output_norm")
            feed_forward = self.experts if layer.has_experts else self.feed_forward
            x = x + self.added(i, feed_forward, x, "post_attention_layernorm", "feedforward_output_norm")
        (logits,) = self.products(self.norm(x, "norm"), "lm_head")
        return self.capped(logits * self.dtype(self.config.logits_multiplier), self.config.logits_softcap)

    def added(self, i: int, block: Block, x: Array, input_norm: str, output_norm: str) -> Array:
        """What attention or the feed-forward network of layer ``i`` adds to the residual ``x``."""
        layer, prefix = self.config.layers[i], f"layers.{i}."
        y = block(i, self.norm(x, prefix + input_norm) if layer.has_input_norms else x)
        if layer.has_output_norms:
            y = self.norm(y, prefix + output_norm)
        return y * self.dtype(self.config.residual_multiplier)

    def attention(self, i: int, x: Array) -> Array:
        """Causal attention of layer ``i``; ``num_heads / num_kv_heads`` query heads share one KV head."""
        config, layer, prefix = self.config, self.config.layers[i], f"layers.{i}."
        q, k, v = self.products(x, prefix + "q_proj", prefix + "k_proj", prefix + "v_proj")
        if layer.has_qkv_bias:
            q, k, v = (part + self.weights[f"{prefix}{name}_bias"] for part, name in ((q, "q"), (k, "k"), (v, "v")))
        if layer.qk_norm is QkNorm.ALL:
            q, k = self.norm(q, prefix + "q_norm"), self.norm(k, prefix + "k_norm")
        q, k, v = (self.heads(part) for part in (q, k, v))
        if layer.qk_norm is QkNorm.HEAD:
            q, k = self.norm(q, prefix + "q_norm"), self.norm(k, prefix + "k_norm")
        q, k = self.rotate(i, q), self.cached(self.rotate(i, k))
        k, v = (np.repeat(part, config.group_size, axis=0) for part in (k, self.cached(v)))
        scale = config.attention_multiplier or config.head_dim**-0.5
        scores = self.capped(q @ k.swapaxes(1, 2) * self.dtype(scale), config.attention_softcap)
        weights = softmax(np.where(self.seen(i, len(x)), scores, -np.inf))
        mixed = (weights @ v).swapaxes(0, 1).reshape(len(x), -1)
        return self.products(mixed, prefix + "o_proj")[0]

    def seen(self, i: int, length: int) -> npt.NDArray[np.bool_]:
        """Which positions (columns) each position (row) of layer ``i`` attends to."""
        distance = np.arange(length)[:, None] - np.arange(length)
        window = self.config.layers[i].window or length
        return (distance >= 0) & (distance < window)

    def feed_forward(self, i: int, x: Array) -> Array:
        """The feed-forward network of layer ``i``."""
        return self.gated(f"layers.{i}.", x)

    def experts(self, i: int, x: Array) -> Array:
        """The mixture of experts of layer ``i``: the likeliest of each token, of equals those with lower numbers."""
        config, prefix = self.config, f"layers.{i}."
        weights = softmax(self.products(x, prefix + "router")[0])
        chosen = np.argsort(-weights, axis=1, kind="stable")[:, : config.num_experts_per_tok]
        is_chosen = np.zeros(weights.shape, bool)
        np.put_along_axis(is_chosen, chosen, values=True, axis=1)
        weights = np.where(is_chosen, weights, 0)
        if config.norm_topk_prob:
            weights = weights / weights.sum(axis=1, keepdims=True)
        total = np.zeros_like(x)
        for expert in range(config.num_experts):
            rows = is_chosen[:, expert]
            if rows.any():
                total[rows] += weights[rows, expert, None] * self.gated(f"{prefix}experts.{expert}.", x[rows])
        return total

    def gated(self, prefix: str, x: Array) -> Array:
        """``down(activation(gate(x)) * up(x))``."""
        gate, up = self.products(x, prefix + "gate_proj", prefix + "up_proj")
        return self.products(self.activated(gate) * up, prefix + "down_proj")[0]

    def activated(self, x: Array) -> Array:
        """Apply the model's activation."""
        if self.config.activation is Activation.SILU:
            return x / (1 + np.exp(-x))
        cubic = x + self.dtype(0.044715) * x * x * x
        return x / 2 * (1 + np.tanh(self.dtype(np.sqrt(2 / np.pi)) * cubic))

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm over the last axis."""
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.dtype(self.config.rms_norm_eps)) * self.weights[name]

    def capped(self, x: Array, cap: float) -> Array:
        """Bend ``x`` so that it stays within ``cap``, if there is one."""
        return self.dtype(cap) * np.tanh(x / self.dtype(cap)) if cap else x

    def heads(self, x: Array) -> Array:
        """Cut ``[len, heads * head_dim]`` into ``[heads, len, head_dim]``."""
        return x.reshape(len(x), -1, self.config.head_dim).swapaxes(0, 1)

    def rotate(self, i: int, x: Array) -> Array:
        """Rotate the pairs (j, j + pairs) of ``[heads, len, head_dim]`` by position times frequency."""
        is_local, scaling = self.config.layers[i].has_local_rope, self.config.rope_scaling
        frequencies = self.config.rope_frequencies(self.max_seq_len, is_local=is_local).astype(self.dtype)
        factor = self.dtype(scaling.attention_factor if scaling and not is_local else 1)
        angles = np.arange(x.shape[1], dtype=self.dtype)[:, None] * frequencies
        cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
        first, second, rest = np.split(x, [len(frequencies), 2 * len(frequencies)], axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

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


def softmax(x: Array) -> Array:
    """Over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def write_random_model(path: Path, config: ModelConfig, seed: int) -> None:
    """Write a ``.m`` file of random weights."""
    rng = np.random.default_rng(seed)
    write_m_file(path, config, lambda info: random_values(rng, info))
