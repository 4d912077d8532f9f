"""From a Hugging Face ``config.json`` and its tensor names to ``ModelConfig`` and our names.

One module per ``model_type``, named after it; modules with an underscore are what they share. Pure: parsed JSON in,
data out, no file opened. What a config asks for and the core lacks is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from reprlib import repr as brief
from typing import Protocol, cast

from dllama.config import ModelConfig
from dllama.errors import BadFile, UnsupportedModel

MODEL_TYPES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"),
    *("gemma2", "gemma3_text", "phi3", "olmo2", "granite"),
)
_TEXT_ALONE = "gemma3_text, as the gemma3 vision tower is not supported; use a checkpoint or GGUF of the text model"


@dataclass(frozen=True, slots=True)
class Part:
    """Where one of our tensors lies in a checkpoint: some rows of a tensor there, or all of it.

    Attributes:
        name: Of the tensor in the checkpoint.
        first_row: Of ours in it.
        num_rows: How many are ours; 0: all.
        total_rows: Of the tensor there, where not all are ours.
        added: What is added to every value as it is read: Gemma's norms hold w where they mean 1 + w.
        own_name: Of the tensor that is read instead where the checkpoint has it: a tied output matrix may be there too,
            and differ.
    """

    name: str
    first_row: int = 0
    num_rows: int = 0
    total_rows: int = 0
    added: float = 0.0
    own_name: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face model as this project sees it.

    Attributes:
        config: Its sizes and features. ``weight_type`` is the type that holds the checkpoint's numbers without loss; a
            converter replaces it by what it is asked to write.
        tensors: Every tensor by our name, in ``m_layout``'s order. With tied embeddings ``lm_head`` is the embedding
            again, unless the checkpoint has it.
    """

    config: ModelConfig
    tensors: dict[str, Part]


class _Family(Protocol):
    def describe(self, raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint: ...


def describe(raw: object, path: str | PathLike[str]) -> Checkpoint:
    """Map a parsed ``config.json``.

    Args:
        raw: What the JSON parser gave.
        path: The file it came from, for messages.

    Raises:
        BadFile: A field is missing, or is not what it must be.
        UnsupportedModel: It is a model that the core cannot run; the text names the feature.
    """
    if not isinstance(raw, Mapping):
        raise BadFile(path, "", "a JSON object", type(raw).__name__)
    model_type = raw.get("model_type")
    if model_type == "gemma3":
        raise UnsupportedModel(path, "model_type", _TEXT_ALONE, brief(model_type))
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UnsupportedModel(path, "model_type", f"one of {', '.join(MODEL_TYPES)}", brief(model_type))
    family = cast("_Family", import_module(f"dllama.families.{model_type}"))
    return family.describe(raw, path)
