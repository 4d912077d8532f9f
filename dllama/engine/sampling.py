"""Choosing the next token from a row of logits: penalties, bias, temperature, filters, one draw.

The draw is distributed-llama's: with temperature, top-p and seed alone, the same logits give the same tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dllama import _native
from dllama.engine.params import SamplingParams

F32Array = npt.NDArray[np.float32]

_MASK_64 = (1 << 64) - 1
_MULTIPLIER = 0x2545F4914F6CDD1D


class Coin:
    """The random numbers of one request: xorshift64*. A seed of 0 stays 0 for ever, as it does in distributed-llama."""

    def __init__(self, seed: int | None) -> None:
        self.state = int.from_bytes(os.urandom(8), "little") if seed is None else seed

    def flip(self) -> float:
        """Draw the next number, a multiple of 2**-24 in [0, 1)."""
        state = self.state
        state ^= state >> 12
        state ^= state << 25 & _MASK_64
        state ^= state >> 27
        self.state = state
        return ((state * _MULTIPLIER & _MASK_64) >> 40) / (1 << 24)


class Sampler:
    """Chooses the tokens of one request; its only state is the coin's.

    Args:
        params: How to choose.
        num_prompt: Length of the prompt: tokens behind it count for presence and frequency penalties.
        num_candidates: Only the first so many ids are chosen from: those the tokenizer can say, since models pad their
            vocabularies.
    """

    def __init__(self, params: SamplingParams, num_prompt: int, num_candidates: int) -> None:
        self._params, self._num_prompt, self._num_candidates = params, num_prompt, num_candidates
        self._bias_ids = np.array(list(params.logit_bias.keys()), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        self._coin = Coin(params.seed)

    def choose(self, logits: F32Array, token_ids: Sequence[int]) -> int:
        """Choose the token that follows ``token_ids``.

        Args:
            logits: The model's ``[vocab_size]``; left as it is.
            token_ids: The whole sequence, prompt included.
        """
        params = self._params
        logits = self._adjusted(logits, token_ids)[: self._num_candidates]
        if params.is_greedy:
            return _native.argmax(logits)
        coin = self._coin.flip()
        return _native.sample(logits, params.temperature, params.top_k, params.top_p, params.min_p, coin)

    def _adjusted(self, logits: F32Array, token_ids: Sequence[int]) -> F32Array:
        """Apply penalties and bias to the few logits they concern, in a copy if there are any."""
        params = self._params
        recent = _recent(token_ids, params.repeat_last_n) if params.repeat_penalty != 1.0 else ()
        generated = token_ids[self._num_prompt :] if params.presence_penalty or params.frequency_penalty else ()
        if not (recent or generated or self._bias.size):
            return logits
        logits = logits.copy()
        if recent:
            ids = np.unique(np.asarray(recent))
            values, penalty = logits[ids], np.float32(params.repeat_penalty)
            logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if generated:
            ids, counts = np.unique(np.asarray(generated), return_counts=True)
            logits[ids] -= (params.presence_penalty + params.frequency_penalty * counts).astype(np.float32)
        logits[self._bias_ids] += self._bias
        return logits


def log_probs(logits: F32Array, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probabilities under softmax(logits): that of ``token_id``, and the ``num_top`` highest with their ids.

    Best first, lower ids first among equals. ``logits``: ``[vocab_size]``; ``1 <= num_top``.
    """
    total = _native.log_sum_exp(logits)
    num_top = min(num_top, len(logits))
    lowest = np.partition(logits, -num_top)[-num_top]
    ids = np.flatnonzero(logits >= lowest)
    best = ids[np.argsort(-logits[ids], kind="stable")][:num_top]
    return float(logits[token_id]) - total, [(int(top), float(logits[top]) - total) for top in best]


def _recent(token_ids: Sequence[int], last_n: int) -> Sequence[int]:
    return token_ids if last_n < 0 else token_ids[max(0, len(token_ids) - last_n) :]
