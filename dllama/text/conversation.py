"""A conversation: messages on one side, the token ids that stand for all of them on the other.

The template writes the whole conversation anew for every answer. Where that text begins as it did before, the token ids
from before are kept: those of the prompts, and of the answers the very tokens that the model chose, its end-of-turn
token included. So the engine finds its keys and values again, and only what is new is encoded. Where the text differs,
because a template drops old reasoning or the system message was changed, it is encoded anew from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dllama.errors import UsageError
from dllama.text.chat_template import ChatTemplate, Message

if TYPE_CHECKING:
    from dllama.text.tokenizer import Tokenizer

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
_PROBE = "PROBE"  # an answer that no template changes


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of the conversation: the text so far, as the template writes it, and its token ids."""

    text: str
    token_ids: tuple[int, ...]


@dataclass
class Conversation:
    """What was said, and how a model is told.

    Attributes:
        template: Writes the messages as the model knows them.
        tokenizer: Of the same model.
        messages: All of them, oldest first; a system message only at the start.
        started: The date that the template is told, for as long as the conversation goes on.
        variables: More that the template is told, such as ``enable_thinking``.
        marks: Points that are known, each one's text the beginning of the next one's.
        base: Token ids that came without messages and stand before all of them, if the conversation began so.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    messages: list[Message] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC).astimezone())
    variables: Mapping[str, object] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    base: Mark | None = None

    @property
    def system(self) -> str | None:
        """The system message."""
        return self.messages[0].content if self.messages and self.messages[0].role == SYSTEM else None

    @property
    def turns(self) -> list[Message]:
        """All messages but the system's."""
        return self.messages[1:] if self.system is not None else list(self.messages)

    @property
    def is_answered(self) -> bool:
        """Whether the last message is an answer."""
        return bool(self.messages) and self.messages[-1].role == ASSISTANT

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids that are known to stand for the conversation."""
        return self.marks[-1].token_ids if self.marks else ()

    def set_system(self, text: str) -> None:
        """Change the system message; an empty text removes it.

        Raises:
            UsageError: The conversation began with token ids, which hold their own.
        """
        if self.base:
            raise UsageError("a conversation loaded from token ids keeps its system message; /clear begins another")
        self.messages = [*([Message(SYSTEM, text)] if text else []), *self.turns]

    def add_user(self, text: str) -> None:
        """Append what the user says."""
        self.messages.append(Message(USER, text))

    def prompt(self) -> Mark:
        """Give the text and token ids after which the model is to answer the last message; this point is remembered.

        Raises:
            TemplateError: The template cannot write this conversation.
        """
        text = self._rendered()
        known = next((mark for mark in reversed(self.marks) if text.startswith(mark.text)), None)
        self.marks = self.marks[: self.marks.index(known) + 1] if known else []
        if known is None:
            self.marks.append(Mark(text, tuple(self.template.encode_guarded(text))))
        elif known.text != text:
            rest = self.tokenizer.encode(text[len(known.text) :], add_bos=False, parse_special=True)
            self.marks.append(Mark(text, (*known.token_ids, *rest)))
        return self.marks[-1]

    def add_answer(self, text: str, token_ids: Sequence[int], is_exact: bool = True) -> None:
        """Append what the model said after the last ``prompt``.

        Args:
            text: What was shown.
            token_ids: All tokens that were generated.
            is_exact: Whether ``token_ids`` stand for ``text`` and an end-of-turn token at most; not so after a stop
                text, which was generated but not shown.
        """
        prompt = self.marks[-1]
        self.messages.append(self._answer_message(prompt.text, text))
        if not is_exact:
            return
        ended = bool(token_ids) and token_ids[-1] in self.template.stop_ids
        said = token_ids[:-1] if ended else token_ids
        self.marks.append(Mark(prompt.text + text, (*prompt.token_ids, *said)))
        if ended:
            end = self.tokenizer.piece(token_ids[-1]).decode("utf-8", "replace")
            self.marks.append(Mark(prompt.text + text + end, (*prompt.token_ids, *token_ids)))

    def take_back_answer(self) -> None:
        """Forget the last answer, so that another can be given."""
        self.messages.pop()

    def drop_oldest_turn(self) -> bool:
        """Forget the oldest message and all before the next one of the user's; False if nothing older is left."""
        first = 0 if self.system is None else 1
        if self.base:
            self.base, self.marks = None, []
            return True
        later = [place for place in range(first + 1, len(self.messages)) if self.messages[place].role == USER]
        if later:
            del self.messages[first : later[0]]
        return bool(later)

    def copy(self) -> Conversation:
        """Give another that can be changed alone."""
        return replace(self, messages=list(self.messages), marks=list(self.marks))

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = [message for message in self.messages if message.role == SYSTEM]
        self.marks, self.base = [], None
        self.started = datetime.now(UTC).astimezone()

    def start_from(self, token_ids: Sequence[int]) -> None:
        """Begin with token ids of which no messages are known; their text is read from them."""
        raw = b"".join(self.tokenizer.piece(token_id) for token_id in token_ids)
        self.base = Mark(raw.decode("utf-8", "replace"), tuple(token_ids))
        self.messages, self.marks = [], [self.base]

    def _answer_message(self, prompt: str, text: str) -> Message:
        """Give the message that the template writes as the model said it; some put the blank before an answer."""
        as_said, stripped = Message(ASSISTANT, text), Message(ASSISTANT, text.strip())
        if self.base is None and text != stripped.content:
            written = self._render([*self.messages, stripped], is_prompt=False)
            return stripped if written.startswith(prompt + text) else as_said
        return as_said

    def _rendered(self) -> str:
        if self.base is None:
            return self._render(self.messages, is_prompt=True)
        return self.base.text + self._after_base(self.base.text)

    def _after_base(self, base: str) -> str:
        """Write the messages as the template does behind an earlier answer, and what is missing at the end of that."""
        probe = [Message(USER, _PROBE), Message(ASSISTANT, _PROBE)]
        earlier = self._render(probe, is_prompt=False)
        whole = self._render([*probe, *self.messages], is_prompt=True)
        if not whole.startswith(earlier) or _PROBE not in earlier:
            raise UsageError(f"template {self.template.name} cannot go on from token ids; /save and /load JSON instead")
        end = earlier[earlier.rindex(_PROBE) + len(_PROBE) :]
        present = next(length for length in range(len(end), -1, -1) if base.endswith(end[:length]))
        return end[present:] + whole[len(earlier) :]

    def _render(self, messages: Sequence[Message], *, is_prompt: bool) -> str:
        return self.template.render_guarded(
            messages, add_generation_prompt=is_prompt, now=self.started, variables=self.variables
        )
