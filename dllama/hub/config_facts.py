"""What a ``config.json`` says of a model, as far as that can be told before anything is installed.

Standard library only. Refuses what no later step could run; ``dllama.families`` looks at everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import dllama
from dllama.errors import BadFile, UnsupportedModel

_FAMILIES = Path(dllama.__file__).resolve().parent / "families"  # a module for each model_type, named after it
_STORED_BITS = {"bfloat16": 16, "float16": 16}
_Q40_BITS = 4.5


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """What is known of a model.

    Attributes:
        embedding_bytes: Of the embedding in F32; 0 if it is not known.
        stored_bits: Of a number of its weights, at most.
    """

    embedding_bytes: int
    stored_bits: int

    def least_memory(self, weight_bytes: int) -> int:
        """Give the least bytes of memory for weights as Q40; rows of the embedding are read from the file."""
        numbers = 8 * weight_bytes // self.stored_bits - self.embedding_bytes // 4
        return max(0, int(numbers * _Q40_BITS / 8))


def read_facts(path: str, raw: Any) -> ConfigFacts:
    """Read a parsed ``config.json``; ``path`` is what errors call it.

    Raises:
        BadFile: It is no JSON object.
        UnsupportedModel: It is of a model that dllama cannot run.
    """
    if not isinstance(raw, dict):
        raise BadFile(path, "config.json", "a JSON object", type(raw).__name__)
    model_type, known = raw.get("model_type"), sorted(each.stem for each in _FAMILIES.glob("[a-z]*.py"))
    if model_type not in known:
        raise UnsupportedModel(path, "model_type", f"one of {', '.join(known)}", brief(model_type))
    if raw.get("quantization_config") is not None:
        found = brief(raw["quantization_config"])
        raise UnsupportedModel(path, "quantization_config", "no such field, as it is not supported", found)
    return ConfigFacts(4 * _size(raw, "vocab_size") * _size(raw, "hidden_size"), _stored_bits(raw))


def _size(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    return value if isinstance(value, int) and 0 < value < 1 << 24 else 0


def _stored_bits(raw: dict[str, Any]) -> int:
    name = raw.get("dtype") or raw.get("torch_dtype")
    return _STORED_BITS.get(name, 32) if isinstance(name, str) else 32
