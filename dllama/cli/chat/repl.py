"""The chat itself: reads messages, gives answers, and keeps the conversation whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dllama.cli.chat.answer import Answer, Request, make_answer
from dllama.cli.chat.keys import StopKeys
from dllama.cli.chat.sessions import Talk
from dllama.cli.chat.view import AnswerView
from dllama.errors import ContextFull, DllamaError, UsageError
from dllama.text.conversation import Conversation, Mark

if TYPE_CHECKING:
    from dllama.cli.chat.line_reader import LineReader
    from dllama.cli.chat.screen import PlainScreen
    from dllama.engine import Engine

_ROOM_SHARE = 4  # shifting leaves a quarter of the context for the answer


class Ended(Exception):
    """The user ends the chat."""


@dataclass
class Chat:
    """A conversation, the model that takes part, and the screen it is shown on.

    Attributes:
        context_shift: Whether the oldest turns are forgotten when the context is full.
        report: Hears of each answer that is done.
        last_answer: The latest, with its costs.
        attached: Texts that go with the next message.
        typed: Lines that were typed while something else was done.
        draft: What is in the next line already: what was typed before a stop, or could not be answered.
        keys: Ask for the end of what is being done.
    """

    engine: Engine
    talk: Talk
    screen: PlainScreen
    context_shift: bool = False
    report: Callable[[Answer], None] = lambda _answer: None
    last_answer: Answer | None = None
    attached: list[str] = field(default_factory=list)
    typed: str = ""
    draft: str = ""
    keys: StopKeys = field(default_factory=lambda: StopKeys(watch_terminal=False))

    @property
    def conversation(self) -> Conversation:
        """What was said."""
        return self.talk.conversation

    def run(self, reader: LineReader) -> None:
        """Read and answer until the input ends.

        Raises:
            DllamaError: The engine has stopped; without a terminal, whatever goes wrong.
            KeyboardInterrupt: Ctrl-C without a terminal.
            Hangup: The program is to end.
        """
        while True:
            try:
                text = self._next(reader)
                if text is None:
                    return
                self._heed(text)
            except Ended:
                return
            except KeyboardInterrupt:
                if not self.screen.is_interactive:
                    raise
                self.screen.note("(Ctrl-D or /exit ends the chat)")
            except DllamaError as error:
                if not self.screen.is_interactive or self._has_engine_stopped():  # a chat ends with its engine
                    raise
                self.screen.error(str(error))

    def _next(self, reader: LineReader) -> str | None:
        """Give the next message: a line that was typed and ended while something else was done, or a new one."""
        line, is_ended, rest = self.typed.partition("\n")
        if is_ended:
            self.screen.line(f"> {line}")
            self.typed = rest
            return line
        draft, self.draft, self.typed = self.draft + line, "", ""
        return reader.next(draft)

    def _heed(self, text: str) -> None:
        """Answer a message or do what a command says; signals wait until that is done."""
        from dllama.cli.chat.commands import is_command, run_command

        try:
            with StopKeys(self.screen.is_interactive) as self.keys:
                if is_command(text):
                    run_command(self, text)
                elif text.strip() or self.attached:
                    self.ask(text)
        finally:
            if self.keys.is_stopped():
                self.draft += self.keys.typed.rstrip("\n")
            else:
                self.typed += self.keys.typed
            if self.keys.hangup:
                raise self.keys.hangup
        if self.keys.is_stopped() and not self.screen.is_interactive:
            raise KeyboardInterrupt

    def ask(self, text: str) -> None:
        """Say something and show the answer. If there is none, it is as if nothing had been said.

        Raises:
            ContextFull: The conversation with this message leaves no room for an answer.
            TemplateError: The template cannot write this conversation.
        """
        before, num_answers, attached = self.conversation.copy(), self.talk.num_answers, self.attached
        self.conversation.add_user("\n\n".join([*attached, text] if text.strip() else attached))
        try:
            self._answer_or_restore(before)
        except ContextFull as error:
            self.attached = []
            self.draft = text if attached else ""
            dropped = "; what was read with /read is left out now" if attached else ""
            raise ContextFull(f"{error}{dropped}") from None
        if self.talk.num_answers > num_answers:
            self.attached = []
        else:
            self.draft = text

    def regenerate(self) -> None:
        """Give another answer to the last message; errors as ``ask``.

        Raises:
            UsageError: There is nothing to answer.
        """
        before = self.conversation.copy()
        if not before.turns:
            raise UsageError("/regen: there is no answer yet")
        if before.is_answered:
            self.conversation.take_back_answer()
        self._answer_or_restore(before)

    def _answer_or_restore(self, before: Conversation) -> None:
        num_answers = self.talk.num_answers
        try:
            self._answer()
        finally:
            if self.talk.num_answers == num_answers and not self._has_engine_stopped():
                self.talk.conversation = before  # else the message is saved with the rest; /regen answers it then

    def _has_engine_stopped(self) -> bool:
        from dllama.engine import EngineStopped

        try:
            self.engine.check()
        except EngineStopped:
            return True
        return False

    def _answer(self) -> None:
        prompt = self._fitting_prompt()
        view = AnswerView(self.screen, self.keys.is_stopped, self.talk.settings["think"], prompt.text)
        try:
            answer = make_answer(self.engine, *self._request(prompt), view, self._go_on)
        finally:
            view.finish()
        self._keep(answer)
        self.report(answer)

    def _request(self, prompt: Mark, said: Sequence[int] = ()) -> Request:
        """Give the request for what follows the prompt and what was said already."""
        sampling = self.talk.settings.sampling(self.conversation.template, self.talk.num_answers, len(said))
        return [*prompt.token_ids, *said], sampling

    def _go_on(self, answer: Answer) -> Request | None:
        """Give the request for the rest of an answer that the context has cut, if the oldest turns may go."""
        if self.context_shift and self._is_cut(answer) and self._shift(answer.token_ids):
            return self._request(self.conversation.prompt(), answer.token_ids)
        return None

    def _is_cut(self, answer: Answer) -> bool:
        """Whether nothing but the end of the context ended the answer."""
        steps = self.talk.settings["steps"]
        return answer.finish_reason == "length" and not (steps and len(answer.token_ids) >= steps)

    def _keep(self, answer: Answer) -> None:
        if not answer.token_ids:
            self.screen.note("(stopped before the first word: nothing was added to the conversation)")
            return
        self.last_answer = answer
        self.conversation.add_answer(answer.text, answer.token_ids, answer.is_exact)
        self.talk.num_answers += 1
        if self._is_cut(answer):
            advice = (
                "this answer fills it" if self.context_shift else "--context-shift forgets the oldest turns instead"
            )
            self.screen.note(f"(end of context: /clear begins anew; {advice})")
        elif answer.finish_reason == "length" and self.screen.is_interactive:
            self.screen.note("(cut at --steps; /set steps 0 lets answers end by themselves)")

    def _fitting_prompt(self) -> Mark:
        """Give the prompt of the last message, the oldest turns left out if they must and may be."""
        prompt = self.conversation.prompt()
        num_tokens = len(prompt.token_ids)
        if num_tokens < self.engine.max_seq_len:
            return prompt
        if not (self.context_shift and self._shift()):
            advice = "make it shorter, begin a new conversation with /clear, or start with a larger --max-seq-len"
            if not self.context_shift:
                advice += " or with --context-shift, which forgets the oldest turns"
            raise ContextFull(
                f"with this message the conversation has {num_tokens} tokens, and the context takes "
                f"{self.engine.max_seq_len - 1}: {advice}"
            )
        return self.conversation.prompt()

    def _shift(self, said: Sequence[int] = ()) -> bool:
        """Forget the oldest turns until a quarter of the context is free; False, and no change, if that is too little.

        Args:
            said: Tokens of the answer that is being made.
        """
        shorter, context = self.conversation.copy(), self.engine.max_seq_len
        most = context - context // _ROOM_SHARE
        num_tokens = context
        while num_tokens > most and shorter.drop_oldest_turn():
            num_tokens = len(shorter.prompt().token_ids) + len(said)
        if num_tokens >= context:
            return False
        num_dropped = len(self.conversation.messages) - len(shorter.messages)
        what = f"the {num_dropped} oldest messages are" if num_dropped else "what was loaded is"
        self.screen.note(f"(context full: {what} forgotten)")
        self.talk.conversation = shorter
        return True
