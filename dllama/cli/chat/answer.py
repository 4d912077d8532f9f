"""One answer: from the prompt's token ids to text, until it ends or is stopped, with what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dllama.cli.common import StepCost, timed_step

if TYPE_CHECKING:
    from dllama.engine import Engine, Output, SamplingParams


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
        return self.writing.tokens / self.writing.wall_us * 1e6 if self.writing.wall_us else 0.0

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

    def followed_by(self, more: Answer) -> Answer:
        """Give this answer with the rest of it, which another request made."""
        return Answer(
            self.num_prompt_tokens,
            self.num_cached,
            [*self.outputs, *more.outputs],
            self.reading,
            self.writing + more.reading + more.writing,
        )


def make_answer(engine: Engine, prompt: list[int], sampling: SamplingParams, listener: Listener) -> Answer:
    """Generate until the answer ends or the listener stops it; errors are those of ``Engine.add`` and ``step``."""
    answer = Answer(len(prompt))
    request_id = engine.add(prompt, sampling)
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
            answer.num_cached = output.num_cached
            answer.outputs.append(output)
            listener.text(output.text)
    return answer
