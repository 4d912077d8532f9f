"""Choosing the next token from a row of logits, whole or sliced: penalties, bias, temperature, filters, one draw.

The draw takes distributed-llama's steps with its random numbers; sums are taken in double, not in float32, so that one
node and several draw the same tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dllama import _native
from dllama.engine.params import SamplingParams
from dllama.engine.rows import NO_IDS, RowQuery, SlicedRow

F32Array = npt.NDArray[np.float32]
I32Array = npt.NDArray[np.int32]
Row = F32Array | SlicedRow

_MASK_64 = (1 << 64) - 1
_MULTIPLIER = 0x2545F4914F6CDD1D

# Of a row on several nodes. Whatever does not suffice costs one more round and the row's bytes, 512 KB of Llama 3's.
_NUCLEUS = 128  # candidates for top-p and min-p: 1 KiB, enough for most distributions that are worth cutting
_MAX_TOP_K = 1024
_TIES = 8  # candidates beyond top-k, lest one as likely as the last is missing
_MAX_IDS = 4096  # penalized or biased tokens: 16 KiB each way


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
        vocab_size: The model's; None: as many.
    """

    def __init__(
        self, params: SamplingParams, num_prompt: int, num_candidates: int, vocab_size: int | None = None
    ) -> None:
        self._params, self._num_prompt, self._num_candidates = params, num_prompt, num_candidates
        self._vocab_size = num_candidates if vocab_size is None else vocab_size
        bias = sorted(params.logit_bias.items())
        self._bias_ids = np.array([token for token, _ in bias], np.int32)
        self._bias = np.array([value for _, value in bias], np.float32)
        self._coin = Coin(params.seed)

    def query(self, token_ids: Sequence[int]) -> RowQuery | None:
        """Say what must be known of the row behind ``token_ids`` if it lies on several nodes; None: all of it.

        Rarely more than that is needed, and fetched, when the token is chosen.
        """
        params = self._params
        ids, limit = self._changed_ids(token_ids), self._num_candidates
        if not params.is_greedy and not self._has_filters and ids.size:
            return None  # a walk over all tokens
        if params.logprobs:  # of the most likely tokens, those that are never chosen too
            ids = np.union1d(ids, np.arange(limit, self._vocab_size, dtype=np.int32))
            limit = self._vocab_size
        if len(ids) > _MAX_IDS:
            return None
        temperature = 1.0 if params.is_greedy else params.temperature
        return RowQuery(min(max(self._count, params.logprobs), self._vocab_size), limit, temperature, ids)

    def choose(self, row: Row, token_ids: Sequence[int]) -> int:
        """Choose the token that follows ``token_ids``.

        Args:
            row: The model's logits ``[vocab_size]``, left as they are; or what nodes said to ``query(token_ids)``.
            token_ids: The whole sequence, prompt included.

        Raises:
            ValueError: The logits are not finite numbers.
        """
        coin = None if self._params.is_greedy else self._coin.flip()
        if isinstance(row, SlicedRow):
            token = self._choose_sliced(row, token_ids, coin)
            if token is not None:
                return token
            row = row.logits()
        logits = self._adjusted(row, token_ids)[: self._num_candidates]
        if coin is None:
            return _native.argmax(logits)
        params = self._params
        return _native.sample(logits, params.temperature, params.top_k, params.top_p, params.min_p, coin)

    def _choose_sliced(self, row: SlicedRow, token_ids: Sequence[int], coin: float | None) -> int | None:
        """Choose from what the nodes said; None if that is not enough."""
        if coin is not None and not self._has_filters:
            return row.draw(coin)
        values = self._changed(row.query.ids, row.candidates.values, token_ids)
        best = row.ranking(values, self._num_candidates)
        if coin is None:
            return int(best.ids[_native.argmax(best.logits)])
        params = self._params
        shares = values[: np.searchsorted(row.query.ids, self._num_candidates)].astype(np.float64)
        total = float(np.exp((shares - best.logits[0]) / params.temperature).sum())
        if row.candidates.sum_exp != 0.0:
            scale = math.exp((row.candidates.max - float(best.logits[0])) / params.temperature)
            total += row.candidates.sum_exp * scale
        return _native.sample_best(
            best.logits,
            best.ids,
            total,
            self._num_candidates,
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            coin,
        )

    @property
    def _has_filters(self) -> bool:
        params = self._params
        return 0 < params.top_p < 1 or 0 < params.top_k < self._num_candidates or params.min_p > 0

    @property
    def _count(self) -> int:
        """How many of the best are enough, nearly always."""
        if self._params.is_greedy or not self._has_filters:
            return 1
        top_k = self._params.top_k
        return top_k + _TIES if 0 < top_k <= _MAX_TOP_K else _NUCLEUS

    def _adjusted(self, logits: F32Array, token_ids: Sequence[int]) -> F32Array:
        """Apply penalties and bias to the few logits they concern, in a copy if there are any."""
        ids = self._changed_ids(token_ids)
        if not ids.size:
            return logits
        logits = logits.copy()
        logits[ids] = self._changed(ids, logits[ids], token_ids)
        return logits

    def _recent(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Tokens that are penalized for being there."""
        if self._params.repeat_penalty == 1.0:
            return ()
        last_n = self._params.repeat_last_n
        return token_ids if last_n < 0 else token_ids[max(0, len(token_ids) - last_n) :]

    def _generated(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Tokens that are penalized for having been generated."""
        params = self._params
        return token_ids[self._num_prompt :] if params.presence_penalty or params.frequency_penalty else ()

    def _changed_ids(self, token_ids: Sequence[int]) -> I32Array:
        """Tokens whose logits penalties or bias change, ascending."""
        recent, generated = self._recent(token_ids), self._generated(token_ids)
        if not (recent or generated or self._bias.size):
            return NO_IDS
        return np.unique(np.concatenate((np.array([*recent, *generated], np.int32), self._bias_ids)))

    def _changed(self, ids: I32Array, values: F32Array, token_ids: Sequence[int]) -> F32Array:
        """Give the logits ``values`` of tokens ``ids``, ascending and at least those changed, as they are to be."""
        params, values = self._params, values.copy()
        if recent := self._recent(token_ids):
            at = np.searchsorted(ids, np.unique(np.asarray(recent)))
            penalty = np.float32(params.repeat_penalty)
            values[at] = np.where(values[at] > 0, values[at] / penalty, values[at] * penalty)
        if generated := self._generated(token_ids):
            tokens, counts = np.unique(np.asarray(generated), return_counts=True)
            penalties = params.presence_penalty + params.frequency_penalty * counts
            values[np.searchsorted(ids, tokens)] -= penalties.astype(np.float32)
        values[np.searchsorted(ids, self._bias_ids)] += self._bias
        return values


def log_probs(row: Row, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probabilities under softmax(logits): that of ``token_id``, and the ``num_top`` highest with their ids.

    Best first, lower ids first among equals. ``row``: logits ``[vocab_size]``, or what nodes said of them to a query
    without a limit; ``1 <= num_top``.
    """
    if isinstance(row, SlicedRow):
        best = row.ranking(row.candidates.values, row.query.limit)
        top = zip(best.ids[:num_top].tolist(), best.logits[:num_top].tolist(), strict=True)
        total = row.candidates.log_sum_exp
        return row.logit(token_id) - total, [(token, logit - total) for token, logit in top]
    total = _native.log_sum_exp(row)
    num_top = min(num_top, len(row))
    lowest = np.partition(row, -num_top)[-num_top]
    ids = np.flatnonzero(row >= lowest)
    best_ids = ids[np.argsort(-row[ids], kind="stable")][:num_top]
    return float(row[token_id]) - total, [(int(token), float(row[token]) - total) for token in best_ids]
