"""One answer: from the prompt's token ids to text, until it ends or is stopped, with what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from dllama.cli.common import StepCost, timed_step

if TYPE_CHECKING:
    from dllama.engine import Engine, Output, SamplingParams
    from dllama.text.stops import TextUntilStop


class Listener(Protocol):
    """Who follows an answer while it is made."""

    def text(self, text: str) -> None:
        """Take the next piece of the answer."""

    def reading(self, num_tokens: int) -> None:
        """Hear how many new tokens of the prompt are read, while it takes more steps."""

    def is_stopped(self) -> bool:
        """Whether the answer is to end now."""


@dataclass
class Answer:
    """What came out.

    Attributes:
        num_prompt_tokens: Tokens before the answer.
        num_cached: Those of them whose keys and values were there from before.
        reading, writing: Cost of the prompt with the first token, and of all tokens after that.
    """

    num_prompt_tokens: int
    num_cached: int = 0
    outputs: list[Output] = field(default_factory=list)
    reading: StepCost = field(default_factory=StepCost)
    writing: StepCost = field(default_factory=StepCost)

    @property
    def text(self) -> str:
        """All of it, without what ended it."""
        return "".join(output.text for output in self.outputs)

    @property
    def token_ids(self) -> list[int]:
        """All tokens that were generated."""
        return [output.token_id for output in self.outputs if output.token_id is not None]

    @property
    def finish_reason(self) -> str | None:
        """Why it ended."""
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def is_exact(self) -> bool:
        """Whether the tokens stand for the text and an end-of-turn token at most, and for no stop text."""
        return not self.outputs or not isinstance(self.outputs[-1].stop_reason, str | tuple)

    @property
    def tokens_per_second(self) -> float:
        """Rate of the tokens after the first; 0 where nothing was measured."""
        return (len(self.token_ids) - 1) / self.writing.wall_us * 1e6 if self.writing.wall_us else 0.0

    @property
    def steps_per_second(self) -> float:
        """Rate of the steps that gave them; 0 where nothing was measured."""
        return self.writing.steps / self.writing.wall_us * 1e6 if self.writing.wall_us else 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Rate at which the part of the prompt that was new was read; 0 where nothing was measured."""
        return self.reading.tokens / self.reading.wall_us * 1e6 if self.reading.wall_us else 0.0

    def plain(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "tokens_per_second": self.tokens_per_second,
        }


Request = tuple[list[int], "SamplingParams"]  # a prompt, and how to go on from it


def make_answer(
    engine: Engine,
    prompt: list[int],
    sampling: SamplingParams,
    listener: Listener,
    go_on: Callable[[Answer], Request | None] = lambda _answer: None,
) -> Answer:
    """Generate until the answer ends or the listener stops it; errors are those of ``Engine.add`` and ``step``.

    Args:
        engine: Does the work.
        prompt: What comes before the answer.
        sampling: How to choose tokens, and when to end.
        listener: Hears of it.
        go_on: Is asked when the length ends it, and may give another prompt, which ends with all that was said, for
            the rest of it. Text and stops reach over both parts.
    """
    from dllama.engine.tasks import text_until_stop

    answer = Answer(len(prompt))
    text = text_until_stop(sampling, engine.tokenizer, prompt[-1])
    request: Request | None = (prompt, sampling)
    while request is not None:
        _generate(engine, request, answer, text, listener)
        request = go_on(answer) if answer.finish_reason == "length" else None
    if answer.outputs and answer.finish_reason != "stop":
        last = text.finish()
        answer.outputs[-1].text += last
        listener.text(last)
    return answer


def _generate(engine: Engine, request: Request, answer: Answer, text: TextUntilStop, listener: Listener) -> None:
    """Let one request add to the answer; only tokens are asked of the engine."""
    prompt, sampling = request
    request_id = engine.add(prompt, replace(sampling, stop=(), stop_sequences=()))
    is_first = not answer.outputs
    while engine.has_work:
        if listener.is_stopped():
            engine.cancel(request_id)
        outputs, cost = timed_step(engine)
        if answer.outputs:
            answer.writing += cost
        else:
            answer.reading += cost
            if not outputs:
                listener.reading(answer.reading.tokens)
        for output in outputs:
            if answer.finish_reason == "stop":  # no more than the word that the request was cancelled
                continue
            answer.num_cached = output.num_cached if is_first else answer.num_cached
            _read(output, text)
            answer.outputs.append(output)
            listener.text(output.text)
            if output.finish_reason == "stop":
                engine.cancel(request_id)


def _read(output: Output, text: TextUntilStop) -> None:
    """Put the text of the whole answer in place of the request's, and end the output at a stop of it."""
    output.text, output.stop_reason = "", None
    if output.token_id is None:
        return
    output.text, output.stop_reason = text.add(output.token_id)
    if output.stop_reason is not None:
        output.finish_reason = "stop"
