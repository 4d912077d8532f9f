"""``model_type`` "qwen3_moe": Qwen3 with experts in all or some layers. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

from dllama.config import LayerSpec, QkNorm
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Qwen3-MoE config: every ``decoder_sparse_step``-th layer has experts, but for ``mlp_only_layers``."""
    fields = Fields(raw, path)
    refuse_common(fields)
    config = base_config(fields, _layers(fields), num_kv_heads=4)
    if not config.has_experts:
        return checkpoint(fields, config)
    config = replace(
        config,
        num_experts=_num_experts(fields),
        num_experts_per_tok=fields.integer("num_experts_per_tok", 8),
        moe_intermediate_size=fields.integer("moe_intermediate_size", 768),
        norm_topk_prob=fields.flag("norm_topk_prob"),
    )
    return checkpoint(fields, config)


def _num_experts(fields: Fields) -> int:
    return fields.integer("num_experts", fields.integer("num_local_experts", 128))


def _layers(fields: Fields) -> list[LayerSpec]:
    step, dense = fields.integer("decoder_sparse_step", 1), set(fields.integers("mlp_only_layers"))
    window = fields.window("sliding_window", 4096) if fields.flag("use_sliding_window") else 0
    if step < 1:
        raise fields.bad("decoder_sparse_step", "1 or more", str(step))
    has_any = _num_experts(fields) != 0  # a count below 0 is named by the check of the whole
    return [
        LayerSpec(QkNorm.HEAD, window=window, has_experts=has_any and (i + 1) % step == 0 and i not in dense)
        for i in range(num_layers(fields))
    ]
