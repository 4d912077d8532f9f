"""Rotary settings of a ``config.json``.

transformers 4 has ``rope_theta`` and ``rope_scaling`` beside the sizes, transformers 5 all of it in
``rope_parameters``; what is absent follows from the rules of transformers 5.4's ``modeling_rope_utils``.
"""

from __future__ import annotations

import math

from dllama.families._fields import Fields
from dllama.rope import MAX_PAIRS, RopeScaling, yarn_attention_factor

_LLAMA3_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
_MOST_STRETCH = 1 << 12  # keeps lengths small enough to be named as too large
_CONTEXT, _ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
_KINDS = "'default', 'llama3', 'linear', 'yarn' or 'longrope'"


def rotary_fields(fields: Fields) -> Fields:
    """Give the object with the rotary settings, by either of its names."""
    if not fields.has("rope_parameters"):
        return fields.group("rope_scaling")
    if fields.has("rope_scaling"):
        raise fields.bad("rope_scaling", "no such field beside rope_parameters, which holds what belongs there", "both")
    return fields.group("rope_parameters")


def rope_theta(fields: Fields, rope: Fields, default: float) -> float:
    """Give the base of the rotation."""
    return rope.number("rope_theta", fields.number("rope_theta", default))


def rotary_share(fields: Fields, rope: Fields) -> float:
    """Give the part of a head that is rotated."""
    share = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if not 0 < share <= 1:
        raise fields.bad("partial_rotary_factor", "more than 0, at most 1", str(share))
    return share


def context_length(fields: Fields, scaling: RopeScaling | None) -> int:
    """Give the longest context: makers add yarn to a config and leave the context that it stretches as it was."""
    length = fields.integer(_CONTEXT)
    if scaling is None or scaling.kind != "yarn":
        return length
    return max(length, int(min(scaling.factor, _MOST_STRETCH) * scaling.original_max_seq_len))


def rope_scaling(fields: Fields, rope: Fields) -> RopeScaling | None:
    """Give the scaling that the object ``rope`` of ``fields`` asks for."""
    match _kind(rope):
        case "default":
            return None
        case "llama3":
            return _llama3(fields, rope)
        case "linear":
            return RopeScaling(rope.positive("factor"), kind="linear")
        case "yarn":
            return _yarn(fields, rope)
        case "longrope":
            return _longrope(fields, rope)
        case kind:
            raise rope.refuse("rope_type", _KINDS, kind)


def _kind(rope: Fields) -> str:
    kind = rope.text("rope_type", rope.text("type", "default"))  # "type" is the name before Llama 3.1
    return "longrope" if kind == "su" or rope.has("short_factor") else kind  # Phi-3's first names were su and yarn


def _llama3(fields: Fields, rope: Fields) -> RopeScaling:
    factor, low, high = (rope.positive(name) for name in _LLAMA3_FACTORS)
    if low >= high:
        raise rope.bad("high_freq_factor", "low_freq_factor < high_freq_factor", f"{low} and {high}")
    return RopeScaling(factor, low, high, _original(fields, rope))


def _yarn(fields: Fields, rope: Fields) -> RopeScaling:
    original, factor = _original(fields, rope), rope.positive("factor")
    mscale, mscale_all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    attention_factor = yarn_attention_factor(factor)
    if mscale > 0 and mscale_all_dim > 0:
        attention_factor = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all_dim)
    return RopeScaling(
        factor,
        original_max_seq_len=original,
        kind="yarn",
        beta_fast=rope.positive("beta_fast", 32.0),
        beta_slow=rope.positive("beta_slow", 1.0),
        is_truncated=rope.flag("truncate", default=True),
        attention_factor=rope.positive("attention_factor", attention_factor),
    )


def _longrope(fields: Fields, rope: Fields) -> RopeScaling:
    original = _original(fields, rope)
    factor = rope.positive("factor", _length(fields, _CONTEXT) / original)
    attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        1.0,
        original_max_seq_len=original,
        kind="longrope",
        attention_factor=rope.positive("attention_factor", attention_factor),
        short_factors=rope.numbers("short_factor", MAX_PAIRS),
        long_factors=rope.numbers("long_factor", MAX_PAIRS),
    )


def _original(fields: Fields, rope: Fields) -> int:
    """Give the context that a model was first trained for; transformers looks beside the sizes for Phi-3 alone."""
    if fields.text("model_type", "") == "phi3":
        return _length(fields, _ORIGINAL, 4096)
    return _length(rope, _ORIGINAL) if rope.has(_ORIGINAL) else _length(fields, _CONTEXT)


def _length(fields: Fields, name: str, default: int | None = None) -> int:
    value = fields.integer(name, default)
    if value < 2:  # its logarithm divides
        raise fields.bad(name, "2 or more", str(value))
    return value
