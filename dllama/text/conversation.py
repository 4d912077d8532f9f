"""A conversation: messages on one side, the token ids that stand for all of them on the other.

The template writes the whole conversation anew for every answer. Where that text begins as it did before, the token ids
from before are kept: those of the prompts, and of the answers the very tokens that the model chose, its end-of-turn
token included. So the engine finds its keys and values again, and only what is new is encoded. Where the text differs,
because a template drops old reasoning or the system message was changed, it is encoded anew from the last special token
before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, NamedTuple

from dllama.errors import UsageError
from dllama.text.chat_template import ChatTemplate, Message
from dllama.text.token_text import TokenText

if TYPE_CHECKING:
    from dllama.text.tokenizer import Tokenizer

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
_PROBE = "PROBE"  # a message that no template changes


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of the conversation: the text so far, as the template writes it, and its token ids."""

    text: str
    token_ids: tuple[int, ...]


class Border(NamedTuple):
    """Where a point lies in what is known of a conversation: the lengths of its text and of its token ids."""

    num_chars: int
    num_tokens: int


@dataclass
class Conversation:
    """What was said, and how a model is told.

    Attributes:
        template: Writes the messages as the model knows them.
        tokenizer: Of the same model.
        messages: All of them, oldest first; a system message only at the start.
        started: The date that the template is told, for as long as the conversation goes on.
        variables: More that the template is told, such as ``enable_thinking``.
        known: The last text, and the token ids that stand for it.
        marks: Points of ``known`` up to which its token ids stand for its text, in order; the last is its end.
        base: Token ids that came without messages and stand before all of them, if the conversation began so.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    messages: list[Message] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC).astimezone())
    variables: Mapping[str, object] = field(default_factory=dict)
    known: Mark = Mark("", ())
    marks: list[Border] = field(default_factory=list)
    base: Mark | None = None

    def __post_init__(self) -> None:
        self._reader = TokenText(self.tokenizer)

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
        return self.known.token_ids

    def set_system(self, text: str) -> None:
        """Change the system message; an empty text removes it.

        Raises:
            UsageError: The conversation began with token ids, which hold their own.
        """
        if self.base:
            raise UsageError("a conversation loaded from token ids keeps its system message; /clear begins another")
        self.messages = [*([Message(SYSTEM, text)] if text else []), *self.turns]

    def add_user(self, text: str) -> None:
        """Append what the user says; to the last message if that has no answer, as templates want them to alternate."""
        if self.messages and self.messages[-1].role == USER:
            text = f"{self.messages.pop().content}\n\n{text}"
        self.messages.append(Message(USER, text))

    def prompt(self) -> Mark:
        """Give the text and token ids after which the model is to answer the last message; this point is remembered.

        Raises:
            TemplateError: The template cannot write this conversation.
        """
        text = self._rendered(self.messages, is_prompt=True)
        self._keep(text)
        rest = text[len(self.known.text) :]
        if not self.marks:
            self._mark(text, self.template.encode_guarded(text))
        elif rest:
            self._mark(rest, self._encoded_behind(self.known.token_ids, rest))
        return self.known

    def add_answer(self, text: str, token_ids: Sequence[int], is_exact: bool = True) -> None:
        """Append what the model said after the last ``prompt``.

        Args:
            text: What was shown.
            token_ids: All tokens that were generated.
            is_exact: Whether ``token_ids`` stand for ``text`` and an end-of-turn token at most; not so after a stop
                text, which was generated but not shown.
        """
        self.messages.append(self._answer_message(self.known.text, text))
        ended = bool(token_ids) and token_ids[-1] in self.template.stop_ids
        said = token_ids[:-1] if ended else token_ids
        if not (is_exact and self._reader.says(said, text)):  # silent tokens amid the text are not told again
            return
        self._mark(text, said)
        if ended:
            self._mark(self._reader.text(token_ids[-1:]), token_ids[-1:])

    def take_back_answer(self) -> None:
        """Forget the last answer, so that another can be given."""
        self.messages.pop()

    def drop_oldest_turn(self) -> bool:
        """Forget the oldest message and all before the next one of the user's; False if nothing older is left."""
        first = 0 if self.system is None else 1
        if self.base:
            self._forget()
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
        self._forget()
        self.started = datetime.now(UTC).astimezone()

    def start_from(self, token_ids: Sequence[int]) -> None:
        """Begin with token ids of which no messages are known; their text is read from them."""
        self._forget()
        self.messages = []
        self._mark(self._reader.text(token_ids), token_ids)
        self.base = self.known

    def pieces(self) -> list[tuple[str, tuple[int, ...]]]:
        """Give what each mark adds to the one before it, text and token ids, as ``restore`` takes them."""
        begins = [Border(0, 0), *self.marks]
        return [
            (self.known.text[begin.num_chars : end.num_chars], self.known.token_ids[begin.num_tokens : end.num_tokens])
            for begin, end in pairwise(begins)
        ]

    def restore(
        self, messages: Sequence[Message], pieces: Iterable[tuple[str, Sequence[int]]], has_base: bool = False
    ) -> None:
        """Take a conversation that was saved. Token ids are believed up to the first piece whose text they do not say.

        Args:
            messages: What was said.
            pieces: Those of the other.
            has_base: Whether the first piece came without messages; its text is read from its token ids.
        """
        rest = iter(pieces)
        self._forget()
        if has_base:
            _, token_ids = next(rest)
            self.start_from(token_ids)
        self.messages = list(messages)
        texts, ids = [self.known.text], list(self.known.token_ids)
        marks = list(self.marks)
        for text, token_ids in rest:
            bare = token_ids[1:] if not ids and list(token_ids[:1]) == [self.tokenizer.bos_id] else token_ids
            if not (self._reader.says(token_ids, text) or self._reader.says(bare, text)):  # BOS may be unwritten
                break
            texts.append(text)
            ids += token_ids
            marks.append(Border((marks[-1].num_chars if marks else 0) + len(text), len(ids)))
        self.known, self.marks = Mark("".join(texts), tuple(ids)), marks

    def lasting_ids(self) -> tuple[int, ...]:
        """Give the token ids that later prompts begin with: without an end of turn that the template does not write.

        Raises:
            TemplateError: The template cannot write this conversation.
            UsageError: It cannot go on from token ids.
        """
        if not self.is_answered:
            return self.token_ids
        later = [Message(USER, _PROBE)]
        whole, behind = self._rendered([*self.messages, *later], is_prompt=True), "".join(self._behind(later, True))
        if not whole.endswith(behind):
            return self.token_ids
        told = self.copy()
        told._keep(whole)
        rest = whole[len(told.known.text) : len(whole) - len(behind)]
        return (*told.token_ids, *self._encoded_behind(told.token_ids, rest))

    def _encoded_behind(self, token_ids: Sequence[int], text: str) -> list[int]:
        return self.tokenizer.encode(text, add_bos=False, parse_special=True, after=token_ids)

    def _forget(self) -> None:
        self.known, self.marks, self.base = Mark("", ()), [], None

    def _mark(self, text: str, token_ids: Sequence[int]) -> None:
        """Append to what is known."""
        if text or token_ids:
            self.known = Mark(self.known.text + text, (*self.known.token_ids, *token_ids))
            self.marks.append(Border(len(self.known.text), len(self.known.token_ids)))

    def _keep(self, text: str) -> None:
        """Forget what is known but for what ``text`` begins with: whole pieces, and special tokens after those."""
        before = self.known.text
        count = bisect_left(self.marks, True, key=lambda mark: not text.startswith(before[: mark.num_chars]))
        lost = self.pieces()[count:]
        self._cut(self.marks[count - 1] if count else Border(0, 0), count)
        if not lost:
            return
        (piece, token_ids), *behind = lost
        pairs = zip(piece, text[len(self.known.text) :], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        num_chars, num_tokens = self._reader.shared(token_ids, piece[:same])
        self._mark(piece[:num_chars], token_ids[:num_tokens])
        for piece, token_ids in behind if num_chars else []:  # an answer may stand behind another opening
            if not (piece and text.startswith(piece, len(self.known.text))):
                break
            self._mark(piece, token_ids)

    def _cut(self, end: Border, num_marks: int) -> None:
        self.known = Mark(self.known.text[: end.num_chars], self.known.token_ids[: end.num_tokens])
        del self.marks[num_marks:]

    def _answer_message(self, prompt: str, text: str) -> Message:
        """Give the message that the template writes as the model said it; some put the blank before an answer."""
        as_said, stripped = Message(ASSISTANT, text), Message(ASSISTANT, text.strip())
        if text != stripped.content:
            written = self._rendered([*self.messages, stripped], is_prompt=False)
            return stripped if written.startswith(prompt + text) else as_said
        return as_said

    def _rendered(self, messages: Sequence[Message], *, is_prompt: bool) -> str:
        if self.base is None:
            return self._render(messages, is_prompt=is_prompt)
        end, turns = self._behind(messages, is_prompt)
        text = self.base.text
        present = next(length for length in range(len(end), -1, -1) if text.endswith(end[:length]))
        return text + end[present:] + turns

    def _behind(self, messages: Sequence[Message], is_prompt: bool) -> tuple[str, str]:
        """Give what the template writes behind an earlier answer: its end, and then the messages."""
        probe = [Message(USER, _PROBE), Message(ASSISTANT, _PROBE)]
        earlier = self._render(probe, is_prompt=False)
        whole = self._render([*probe, *messages], is_prompt=is_prompt)
        if not whole.startswith(earlier) or _PROBE not in earlier:
            raise UsageError(f"template {self.template.name} cannot go on from token ids; /save and /load JSON instead")
        return earlier[earlier.rindex(_PROBE) + len(_PROBE) :], whole[len(earlier) :]

    def _render(self, messages: Sequence[Message], *, is_prompt: bool) -> str:
        return self.template.render_guarded(
            messages, add_generation_prompt=is_prompt, now=self.started, variables=self.variables
        )
