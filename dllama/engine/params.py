"""What a caller asks for and what it gets back: ``SamplingParams`` and ``Output``.

Plain data, checked when made. Knows no model: token ids are compared with the vocabulary by ``Engine.add``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dllama.errors import UsageError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    Applied in this order: ``repeat_penalty``, ``presence_penalty`` and ``frequency_penalty``, ``logit_bias``. Then, if
    ``temperature`` is 0, the most likely token wins, the first of equals; otherwise come ``temperature``, ``top_k``,
    ``top_p``, ``min_p`` and one draw. Each filter looks at probabilities of the whole vocabulary.

    Attributes:
        max_tokens: Most tokens to generate; None: until the context is full.
        temperature: 0 to 100; below 1e-6 counts as 0, which is greedy.
        top_p: Keep the most likely tokens up to this much probability; 0 and 1 switch it off.
        top_k: Keep this many of the most likely tokens; 0 switches it off.
        min_p: Keep tokens at least this likely compared with the most likely one; 0 switches it off.
        repeat_penalty: Divides positive and multiplies negative logits of the last ``repeat_last_n`` tokens.
        repeat_last_n: How far back, prompt included; 0: none, -1: the whole sequence.
        presence_penalty: Taken once from the logit of every token generated before.
        frequency_penalty: Taken from a token's logit for each time it was generated before.
        logit_bias: Added to the logits of these token ids.
        seed: Start of the random numbers, 0 to 2**64 - 1; None: a fresh one. distributed-llama draws the same numbers
            from the same seed. Seed 0 gives only zeros, there and so here: every draw takes the first candidate.
        logprobs: How many of the most likely tokens to report with each output, with their log-probabilities and that
            of the chosen one; 0: none. They are the model's own, before any penalty, bias, temperature or filter.
        ignore_eos: Continue after the tokenizer's end-of-sequence tokens (not after the stops below).
        stop_token_ids: More ids that end the request.
        stop_sequences: Sequences of generated ids that end the request; at most 64 of at most 256 ids.
        stop: Texts that end the request; at most 64 of at most 256 characters. They need a tokenizer.

    The stop that is complete first ends the request, the longest of several that are complete at the same place, and
    is no part of the output's text.

    Raises:
        UsageError: A value of the wrong type or out of range; the text names field, range and value.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int = 0
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()
    stop_sequences: Sequence[Sequence[int]] = ()
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, low, high in _INT_RANGES:
            _check_int(name, getattr(self, name), low, high, none_allowed=name in _NONE_ALLOWED)
        for name, lowest, highest in _FLOAT_RANGES:
            _check_float(name, getattr(self, name), lowest, highest)
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos: expected True or False, found {self.ignore_eos!r:.80}")
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(f"logit_bias: expected a mapping from token ids to numbers, found {self.logit_bias!r:.80}")
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias: token id", token, 0, 2**31 - 1)
            _check_float(f"logit_bias[{token}]", bias, -1000.0, 1000.0)
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "stop_sequences", _stop_sequences(self.stop_sequences))
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature < 1e-6


@dataclass(slots=True)
class Output:
    """One more token of one request.

    Attributes:
        request_id: What ``Engine.add`` returned.
        token_id: The token; None only in the output that reports a cancellation.
        text: What can be shown now, in whole characters and without stops; often empty: while a character is
            incomplete, while this may be the beginning of a stop, and always without a tokenizer. The last output
            carries what was held back.
        logprob: Log-probability of the token, if ``SamplingParams.logprobs`` asks for it.
        top_logprobs: The most likely (token id, log-probability) pairs, best first, if asked for.
        finish_reason: None while the request runs; ``"stop"`` (end-of-sequence or any stop), ``"length"``
            (``max_tokens`` or the end of the context) or ``"cancelled"`` in its last output.
        stop_reason: What a ``"stop"`` was: the token id, the sequence or the string.
        num_cached: Tokens of the prompt whose keys and values were still there from an earlier request.
    """

    request_id: int
    token_id: int | None
    text: str = ""
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | tuple[int, ...] | None = None
    num_cached: int = 0


def _check_int(name: str, value: object, low: int, high: int, *, none_allowed: bool = False) -> None:
    if value is None and none_allowed:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")


def _check_float(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and low <= value <= high):  # type: ignore[operator]
        raise UsageError(f"{name}: expected a number from {low:g} to {high:g}, found {value!r}")


def _items(name: str, kind: str, values: object) -> tuple[object, ...]:
    """Make a tuple of a list, a tuple or the like, but not of text."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UsageError(f"{name}: expected a list of {kind}, found {values!r:.80}")
    return tuple(values)


def _token_ids(name: str, values: object) -> tuple[int, ...]:
    token_ids = _items(name, "token ids", values)
    for token in token_ids:
        _check_int(f"{name}: token id", token, 0, 2**31 - 1)
    return token_ids  # type: ignore[return-value]


def _stop_sequences(values: object) -> tuple[tuple[int, ...], ...]:
    sequences = tuple(_token_ids("stop_sequences", value) for value in _items("stop_sequences", "lists of ids", values))
    _check_stops("stop_sequences", "token ids", sequences)
    return sequences


def _stop_strings(values: object) -> tuple[str, ...]:
    strings = _items("stop", "texts", values)
    for string in strings:
        if not isinstance(string, str):
            raise UsageError(f"stop: expected texts, found {string!r:.80}")
    _check_stops("stop", "characters", strings)  # type: ignore[arg-type]
    return strings  # type: ignore[return-value]


def _check_stops(name: str, unit: str, stops: Collection[Sequence[object]]) -> None:
    if len(stops) > _MAX_STOPS:
        raise UsageError(f"{name}: expected at most {_MAX_STOPS}, found {len(stops)}")
    for stop in stops:
        if not 1 <= len(stop) <= _MAX_STOP_LENGTH:
            raise UsageError(f"{name}: expected 1 to {_MAX_STOP_LENGTH} {unit} in each, found {len(stop)}")


_MAX_STOPS = 64  # with the next one, what the automaton of a request may cost: a few MiB and milliseconds
_MAX_STOP_LENGTH = 256
_NONE_ALLOWED = ("max_tokens", "seed")
_INT_RANGES = (
    ("max_tokens", 1, 2**31 - 1),
    ("top_k", 0, 2**31 - 1),
    ("repeat_last_n", -1, 2**31 - 1),
    ("seed", 0, 2**64 - 1),
    ("logprobs", 0, 100),
)
_FLOAT_RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repeat_penalty", 0.01, 100.0),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
)
