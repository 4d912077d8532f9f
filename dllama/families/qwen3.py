"""``model_type`` "qwen3": the dense Qwen3 models. Llama with RMSNorm on every query and key head. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec, QkNorm
from dllama.families import Checkpoint
from dllama.families._fields import Fields, model_config, refuse_common
from dllama.families._parts import tensor_parts

_DEFAULT_HEAD_DIM = 128  # whatever the hidden size


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Qwen3 config; every layer must attend to all positions."""
    fields = Fields(raw, path)
    refuse_common(fields)
    fields.require_off("use_sliding_window")  # the flag, not the size beside it, says whether a window is in use
    for kind in fields.texts("layer_types"):
        if kind != "full_attention":
            raise fields.refuse("layer_types", "'full_attention' only", kind)
    config = model_config(fields, "qwen3", fields.integer("head_dim", _DEFAULT_HEAD_DIM), LayerSpec(QkNorm.HEAD))
    return Checkpoint(config, tensor_parts(config, is_tied=fields.flag("tie_word_embeddings")))
