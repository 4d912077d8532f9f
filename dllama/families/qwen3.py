"""``model_type`` "qwen3": the dense Qwen3 models. Llama with RMSNorm on every query and key head. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec, QkNorm
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, refuse_common
from dllama.families.qwen2 import qwen_windows


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Qwen3 config: heads have 128 values unless it says otherwise, whatever the hidden size."""
    fields = Fields(raw, path)
    refuse_common(fields)
    layers = [LayerSpec(QkNorm.HEAD, window=window) for window in qwen_windows(fields)]
    return checkpoint(fields, base_config(fields, layers, head_dim=128, num_kv_heads=32))
