"""The flags that choose tokens and end texts, for ``inference`` and ``chat``; ``/set`` of a chat takes them too."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dllama.cli.parser import list_of, number, whole

if TYPE_CHECKING:
    from dllama.engine import SamplingParams
    from dllama.formats.generation_config import GenerationDefaults

_FLAGS = {"top_p": "topp"}  # where a flag is not named as the field of SamplingParams
# Flag, type, default, metavar, help.
NUMBERS: tuple[tuple[str, Callable[[str], float], float | None, str, str], ...] = (
    ("--temperature", number(0, 100), 0.8, "X", "0 takes the likeliest token (default 0.8)"),
    ("--topp", number(0, 1), 0.9, "P", "the likeliest tokens up to this mass (default 0.9; 1: all)"),
    ("--seed", whole(0, 2**64 - 1), None, "N", "start of the random numbers (default: the time)"),
    ("--top-k", whole(0), 0, "K", "only the K likeliest tokens (default 0: all)"),
    ("--min-p", number(0, 1), 0.0, "P", "only tokens at least P times as likely as the likeliest (default 0)"),
    ("--repeat-penalty", number(0.01, 100), 1.0, "X", "against the last 64 tokens (default 1: none)"),
    ("--presence-penalty", number(-100, 100), 0.0, "X", "against tokens generated before (default 0)"),
    ("--frequency-penalty", number(-100, 100), 0.0, "X", "against each time a token was generated (default 0)"),
)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition(":")
    if not token.isdecimal():
        raise argparse.ArgumentTypeError(f"expected ID:VALUE with ID >= 0, e.g. 42:-5, found {text!r}")
    return int(token), number(-1000, 1000)(value)


def _stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a text, found an empty one")
    return text


# The same for flags that take several values.
LISTS: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
    ("--logit-bias", _bias, "ID:VALUE", "added to the logits of these token ids"),
    ("--stop", _stop, "TEXT", "texts that end the answer and are left out of it"),
    ("--stop-tokens", list_of(whole(0)), "ID,…", "comma lists of token ids that do the same"),
)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that ``sampling_params`` reads."""
    group = parser.add_argument_group("choice of tokens, and what ends a text")
    for flag, number_type, default, metavar, help_ in NUMBERS:
        group.add_argument(flag, type=number_type, default=default, metavar=metavar, help=help_)
    for flag, item_type, metavar, help_ in LISTS:
        group.add_argument(flag, type=item_type, nargs="+", action="extend", default=[], metavar=metavar, help=help_)


def take_defaults(args: argparse.Namespace, generation: GenerationDefaults) -> str:
    """Put what a model's makers want in place of flags that the user has not chosen.

    Returns:
        What was taken, as ``"temperature 0.6, topp 0.95"``; empty if nothing was.
    """
    taken = {_FLAGS.get(name, name): value for name, value in generation.settings().items()}
    taken = {dest: value for dest, value in taken.items() if hasattr(args, dest) and dest not in args.chosen}
    vars(args).update(taken)
    return ", ".join(f"{dest.replace('_', '-')} {value:g}" for dest, value in taken.items())


def sampling_params(args: argparse.Namespace, **more: Any) -> SamplingParams:
    """Turn the flags, and fields that have other flags or none, into the engine's parameters."""
    from dllama.engine import SamplingParams

    return SamplingParams(
        temperature=args.temperature,
        top_p=args.topp,
        top_k=args.top_k,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=dict(args.logit_bias),
        stop=args.stop,
        stop_sequences=args.stop_tokens,
        seed=int(time.time()) if args.seed is None else args.seed,
        **more,
    )
