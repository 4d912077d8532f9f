"""What ``/set`` changes: the flags that choose tokens, the length of answers, and how reasoning is shown."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from dllama.cli.parser import suggestion, whole
from dllama.cli.sampling_flags import LISTS, NUMBERS, sampling_params
from dllama.errors import UsageError

if TYPE_CHECKING:
    from dllama.engine import SamplingParams
    from dllama.text.chat_template import ChatTemplate

THINK = ("show", "hide", "off")
_MAX_SEED = 2**64


def think_kind(text: str) -> str:
    """Be the type of ``--think``."""
    if text not in THINK:
        raise argparse.ArgumentTypeError(f"expected {', '.join(THINK[:-1])} or {THINK[-1]}, found {text!r}")
    return text


_SCALARS: dict[str, Callable[[str], Any]] = {
    **{flag.removeprefix("--"): kind for flag, kind, *_ in NUMBERS},
    "steps": whole(0),
    "think": think_kind,
}
_ITEMS: dict[str, Callable[[str], Any]] = {flag.removeprefix("--"): kind for flag, kind, *_ in LISTS}
_SHOWN_ITEMS: dict[str, Callable[[Any], str]] = {
    "logit-bias": lambda item: f"{item[0]}:{item[1]}",
    "stop": str,
    "stop-tokens": lambda item: ",".join(map(str, item)),
}
KEYS = (*_SCALARS, *_ITEMS)


class Settings:
    """The settings of a chat by key; the keys are the names of the flags.

    Args:
        args: Where they start: parsed flags, with a seed.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._values: dict[str, Any] = {key: getattr(args, _dest(key)) for key in KEYS}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def set(self, key: str, text: str) -> None:
        """Change one from text; a list's items are separated by blanks, and quoted where they contain some.

        Raises:
            UsageError: An unknown key, or a value it does not take.
        """
        self._values[key] = _converted(self.check_key(key), text)

    @staticmethod
    def check_key(key: str) -> str:
        """Give the key, or raise UsageError if there is no such setting."""
        if key not in KEYS:
            raise UsageError(f"unknown setting '{key}'{suggestion(key, KEYS)}; settings: {', '.join(KEYS)}")
        return key

    def text(self, key: str) -> str:
        """Show one, as ``set`` takes it."""
        return _shown(key, self._values[key])

    def check(self, template: ChatTemplate, vocab_size: int) -> None:
        """Raise UsageError if the engine would refuse these settings: a value out of range, or no token's id."""
        sampling = self.sampling(template, 0, 0)
        for key, token_ids in {
            "logit-bias": [*sampling.logit_bias],
            "stop-tokens": [*chain.from_iterable(sampling.stop_sequences)],
        }.items():
            wrong = next((token for token in token_ids if token >= vocab_size), None)
            if wrong is not None:
                raise UsageError(f"setting {key}: expected token ids below {vocab_size}, found {wrong}")

    def take(self, other: Settings, keys: Iterable[str]) -> None:
        """Take some of another's settings."""
        self._values |= {key: other._values[key] for key in keys}

    def plain(self) -> dict[str, str]:
        """Give all as text, for a file."""
        return {key: self.text(key) for key in KEYS}

    def update(self, values: Mapping[str, object]) -> None:
        """Take all that ``plain`` gave, or none of it.

        Raises:
            UsageError: As ``set``.
        """
        for key, value in values.items():
            if not isinstance(value, str):
                raise UsageError(f"setting {self.check_key(key)}: expected a text, found {value!r:.40}")
        self._values |= {key: _converted(self.check_key(key), str(value)) for key, value in values.items()}

    def sampling(self, template: ChatTemplate, num_answers: int, num_said: int) -> SamplingParams:
        """Give the engine's parameters for the next answer, or for the rest of one.

        Args:
            template: Knows more that ends it.
            num_answers: Answers given before: each draws other random numbers, the same in every run of a seed.
            num_said: Tokens of it that are there already.
        """
        values = {_dest(key): value for key, value in self._values.items()}
        values["seed"] = (values["seed"] + num_answers + num_said) % _MAX_SEED
        values["stop"] = [*values["stop"], *template.stop_strings]
        steps = values.pop("steps")
        max_tokens = steps - num_said if steps else None
        return sampling_params(argparse.Namespace(**values), max_tokens=max_tokens, stop_token_ids=template.stop_ids)


def _dest(key: str) -> str:
    return key.replace("-", "_")


def _converted(key: str, text: str) -> Any:
    try:
        if key in _SCALARS:
            return _SCALARS[key](text)
        return [_ITEMS[key](item) for item in shlex.split(text) if item]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"setting {key}: {error}") from None
    except ValueError as error:  # shlex's, for quotes that are not closed
        raise UsageError(f"setting {key}: {str(error).lower()}") from None


def _shown(key: str, value: Any) -> str:
    if key in _SCALARS:
        return str(value)
    return shlex.join(_SHOWN_ITEMS[key](item) for item in value)
