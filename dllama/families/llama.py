"""``model_type`` "llama": Llama 1 to 3.3 and every model trained with its code. Written against transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Llama config: heads share the hidden size evenly unless ``head_dim`` says otherwise."""
    fields = Fields(raw, path)
    refuse_common(fields)
    return checkpoint(fields, base_config(fields, [LayerSpec()] * num_layers(fields)))
