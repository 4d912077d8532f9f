"""What ``params.json`` of a checkpoint of Meta's means, in the words of Hugging Face's ``config.json``.

Facts that Meta left to its own programs are put in where the file lacks them: the length of the context, the size of
the vocabulary, and how far the rotary embedding of Llama 3.1 and 3.2 is stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from dllama.errors import UnsupportedModel
from dllama.families._fields import Fields

_OLD_THETA = 10000.0
_LLAMA3_THETA, _CODE_LLAMA_THETA = 500000.0, 1000000.0
_LARGEST_LLAMA_3_2 = 3072  # hidden size of the 3B model; those of 3.1 begin at 4096
_UNKNOWN = ("moe_args", "lora_args", "quantization_args", "vision_chunk_size", "vision_num_cross_attention_layers")


def as_config(
    params: Mapping[str, Any], path: str | PathLike[str], vocab_size: int, ffn_size: int
) -> dict[str, object]:
    """Give the ``config.json`` that says the same.

    Args:
        params: The parsed ``params.json``.
        path: The file, for messages.
        vocab_size: Of the output matrix in the checkpoint.
        ffn_size: Rows of the first matrix of the feed-forward network in the checkpoint.

    Raises:
        BadFile: A field is missing, or is not what it must be.
        UnsupportedModel: It is no plain Llama; the text names the field.
    """
    fields = Fields(params, path)
    for name in _UNKNOWN:
        if fields.has(name):
            raise UnsupportedModel(path, name, "a Llama model without it", "a checkpoint that has it")
    heads, theta = fields.integer("n_heads"), fields.number("rope_theta", _OLD_THETA)
    stated = fields.integer("vocab_size", -1)  # -1: what the tokenizer has
    if stated not in (-1, vocab_size):
        raise fields.bad("vocab_size", str(vocab_size), f"{stated}; are all consolidated files there?")
    config: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": fields.integer("dim"),
        "intermediate_size": ffn_size,
        "num_hidden_layers": fields.integer("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("n_kv_heads", heads),
        "vocab_size": vocab_size,
        "max_position_embeddings": fields.integer("max_seq_len", _context(fields, theta)),
        "rms_norm_eps": fields.number("norm_eps", 1e-5),
        "rope_theta": theta,
        "tie_word_embeddings": False,
    }
    if fields.flag("use_scaled_rope"):
        config["rope_scaling"] = _scaling(fields)
    return config


def _context(fields: Fields, theta: float) -> int:
    """Give the context of the model that such a file is of: Llama 3.1, 3, Code Llama, 2 or 1."""
    if fields.flag("use_scaled_rope"):
        return 131072
    if theta in (_LLAMA3_THETA, _CODE_LLAMA_THETA):
        return 8192 if theta == _LLAMA3_THETA else 16384
    return 2048 if fields.number("norm_eps", 1e-5) == 1e-6 else 4096


def _scaling(fields: Fields) -> dict[str, object]:
    """Give the scaling of Llama 3.1, or that of the small models of 3.2, which no field tells apart."""
    is_small = fields.integer("dim") <= _LARGEST_LLAMA_3_2
    return {
        "rope_type": "llama3",
        "factor": 32.0 if is_small else 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
