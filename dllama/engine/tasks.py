"""What is done with the results of a sequence: generate from logits, or collect what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from dllama.engine.params import FinishReason, Output, SamplingParams
from dllama.engine.sampling import Sampler, log_probs
from dllama.engine.sequence import Sequence

if TYPE_CHECKING:
    from dllama.text.detokenizer import Detokenizer
    from dllama.text.tokenizer import Tokenizer

F32Array = npt.NDArray[np.float32]


class Task(Protocol):
    """A sequence and what its results are for."""

    sequence: Sequence

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is wanted of the sequence."""

    def receive(self, position: int, result: F32Array | np.float32) -> Output | None:
        """Take the logits ``[vocab_size]`` or the score of ``position``; the array is valid during the call only."""


class Collection:
    """Results put into an array, row by row.

    Args:
        sequence: What to compute.
        out: ``[len(sequence.token_ids), ...]``.
    """

    def __init__(self, sequence: Sequence, out: F32Array) -> None:
        self.sequence, self._out = sequence, out

    @property
    def is_finished(self) -> bool:
        """Whether every row is there."""
        return self.sequence.first_wanted == len(self._out)

    def receive(self, position: int, result: F32Array | np.float32) -> None:
        """Keep one row."""
        self._out[position] = result


class Generation:
    """One request: tokens sampled one after the other until something ends it.

    Args:
        sequence: The prompt; tokens are appended to it, up to its ``max_len``.
        params: How to choose and when to end.
        vocab_size: The model's.
        tokenizer: Turns tokens into text and knows which end it; None: no text.
    """

    def __init__(
        self, sequence: Sequence, params: SamplingParams, vocab_size: int, tokenizer: Tokenizer | None
    ) -> None:
        self.sequence, self._params = sequence, params
        num_candidates = min(vocab_size, tokenizer.vocab_size) if tokenizer else vocab_size
        self._sampler = Sampler(params, len(sequence.token_ids), num_candidates)
        self._stop_ids = set(params.stop_token_ids)
        if tokenizer and not params.ignore_eos:
            self._stop_ids.update(tokenizer.eos_ids)
        self._detokenizer = _detokenizer(tokenizer, sequence.token_ids[-1])
        self._reason: FinishReason | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the last token is there."""
        return self._reason is not None

    def receive(self, position: int, result: F32Array | np.float32) -> Output:
        """Choose the next token from the logits of the last one."""
        logits = np.asarray(result)
        token = self._sampler.choose(logits, self.sequence.token_ids)
        self.sequence.token_ids.append(token)
        self._reason = self._finish_reason(token)
        output = Output(self.sequence.request_id, token, self._text(token), finish_reason=self._reason)
        if self._params.logprobs:
            output.logprob, output.top_logprobs = log_probs(logits, token, self._params.logprobs)
        return output

    def cancel(self) -> Output:
        """End now, with the text that was held back."""
        self._reason = "cancelled"
        return Output(self.sequence.request_id, None, self._flush(), finish_reason=self._reason)

    def _finish_reason(self, token: int) -> FinishReason | None:
        if token in self._stop_ids:
            return "stop"
        return "length" if len(self.sequence.token_ids) == self.sequence.max_len else None

    def _text(self, token: int) -> str:
        text = "" if self._reason == "stop" or self._detokenizer is None else self._detokenizer.add(token)
        return text + self._flush() if self.is_finished else text

    def _flush(self) -> str:
        return "" if self._detokenizer is None else self._detokenizer.finish()


def _detokenizer(tokenizer: Tokenizer | None, last_prompt_token: int) -> Detokenizer | None:
    if tokenizer is None:
        return None
    from dllama.text.detokenizer import Detokenizer

    return Detokenizer(tokenizer, continues=not tokenizer.is_special(last_prompt_token))
