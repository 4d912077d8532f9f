"""What is done with the results of a sequence: generate from logits, or collect what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from dllama.engine.params import FinishReason, Output, SamplingParams
from dllama.engine.rows import RowQuery, SlicedRow
from dllama.engine.sampling import Row, Sampler, log_probs
from dllama.engine.sequence import Sequence
from dllama.text.stops import TextUntilStop

if TYPE_CHECKING:
    from collections.abc import Callable

    from dllama.text.detokenizer import Detokenizer
    from dllama.text.tokenizer import Tokenizer

F32Array = npt.NDArray[np.float32]
Result = Row | np.float32
Tokens = tuple[int, ...]


class Task(Protocol):
    """A sequence and what its results are for."""

    sequence: Sequence

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is wanted of the sequence."""

    def query(self, draft: Tokens) -> RowQuery | None:
        """Say what must be known of a row of logits where rows lie on several nodes; None: all of it.

        The row is the one behind the sequence's tokens and ``draft``.
        """

    def receive(self, position: int, result: Result) -> Output | None:
        """Take the result of ``position``: logits ``[vocab_size]``, what a query gave, or a score.

        It is valid during the call only.
        """


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

    def query(self, draft: Tokens) -> None:
        """Ask for whole rows."""

    def receive(self, position: int, result: Result) -> None:
        """Keep one row."""
        assert not isinstance(result, SlicedRow)  # nobody asked for one
        self._out[position] = result


class Generation:
    """One request: tokens sampled one after the other until something ends it.

    Args:
        sequence: The prompt; tokens are appended to it, up to its ``max_len``.
        params: How to choose and when to end.
        vocab_size: The model's.
        tokenizer: Turns tokens into text and knows which end it; None: no text, and no stop strings.
    """

    def __init__(
        self, sequence: Sequence, params: SamplingParams, vocab_size: int, tokenizer: Tokenizer | None
    ) -> None:
        self.sequence, self._params = sequence, params
        num_candidates = min(vocab_size, tokenizer.vocab_size) if tokenizer else vocab_size
        self._sampler = Sampler(params, len(sequence.token_ids), num_candidates, vocab_size)
        self._text = text_until_stop(params, tokenizer, sequence.token_ids[-1])
        self._reason: FinishReason | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the last token is there."""
        return self._reason is not None

    def query(self, draft: Tokens) -> RowQuery | None:
        """Ask for what the sampler needs."""
        token_ids = self.sequence.token_ids
        return self._sampler.query([*token_ids, *draft] if draft else token_ids)

    def receive(self, position: int, result: Result) -> Output:
        """Choose the next token from the logits of the last one."""
        row = result if isinstance(result, SlicedRow) else np.asarray(result)
        token = self._sampler.choose(row, self.sequence.token_ids)
        self.sequence.token_ids.append(token)
        text, stop = self._text.add(token)
        if stop is not None:
            self._reason = "stop"
        elif len(self.sequence.token_ids) == self.sequence.max_len:
            self._reason = "length"
            text += self._text.finish()
        output = self._output(token, text)
        output.stop_reason = stop
        if self._params.logprobs:
            output.logprob, output.top_logprobs = log_probs(row, token, self._params.logprobs)
        return output

    def cancel(self) -> Output:
        """End now, with the text that was held back."""
        self._reason = "cancelled"
        return self._output(None, self._text.finish())

    def _output(self, token: int | None, text: str) -> Output:
        num_cached = self.sequence.num_cached or 0
        return Output(self.sequence.request_id, token, text, finish_reason=self._reason, num_cached=num_cached)


def text_until_stop(params: SamplingParams, tokenizer: Tokenizer | None, last_prompt_token: int) -> TextUntilStop:
    """Give what turns the tokens after a prompt into text, up to the first stop of ``params`` or the tokenizer."""
    eos_ids = tokenizer.eos_ids if tokenizer and not params.ignore_eos else ()
    stop_ids, sequences = (*params.stop_token_ids, *eos_ids), map(tuple, params.stop_sequences)
    return TextUntilStop(_detokenizers(tokenizer, last_prompt_token), stop_ids, sequences, params.stop)


def _detokenizers(tokenizer: Tokenizer | None, last_prompt_token: int) -> Callable[[], Detokenizer] | None:
    """Give a maker of detokenizers for what follows a prompt."""
    if tokenizer is None:
        return None
    from dllama.text.detokenizer import Detokenizer

    return lambda: Detokenizer(tokenizer, continues=not tokenizer.is_special(last_prompt_token))
