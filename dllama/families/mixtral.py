"""``model_type`` "mixtral": Mistral with experts in every layer, of which each token uses some. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

from dllama.config import LayerSpec
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common

_NAMES = {
    "router": "block_sparse_moe.gate.weight",
    "experts.gate_proj": "block_sparse_moe.experts.{}.w1.weight",
    "experts.down_proj": "block_sparse_moe.experts.{}.w2.weight",
    "experts.up_proj": "block_sparse_moe.experts.{}.w3.weight",
}


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Mixtral config: ``intermediate_size`` is that of an expert, and weights of experts always sum to 1."""
    fields = Fields(raw, path)
    refuse_common(fields)
    layer = LayerSpec(window=fields.window("sliding_window", 0), has_experts=True)
    layers = [layer] * num_layers(fields)
    config = base_config(fields, layers, num_kv_heads=8, rms_norm_eps=1e-5, theta=1e6)
    config = replace(
        config,
        num_experts=fields.integer("num_local_experts", 8),
        num_experts_per_tok=fields.integer("num_experts_per_tok", 2),
        moe_intermediate_size=config.intermediate_size,
    )
    return checkpoint(fields, config, names=_NAMES)
