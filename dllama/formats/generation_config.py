"""Reading ``generation_config.json``: how a model's makers want its tokens to be chosen, and what ends its answers.

Only what the engine can do is read; a value that is out of range or of another type counts as not said, as these files
hold leftovers of many versions and no answer depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

_RANGES = {"temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repeat_penalty": (0.01, 100.0)}
_FOREIGN = {"repeat_penalty": "repetition_penalty"}  # where Hugging Face's name is another
_MOST_TOP_K = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Settings of ``SamplingParams`` by its names; None where the model's makers say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def settings(self) -> dict[str, float | int]:
        """Give those that are said."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def generation_defaults(config: Mapping[str, object]) -> GenerationDefaults:
    """Take the settings from a ``generation_config.json``.

    One that says it does not sample is greedy. One that says nothing of it samples by the settings it has, as in vLLM;
    transformers would be greedy there.
    """
    values: dict[str, float] = {}
    for name, (low, high) in _RANGES.items():
        value = config.get(_FOREIGN.get(name, name))
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            values[name] = float(value)
    if config.get("do_sample") is False:
        values = {name: value for name, value in values.items() if name == "repeat_penalty"} | {"temperature": 0.0}
    top_k = config.get("top_k")
    is_known = isinstance(top_k, int) and not isinstance(top_k, bool) and 0 <= top_k <= _MOST_TOP_K
    samples = config.get("do_sample") is not False
    return GenerationDefaults(top_k=top_k if is_known and samples else None, **values)  # type: ignore[arg-type]


def eos_ids_of(config: Mapping[str, object]) -> tuple[int, ...]:
    """Give ``eos_token_id``, one or a list, of ``generation_config.json`` or ``config.json``; empty if it has none."""
    given = config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return tuple(dict.fromkeys(each for each in ids if isinstance(each, int) and not isinstance(each, bool)))
