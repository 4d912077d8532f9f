"""``model_type`` "gemma2": norms behind attention and FFN too, soft caps, windows in every other layer.

Written against transformers 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike

from dllama.config import LayerSpec, ModelConfig
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, refuse_common, sliding_layers


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Gemma 2 config."""
    fields = Fields(raw, path)
    window = fields.window("sliding_window", 4096)
    kinds = sliding_layers(fields, lambda i: i % 2 == 0)
    layers = [LayerSpec(has_output_norms=True, window=window if is_sliding else 0) for is_sliding in kinds]
    return gemma_checkpoint(fields, gemma_config(fields, layers, attention_cap=50.0, logits_cap=30.0))


def gemma_config(
    fields: Fields,
    layers: Sequence[LayerSpec],
    *,
    attention_cap: float = 0.0,
    logits_cap: float = 0.0,
    theta: float = 10000.0,
    rope: Fields | None = None,
) -> ModelConfig:
    """Read what Gemma 2 and 3 have in common; the caps are those of a config that does not mention them."""
    refuse_common(fields)
    fields.require_off("use_bidirectional_attention")
    config = base_config(
        fields,
        layers,
        activation="hidden_activation",
        default_activation="gelu_pytorch_tanh",
        head_dim=256,
        num_kv_heads=4,
        theta=theta,
        rope=rope,
    )
    return replace(
        config,
        embedding_multiplier=max(1, config.hidden_size) ** 0.5,  # a size below 1 is named by the check of the whole
        attention_multiplier=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=fields.cap("attn_logit_softcapping", attention_cap),
        logits_softcap=fields.cap("final_logit_softcapping", logits_cap),
    )


def gemma_checkpoint(fields: Fields, config: ModelConfig) -> Checkpoint:
    """Find the tensors: norms hold w where they mean 1 + w, and the output matrix is the embedding."""
    names = {"post_attention_layernorm": "pre_feedforward_layernorm.weight"}
    return checkpoint(fields, config, is_tied=True, names=names, added_to_norms=1.0)
