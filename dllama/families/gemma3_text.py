"""``model_type`` "gemma3_text": Gemma 2 with q/k norms for caps, and a rotation of its own in windows.

Written against transformers 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

from dllama.config import LayerSpec, QkNorm
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import sliding_layers
from dllama.families._rope import rope_scaling, rotary_fields
from dllama.families.gemma2 import gemma_checkpoint, gemma_config

_WINDOWED = LayerSpec(QkNorm.HEAD, has_output_norms=True, has_local_rope=True)
_FULL = LayerSpec(QkNorm.HEAD, has_output_norms=True)


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Gemma 3 config: windows rotate by a base of their own, unscaled. transformers 5 has two rotary objects."""
    fields = Fields(raw, path)
    windowed = replace(_WINDOWED, window=fields.window("sliding_window", 4096))
    period = fields.integer("sliding_window_pattern", 6)
    if period < 1:
        raise fields.bad("sliding_window_pattern", "1 or more", str(period))
    kinds = sliding_layers(fields, lambda i: (i + 1) % period != 0)
    rope = rotary_fields(fields)
    local, rope = rope.group("sliding_attention"), rope.group("full_attention") if rope.has("full_attention") else rope
    if rope_scaling(fields, local) is not None:
        raise local.refuse("rope_type", "'default', the only choice supported in windows", "another")
    layers = [windowed if is_sliding else _FULL for is_sliding in kinds]
    config = gemma_config(fields, layers, theta=1e6, rope=rope)
    local_theta = local.number("rope_theta", fields.number("rope_local_base_freq", 10000.0))
    return gemma_checkpoint(fields, replace(config, local_rope_theta=local_theta))
