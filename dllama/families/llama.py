"""``model_type`` "llama": Llama 1 to 3.3 and every model trained with its code. Written against transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec
from dllama.families import Checkpoint
from dllama.families._fields import Fields, model_config, refuse_common
from dllama.families._parts import tensor_parts


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Llama config: heads share the hidden size evenly unless ``head_dim`` says otherwise."""
    fields = Fields(raw, path)
    refuse_common(fields)
    heads = max(1, fields.integer("num_attention_heads"))  # a count below 1 is named by the check of the whole
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // heads)
    config = model_config(fields, "llama", head_dim, LayerSpec())
    return Checkpoint(config, tensor_parts(config, is_tied=fields.flag("tie_word_embeddings")))
