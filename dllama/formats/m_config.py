"""A model's config as JSON, which ``.m`` files hold where distributed-llama's keys cannot say all of it.

Fields at their defaults are left out: a file that needs nothing new is read by older versions too, and one that does is
refused by them, by the name that they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from dllama.config import LayerSpec, ModelConfig, RopeScaling
from dllama.errors import BadFile
from dllama.formats.json_file import one_line

_decoder = msgspec.json.Decoder(ModelConfig)
_MODEL_TYPE = re.compile(r"[a-z0-9_]{1,64}")


def encode_config(config: ModelConfig) -> bytes:
    """Write a config, which must be a valid one."""
    return msgspec.json.encode(_without_defaults(config))


def decode_config(raw: bytes, path: str, place: str) -> ModelConfig:
    """Read what ``encode_config`` wrote, or anything else.

    Args:
        raw: The bytes, bounded by the caller.
        path: The file they came from, for messages.
        place: Where in it.

    Raises:
        BadFile: It is no config, or one of a model that cannot be.
    """
    try:
        config = _decoder.decode(raw)
        unknown = next(_unknown_names(msgspec.json.decode(raw)), None)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadFile(path, place, "the config of a model", one_line(error)) from None
    if unknown is not None:
        raise BadFile(path, place, "what this version knows", f"{unknown!r:.80}; a newer dllama can read it")
    if not _MODEL_TYPE.fullmatch(config.model_type):
        raise BadFile(path, place, "a model_type of letters", f"{config.model_type!r:.80}")
    if problem := config.problem():
        raise BadFile(path, f"{place}, {problem.name}", problem.expected, problem.found[:80])
    return config


def _without_defaults(value: object) -> Any:
    if is_dataclass(value):
        found = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: _without_defaults(item) for field, item in found if item != field.default}
    return [_without_defaults(item) for item in value] if isinstance(value, tuple) else value


def _unknown_names(raw: dict[str, Any]) -> Iterator[str]:
    """Give the names that no field has, which the decoder passes over."""
    yield from raw.keys() - _names(ModelConfig)
    yield from (raw.get("rope_scaling") or {}).keys() - _names(RopeScaling)
    for layer in raw["layers"]:
        yield from layer.keys() - _names(LayerSpec)


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}
