"""A plain Llama in torch: RMSNorm, rotary positions, SwiGLU, tied embedding, optional Q40 fake quantization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Q40_BLOCK = 32
COPYING_LAYERS = (1, 2)
EMBEDDING_STD, FINAL_NORM_WEIGHT = 0.3, 0.07  # large enough that later layers still see which token it is


@dataclass(frozen=True)
class ModelArgs:
    """Sizes of the demo model; all of them cut evenly for 1, 2, 4 and 8 nodes."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 32
    max_seq_len: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def q40_round(weight: Tensor) -> Tensor:
    """Return the values a Q40 file gives back for `weight` (blocks of 32 along the last dimension)."""
    blocks = weight.float().reshape(-1, Q40_BLOCK)
    high, low = blocks.amax(dim=1, keepdim=True), blocks.amin(dim=1, keepdim=True)
    extreme = torch.where(high >= -low, high, low)
    scale = extreme / -8.0
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)
    codes = torch.trunc(blocks * inverse + 8.5).clamp_(0, 15)
    return ((codes - 8.0) * scale.half().float()).reshape(weight.shape)


def fake_quantize(weight: Tensor) -> Tensor:
    """Q40 values forward, identity gradient backward (straight-through)."""
    return weight + (q40_round(weight.detach()) - weight.detach())


class Linear(nn.Linear):
    """A bias-free matrix that can act as its own Q40 copy."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.fake_quant = False

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(x, fake_quantize(self.weight) if self.fake_quant else self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in F32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotary_table(args: ModelArgs) -> tuple[Tensor, Tensor]:
    """Cos and sin, each (max_seq_len, head_dim / 2)."""
    pair = torch.arange(0, args.head_dim, 2, dtype=torch.float32)
    angle = torch.outer(torch.arange(args.max_seq_len).float(), args.rope_theta ** (-pair / args.head_dim))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (j, j + head_dim / 2), the Hugging Face layout. x: (batch, heads, seq, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Layer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to its input."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        q_size, kv_size = args.num_heads * args.head_dim, args.num_kv_heads * args.head_dim
        self.input_norm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.q_proj = Linear(args.hidden_size, q_size)
        self.k_proj = Linear(args.hidden_size, kv_size)
        self.v_proj = Linear(args.hidden_size, kv_size)
        self.o_proj = Linear(q_size, args.hidden_size)
        self.post_norm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.gate_proj = Linear(args.hidden_size, args.intermediate_size)
        self.up_proj = Linear(args.hidden_size, args.intermediate_size)
        self.down_proj = Linear(args.intermediate_size, args.hidden_size)

    def start_copying(self) -> None:
        """Let attention begin by copying what it looks at, so that using a name again is soon learned."""
        with torch.no_grad():
            self.v_proj.weight += torch.eye(*self.v_proj.weight.shape)
            self.o_proj.weight += EMBEDDING_STD * torch.eye(*self.o_proj.weight.shape)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        """Causal attention; ``cache`` is empty or holds the keys and values of earlier positions."""
        batch, seq, _ = x.shape
        shape = (batch, seq, -1, self.args.head_dim)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
            cache[:] = [k, v]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=seq > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, seq, -1))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """One layer on x (batch, seq, hidden)."""
        x = x + self.attention(self.input_norm(x), cos, sin, cache)
        y = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    """Token ids (batch, seq) to logits (batch, seq, vocab)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = nn.ModuleList(Layer(args) for _ in range(args.num_layers))
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        cos, sin = rotary_table(args)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.fake_quant = False
        self.head: Tensor | None = None  # an output matrix of its own; the embedding if None
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.normal_(self.embed_tokens.weight, std=EMBEDDING_STD)
        nn.init.constant_(self.norm.weight, FINAL_NORM_WEIGHT)
        for name, parameter in self.named_parameters():
            if "proj" in name:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.01 if writes_residual else 0.04)
        for index in COPYING_LAYERS:
            self.layers[index].start_copying()

    def set_fake_quant(self, enabled: bool) -> None:
        """Let every matrix, and the tied output copy of the embedding, act as its Q40 copy."""
        self.fake_quant = enabled
        for module in self.modules():
            if isinstance(module, Linear):
                module.fake_quant = enabled

    def freeze_head(self, head: Tensor) -> None:
        """Use `head` as the output matrix, as an exported model does."""
        self.head = head

    def _output_matrix(self) -> Tensor:
        if self.head is not None:
            return self.head
        weight = self.embed_tokens.weight
        return fake_quantize(weight) if self.fake_quant else weight

    def forward(self, tokens: Tensor, caches: list[list[Tensor]] | None = None) -> Tensor:
        """`caches` holds one list per layer (empty at first); one prompt pass, then one token a pass."""
        start = caches[0][0].shape[2] if caches and caches[0] else 0
        cos, sin = (table[start : start + tokens.shape[1]] for table in (self.cos, self.sin))
        x = self.embed_tokens(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, caches[index] if caches else None)
        return F.linear(self.norm(x), self._output_matrix())
