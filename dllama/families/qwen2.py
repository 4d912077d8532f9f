"""``model_type`` "qwen2": Qwen2 and Qwen2.5. Llama with biases on q, k and v. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, refuse_common, sliding_layers


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Qwen2 config."""
    fields = Fields(raw, path)
    refuse_common(fields)
    layers = [LayerSpec(has_qkv_bias=True, window=window) for window in qwen_windows(fields)]
    return checkpoint(fields, base_config(fields, layers, num_kv_heads=32))


def qwen_windows(fields: Fields) -> list[int]:
    """Give the window of every layer, 0 for none: those from ``max_window_layers`` on, if windows are in use at all."""
    is_on, first = fields.flag("use_sliding_window"), fields.integer("max_window_layers", 28)
    kinds = sliding_layers(fields, lambda i: is_on and i >= first)
    if any(kinds) and not is_on:
        raise fields.bad("layer_types", "'full_attention' only, as use_sliding_window is off", "'sliding_attention'")
    window = fields.window("sliding_window", 4096) if is_on else 0
    return [window if is_sliding else 0 for is_sliding in kinds]
