"""What the configs of all families have in common: sizes, kinds of layers, and the check of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dllama.config import MAX_LAYERS, Activation, DType, LayerSpec, ModelConfig
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._parts import tensor_parts
from dllama.families._rope import context_length, rope_scaling, rope_theta, rotary_fields, rotary_share

_ACTIVATIONS = {"silu": Activation.SILU, "gelu_pytorch_tanh": Activation.GELU_TANH}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def refuse_common(fields: Fields) -> None:
    """Refuse what no family here can do without: biases other than of q, k and v, foreign quantized weights."""
    fields.require_off("attention_bias", "mlp_bias")
    fields.require_absent("quantization_config")


def base_config(
    fields: Fields,
    layers: Sequence[LayerSpec],
    *,
    activation: str = "hidden_act",
    default_activation: str = "silu",
    head_dim: int | None = None,
    num_kv_heads: int | None = None,
    rms_norm_eps: float = 1e-6,
    theta: float = 10000.0,
    rope: Fields | None = None,
    may_rotate_partly: bool = False,
) -> ModelConfig:
    """Read what all families have; ``checkpoint`` checks it when the family has added what is its own.

    Args:
        fields: The config.
        layers: Their features.
        activation: The field that names it.
        default_activation: That of a config that does not.
        head_dim: Of a config that does not say; None: the hidden size shared evenly.
        num_kv_heads: The same; None: as many as heads, which is also what null means.
        rms_norm_eps: The same.
        theta: The same of the rotation.
        rope: The object with the rotary settings; None: where most have it.
        may_rotate_partly: Whether models of the family may rotate a part of each head only.
    """
    _check_layer_types(fields, layers)
    num_heads, hidden_size = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    even_share = hidden_size // max(1, num_heads)  # a count below 1 is named by the check of the whole
    head_dim = fields.integer("head_dim", head_dim or even_share)
    rope = rope or rotary_fields(fields)
    share = rotary_share(fields, rope)
    if share != 1 and not may_rotate_partly:
        raise fields.refuse("partial_rotary_factor", "1, the only value supported in this family", share)
    scaling = rope_scaling(fields, rope)
    return ModelConfig(
        model_type=fields.text("model_type", ""),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_kv_heads or num_heads, num_heads),
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_seq_len=context_length(fields, scaling),
        rms_norm_eps=fields.number("rms_norm_eps", rms_norm_eps),
        rope_theta=rope_theta(fields, rope, theta),
        weight_type=_weight_type(fields),
        layers=tuple(layers),
        rope_scaling=scaling,
        rotary_dim=int(head_dim * share) if share != 1 else 0,
        activation=_activation(fields, activation, default_activation),
    )


def _num_kv_heads(fields: Fields, default: int, num_heads: int) -> int:
    return fields.integer("num_key_value_heads", num_heads if fields.mentions("num_key_value_heads") else default)


def num_layers(fields: Fields) -> int:
    """Give the number of layers, but no number too large to list: the check of the whole names those."""
    return max(0, min(fields.integer("num_hidden_layers"), MAX_LAYERS))


def sliding_layers(fields: Fields, is_sliding: Callable[[int], bool]) -> list[bool]:
    """Say of every layer whether it attends to a window: as ``layer_types`` has it, else by its number."""
    kinds = fields.texts("layer_types")
    if not kinds:
        return [is_sliding(i) for i in range(num_layers(fields))]
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise fields.refuse("layer_types", f"'{_FULL}' and '{_SLIDING}' only", kind)
    return [kind == _SLIDING for kind in kinds]


def _check_layer_types(fields: Fields, layers: Sequence[LayerSpec]) -> None:
    """Refuse layers of other kinds than the family makes of the other fields."""
    kinds = fields.texts("layer_types")
    for index, (kind, layer) in enumerate(zip(kinds, layers, strict=False)):
        own = _SLIDING if layer.window else _FULL
        if kind != own:
            raise fields.refuse("layer_types", f"'{own}' for layer {index}, as the other fields say", kind)
    if kinds and len(kinds) != fields.integer("num_hidden_layers"):
        raise fields.bad("layer_types", "one for every layer", str(len(kinds)))


def checkpoint(
    fields: Fields,
    config: ModelConfig,
    *,
    is_tied: bool = False,
    names: Mapping[str, str] | None = None,
    rows: Mapping[str, tuple[int, int, int]] | None = None,
    added_to_norms: float = 0.0,
) -> Checkpoint:
    """Check the config and find its tensors.

    Args:
        fields: Where the config is from.
        config: All of it.
        is_tied: Whether the output matrix is the embedding where the fields do not say.
        names: As ``tensor_parts`` takes them, like the rest.
        rows: The same.
        added_to_norms: The same.
    """
    problem = config.problem()
    if problem is not None:
        raise fields.bad(problem.name, problem.expected, problem.found)
    tied = fields.flag("tie_word_embeddings", is_tied)
    return Checkpoint(config, tensor_parts(config, tied, names or {}, rows or {}, added_to_norms))


def _weight_type(fields: Fields) -> DType:
    """Give the type that loses nothing: F16 has the precision of bfloat16 but not its range."""
    name = fields.text("dtype", fields.text("torch_dtype", "float32"))  # the second is the name before transformers 5
    return DType.F16 if name == "float16" else DType.F32


def _activation(fields: Fields, field: str, default: str) -> Activation:
    name = fields.text(field, default)
    if name not in _ACTIVATIONS:
        raise fields.refuse(field, f"one of {', '.join(_ACTIVATIONS)}", name)
    return _ACTIVATIONS[name]
