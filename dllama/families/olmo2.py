"""``model_type`` "olmo2": Norms behind attention and FFN only, and over all heads of q and of k. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec, QkNorm
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map an OLMo 2 config."""
    fields = Fields(raw, path)
    refuse_common(fields)
    layer = LayerSpec(QkNorm.ALL, has_input_norms=False, has_output_norms=True)
    return checkpoint(fields, base_config(fields, [layer] * num_layers(fields), rms_norm_eps=1e-5))
