"""``model_type`` "mistral": Llama with a window of attention, which later models turn off. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Mistral config; one that does not mention a window means that of the first model."""
    fields = Fields(raw, path)
    refuse_common(fields)
    layer = LayerSpec(window=fields.window("sliding_window", 4096))
    return checkpoint(fields, base_config(fields, [layer] * num_layers(fields), num_kv_heads=8))
