"""Where each of our tensors lies in a Hugging Face checkpoint: names that all families share, and how some differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dllama.config import ModelConfig
from dllama.families import Part
from dllama.formats.m_layout import tensors_in_order

_ENDS = {"embed_tokens": "model.embed_tokens.weight", "norm": "model.norm.weight", "lm_head": "lm_head.weight"}
# Of a layer, behind "model.layers.{i}."; "{}" is the number of an expert. ``post_attention_layernorm`` is what most
# call the norm before the feed-forward network; families with norms behind attention mean those by it.
_IN_LAYER = {
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
    "router": "mlp.gate.weight",
    "experts.gate_proj": "mlp.experts.{}.gate_proj.weight",
    "experts.up_proj": "mlp.experts.{}.up_proj.weight",
    "experts.down_proj": "mlp.experts.{}.down_proj.weight",
    "input_layernorm": "input_layernorm.weight",
    "post_attention_layernorm": "post_attention_layernorm.weight",
    "attention_output_norm": "post_attention_layernorm.weight",
    "feedforward_output_norm": "post_feedforward_layernorm.weight",
}


def tensor_parts(
    config: ModelConfig,
    is_tied: bool,
    names: Mapping[str, str],
    rows: Mapping[str, tuple[int, int, int]],
    added_to_norms: float,
) -> dict[str, Part]:
    """Find every tensor of ``config``.

    Args:
        config: A valid config.
        is_tied: Whether the output matrix is the embedding.
        names: What a family calls otherwise, as in ``_IN_LAYER``.
        rows: First row, number of rows and number of all rows there of tensors of a layer that lie in a fused one.
        added_to_norms: ``Part.added`` of norms.
    """
    in_layer = {**_IN_LAYER, **names}
    parts = {}
    for info in tensors_in_order(config):
        kind = info.name.rpartition(".")[2]
        name = _ENDS.get(info.name) or _name_in_layer(info.name, in_layer)
        added = added_to_norms if kind.endswith("norm") else 0.0
        parts[info.name] = Part(name, *rows.get(kind, (0, 0, 0)), added=added)
    if is_tied:
        parts["lm_head"] = replace(parts["embed_tokens"], own_name=parts["lm_head"].name)
    return parts


def _name_in_layer(ours: str, in_layer: Mapping[str, str]) -> str:
    _, layer, kind = ours.split(".", 2)
    if kind.startswith("experts."):
        _, expert, matrix = kind.split(".")
        return f"model.layers.{layer}." + in_layer[f"experts.{matrix}"].format(expert)
    return f"model.layers.{layer}." + in_layer[kind]
