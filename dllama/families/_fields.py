"""Reading the fields that the ``config.json`` of every family has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from reprlib import repr as brief

from dllama.config import DType, LayerSpec, ModelConfig, RopeScaling
from dllama.errors import BadFile, UnsupportedModel

# bfloat16 needs F32: F16 has its precision but not its range.
_DTYPES = {"float32": DType.F32, "bfloat16": DType.F32, "float16": DType.F16}
_LLAMA3_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")


class Fields:
    """Typed access to a parsed ``config.json``; a null counts as absent, as it does for transformers."""

    def __init__(self, raw: Mapping[str, object], path: str | PathLike[str], place: str = "") -> None:
        self._raw, self._path, self._place = raw, path, place

    def has(self, name: str) -> bool:
        """Whether ``name`` is there with a value."""
        return self._raw.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """Give a whole number; without a default the field is required."""
        value = self._value(name, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(name, "a whole number", brief(value))
        if abs(value) >= 1 << 63:  # JSON's have no bound
            raise self.bad(name, "a whole number", "one too large")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Give a number; without a default the field is required."""
        value = self._value(name, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, "a number", brief(value))
        try:
            return float(value)
        except OverflowError:
            raise self.bad(name, "a number", "one too large") from None

    def text(self, name: str, default: str) -> str:
        """Give a string."""
        value = self._value(name, default, "a string")
        if not isinstance(value, str):
            raise self.bad(name, "a string", brief(value))
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Give true or false."""
        value = self._value(name, default, "true or false")
        if not isinstance(value, bool):
            raise self.bad(name, "true or false", brief(value))
        return value

    def texts(self, name: str) -> list[str]:
        """Give a list of strings; an empty one if it is absent."""
        value = self._value(name, [], "a list of strings")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.bad(name, "a list of strings", brief(value))
        return value

    def group(self, name: str) -> Fields:
        """Give the object ``name``; an empty one if it is absent."""
        value = self._value(name, {}, "an object")
        if not isinstance(value, Mapping):
            raise self.bad(name, "an object", brief(value))
        return Fields(value, self._path, f"{self._place}{name}.")

    def bad(self, name: str, expected: str, found: str) -> BadFile:
        """Build the error for a field that is not what it must be."""
        return BadFile(self._path, self._place + name, expected, found)

    def refuse(self, name: str, supported: str, found: object) -> UnsupportedModel:
        """Build the error for a feature that the core lacks."""
        return UnsupportedModel(self._path, self._place + name, supported, brief(found))

    def require_off(self, *names: str) -> None:
        """Refuse the model if a flag is on whose feature the core lacks."""
        for name in names:
            if self.flag(name):
                raise self.refuse(name, "false, the only choice supported", True)

    def require_absent(self, *names: str) -> None:
        """Refuse the model if a field is there whose feature the core lacks."""
        for name in names:
            if self.has(name):
                raise self.refuse(name, "no such field, as it is not supported", self._raw[name])

    def _value(self, name: str, default: object, expected: str) -> object:
        value = self._raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.bad(name, expected, "no such field")
        return value


def refuse_common(fields: Fields) -> None:
    """Refuse what no family here can do without: another activation, biases, foreign quantized weights."""
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise fields.refuse("hidden_act", "'silu', the only activation supported", activation)
    fields.require_off("attention_bias", "mlp_bias")
    fields.require_absent("quantization_config")


def model_config(fields: Fields, model_type: str, head_dim: int, layer: LayerSpec) -> ModelConfig:
    """Build the config of a model whose layers are all alike, and check it."""
    num_layers, num_heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    rope = _rope_fields(fields)
    config = ModelConfig(
        model_type=model_type,
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_seq_len=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10000.0)),
        weight_type=_weight_type(fields),
        layers=(layer,) * max(0, min(num_layers, 1 << 12)),  # problem() names a count beyond that
        rope_scaling=_rope_scaling(fields, rope),
    )
    problem = config.problem()
    if problem is not None:
        raise fields.bad(problem.name, problem.expected, problem.found)
    return config


def _weight_type(fields: Fields) -> DType:
    name = fields.text("dtype", fields.text("torch_dtype", "float32"))  # the second is the name before transformers 5
    if name not in _DTYPES:
        raise fields.refuse("dtype", f"one of {', '.join(_DTYPES)}", name)
    return _DTYPES[name]


def _rope_fields(fields: Fields) -> Fields:
    """Give the object with the rotary settings: since transformers 5 it holds rope_theta too and has another name."""
    return fields.group("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")


def _rope_scaling(fields: Fields, rope: Fields) -> RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))  # "type" is the name before Llama 3.1
    for owner in (fields, rope):
        share = owner.number("partial_rotary_factor", 1.0)
        if share != 1.0:
            raise owner.refuse("partial_rotary_factor", "1, the only value supported", share)
    if kind == "default":
        return None
    if kind != "llama3":
        raise rope.refuse("rope_type", "'default' or 'llama3'", kind)
    factor, low, high = (rope.number(name) for name in _LLAMA3_FACTORS)
    if not (0 < factor < math.inf and 0 < low < high < math.inf):
        raise rope.bad("factor", "factor > 0 and 0 < low_freq_factor < high_freq_factor", f"{factor}, {low}, {high}")
    original = rope.integer("original_max_position_embeddings")
    if original < 1:
        raise rope.bad("original_max_position_embeddings", "1 or more", str(original))
    return RopeScaling(factor, low, high, original)
