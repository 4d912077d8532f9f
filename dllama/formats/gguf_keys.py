"""Typed access to the keys of a GGUF file's metadata, and which of them may be passed over."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief

import numpy as np

from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.gguf_arch import GgufArch

# Keys that change nothing here: the embedding says how many tokens there are, and all norms are by root mean square.
_IGNORED = ("vocab_size", "tensor_data_layout", "attention.layer_norm_epsilon")
# Keys of features that we lack, with the values that switch them off.
_OFF: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.finetuned": (True,),
    "use_parallel_residual": (False,),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_gating_func": (0, 1),  # 1 is softmax
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
}


class Keys:
    """Typed access to the keys of an architecture, which remembers those that were asked for."""

    def __init__(self, path: str, metadata: Mapping[str, object], arch: GgufArch) -> None:
        self.path, self._metadata, self._prefix = path, metadata, f"{arch.name}."
        self._known = set(_IGNORED)

    def has(self, name: str) -> bool:
        """Whether there is such a key."""
        self._known.add(name)
        return self._prefix + name in self._metadata

    def integer(self, name: str, default: int | None = None) -> int:
        """Give a whole number, or the one that all layers share; without a default the key is required."""
        value = self._value(name, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(name, "a whole number, the same for all layers", brief(value))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Give a number; without a default the key is required."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, "a number", brief(value))
        return float(value)

    def text(self, name: str, default: str) -> str:
        """Give a string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.bad(name, "a string", brief(value))
        return value

    def bad(self, name: str, expected: str, found: str) -> BadFile:
        """Build the error for a key that is not what it must be."""
        return BadFile(self.path, self._prefix + name, expected, found)

    def refuse_unknown(self) -> None:
        """Refuse the model if it has a key that was not asked for: it may change what the model computes."""
        for key, value in self._metadata.items():
            name = key.removeprefix(self._prefix)
            if name == key or name in self._known:
                continue
            if isinstance(value, bool | int | float) and value in _OFF.get(name, ()):
                continue
            expected = " or ".join(map(repr, _OFF[name])) if name in _OFF else "no such key, as it is not supported"
            raise UnsupportedModel(self.path, key, expected, brief(value))

    def _value(self, name: str, default: object) -> object:
        self._known.add(name)
        value = self._metadata.get(self._prefix + name, default)
        if value is None:
            raise self.bad(name, "a key of every such model", "no such key")
        return value
