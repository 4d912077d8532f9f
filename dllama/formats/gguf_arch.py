"""GGUF's architectures: what each implies of a model, and which tensors its files hold for ours.

Reading and writing follow the same two tables, so that what one writes the other reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dllama.config import Activation, LayerSpec, ModelConfig, QkNorm
from dllama.formats.m_layout import is_rotated, tensors_in_order
from dllama.formats.tensor import TensorInfo

_PLAIN = LayerSpec()


@dataclass(frozen=True, slots=True)
class GgufArch:
    """What the name of an architecture says, without a word in the file.

    Attributes:
        name: In ``general.architecture``, and before the keys of sizes.
        model_types: Hugging Face's names of the families that it stands for, the usual one first.
        layer: The features of every layer, but for its window and what hangs on that.
        is_interleaved: Whether rows of q and k lie in pairs, as llama.cpp rotates neighbours.
        is_fused: Whether q, k and v are one tensor, and gate and up are.
        window_period: One layer in so many has no window, the last; 0: all have it. A file may say otherwise.
        has_scaled_embeddings: Whether embeddings are multiplied by the root of the hidden size.
        num_layers_of_27b: The model of so many layers scales attention by the hidden size's share of a head.
        has_rope_factors: Whether its files may hold a factor for each pair of the rotation.
        has_head: Whether the output matrix may be a tensor of its own.
        has_window: Whether its files say how far a token sees.
    """

    name: str
    model_types: tuple[str, ...]
    layer: LayerSpec = _PLAIN
    is_interleaved: bool = False
    is_fused: bool = False
    activation: Activation = Activation.SILU
    window_period: int = 0
    has_scaled_embeddings: bool = False
    num_layers_of_27b: int = 0
    has_rope_factors: bool = False
    has_head: bool = True
    has_window: bool = False


ARCHS = {
    arch.name: arch
    for arch in (
        GgufArch("llama", ("llama", "mistral", "mixtral"), is_interleaved=True, has_rope_factors=True, has_window=True),
        GgufArch("qwen2", ("qwen2",), LayerSpec(has_qkv_bias=True)),
        GgufArch("qwen3", ("qwen3",), LayerSpec(QkNorm.HEAD)),
        GgufArch("qwen3moe", ("qwen3_moe",), LayerSpec(QkNorm.HEAD)),
        GgufArch(
            "gemma2",
            ("gemma2",),
            LayerSpec(has_output_norms=True),
            activation=Activation.GELU_TANH,
            window_period=2,
            has_scaled_embeddings=True,
            num_layers_of_27b=46,
            has_head=False,
            has_window=True,
        ),
        GgufArch(
            "gemma3",
            ("gemma3_text",),
            LayerSpec(QkNorm.HEAD, has_output_norms=True),
            activation=Activation.GELU_TANH,
            window_period=6,
            has_scaled_embeddings=True,
            num_layers_of_27b=62,
            has_window=True,
        ),
        GgufArch("phi3", ("phi3",), is_fused=True, has_rope_factors=True, has_window=True),
        GgufArch("olmo2", ("olmo2",), LayerSpec(QkNorm.ALL, has_input_norms=False, has_output_norms=True)),
        GgufArch("granite", ("granite",), is_interleaved=True, has_rope_factors=True),
    )
}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_SHORT, ROPE_LONG)
_ENDS = {"embed_tokens": EMBEDDING, "norm": "output_norm.weight", "lm_head": HEAD}
# Of a layer, behind "blk.{i}."; all experts are one tensor.
_IN_LAYER = {
    "q_proj": "attn_q.weight",
    "k_proj": "attn_k.weight",
    "v_proj": "attn_v.weight",
    "o_proj": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "input_layernorm": "attn_norm.weight",
    "attention_output_norm": "post_attention_norm.weight",
    "post_attention_layernorm": "ffn_norm.weight",
    "feedforward_output_norm": "post_ffw_norm.weight",
    "gate_proj": "ffn_gate.weight",
    "up_proj": "ffn_up.weight",
    "down_proj": "ffn_down.weight",
    "router": "ffn_gate_inp.weight",
    "experts.gate_proj": "ffn_gate_exps.weight",
    "experts.up_proj": "ffn_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}
_QKV, _GATE_UP = "attn_qkv.weight", "ffn_up.weight"
_FUSED = {"q_proj": _QKV, "k_proj": _QKV, "v_proj": _QKV, "gate_proj": _GATE_UP, "up_proj": _GATE_UP}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: ``shape``, and which of ours it is, one after the other."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[TensorInfo, ...]


def stored_tensors(config: ModelConfig, arch: GgufArch) -> Iterator[Stored]:
    """Give every tensor of a file, but for factors of the rotation; the head too, as if it were always there."""
    groups: defaultdict[str, list[TensorInfo]] = defaultdict(list)
    for info in tensors_in_order(config):
        groups[_stored_name(info.name, arch)].append(info)
    for name, parts in groups.items():
        rows, cols = sum(info.rows for info in parts), parts[0].cols
        shape: tuple[int, ...] = (rows, cols) if len(parts[0].shape) == 2 else (cols,)
        if ".experts." in parts[0].name:
            shape = (len(parts), rows // len(parts), cols)
        yield Stored(name, shape, tuple(parts))


def _stored_name(ours: str, arch: GgufArch) -> str:
    if ours in _ENDS:
        return _ENDS[ours]
    _, layer, name = ours.split(".", 2)
    if name.startswith("experts."):
        name = f"experts.{name.rpartition('.')[2]}"
    names = _IN_LAYER | _FUSED if arch.is_fused else _IN_LAYER
    return f"blk.{layer}.{names[name]}"


def interleaved_head_dim(config: ModelConfig, arch: GgufArch, name: str) -> int:
    """Give the head size if rows of our tensor ``name`` lie in pairs, else 0."""
    return config.head_dim if arch.is_interleaved and is_rotated(name) else 0
