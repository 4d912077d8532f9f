"""``model_type`` "granite": Granite 3. Llama with four multipliers. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

from dllama.config import LayerSpec
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Granite config; logits are divided by ``logits_scaling``."""
    fields = Fields(raw, path)
    refuse_common(fields)
    config = replace(
        base_config(fields, [LayerSpec()] * num_layers(fields)),
        embedding_multiplier=fields.positive("embedding_multiplier", 1.0),
        attention_multiplier=fields.positive("attention_multiplier", 1.0),
        residual_multiplier=fields.positive("residual_multiplier", 1.0),
        logits_multiplier=1 / fields.positive("logits_scaling", 1.0),
    )
    return checkpoint(fields, config)
