"""Saving a chat to a file and going on from one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dllama.cli.chat.settings import Settings
from dllama.errors import BadFile, DllamaError, UsageError
from dllama.formats.fingerprint import fingerprint
from dllama.formats.session_file import (
    Session,
    SessionMark,
    SessionMessage,
    read_session,
    read_token_ids,
    write_session,
    write_token_ids,
)
from dllama.text.chat_template import Message
from dllama.text.conversation import Conversation, Mark


@dataclass
class ModelFiles:
    """The files a chat is held with, known by their contents.

    Attributes:
        name: The model, as the user named it.
    """

    name: str
    model: str
    tokenizer: str

    @cached_property
    def model_hash(self) -> str:
        """Fingerprint of the model."""
        return fingerprint(self.model, "model")

    @cached_property
    def tokenizer_hash(self) -> str:
        """Fingerprint of the tokenizer."""
        return fingerprint(self.tokenizer, "tokenizer")

    def check(self, path: str, session: Session) -> None:
        """Raise BadFile if a session was held with another model or tokenizer."""
        if session.model_hash != self.model_hash:
            found = f"one of {session.model_name!r:.80}, or of another version of it"
            raise BadFile(
                path, "model", f"a session of {Path(self.name).name}", f"{found}; start dllama chat with that model"
            )
        if session.tokenizer_hash != self.tokenizer_hash:
            expected = f"a session with the tokenizer {Path(self.tokenizer).name}"
            raise BadFile(path, "tokenizer", expected, "one with another; start dllama chat with that tokenizer")


@dataclass
class Talk:
    """What a saved conversation holds: all of a chat but the model.

    Attributes:
        num_answers: Answers given so far, also those that were taken back.
    """

    conversation: Conversation
    settings: Settings
    files: ModelFiles
    num_answers: int = 0

    def apply_settings(self) -> None:
        """Tell the template what it must know of the settings."""
        self.conversation.variables = {"enable_thinking": False} if self.settings["think"] == "off" else {}

    def summary(self) -> str:
        """Say how long it is."""
        num_messages, num_tokens = len(self.conversation.turns), len(self.conversation.token_ids)
        return f"({num_messages} messages, {num_tokens} tokens)"

    def save(self, path: str) -> None:
        """Write a session, or with a name ending in ``.csv`` its token ids.

        Raises:
            UsageError: ``path`` holds something else already, or cannot be written.
            DllamaError: The disk is full or fails.
        """
        _check_replaceable(path)
        if is_csv(path):
            write_token_ids(path, self.conversation.token_ids)
            return
        session = Session(
            model_name=Path(self.files.name).name,
            model_hash=self.files.model_hash,
            tokenizer_hash=self.files.tokenizer_hash,
            template=self.conversation.template.name,
            started=self.conversation.started,
            settings=self.settings.plain(),
            messages=[SessionMessage(message.role, message.content) for message in self.conversation.messages],
            token_ids=list(self.conversation.token_ids),
            marks=_pieces(self.conversation.marks),
            has_base=self.conversation.base is not None,
            num_answers=self.num_answers,
        )
        write_session(path, session)

    def load(self, path: str) -> None:
        """Put what a file holds in place of this; nothing changes if it cannot be used.

        Raises:
            UsageError: There is no such file, or a setting that there is not.
            BadFile: It is no session, or one of another model.
        """
        if is_csv(path):
            token_ids = read_token_ids(path)
            self._check_ids(path, token_ids)
            self.conversation.start_from(token_ids)
            self.num_answers = 0
            return
        session = read_session(path)
        self.files.check(path, session)
        self._check_ids(path, session.token_ids)
        template = self.conversation.template.name
        if session.template != template:
            found = f"{session.template!r:.40}; start dllama chat with --chat-template"
            raise BadFile(path, "template", repr(template), found)
        try:
            self.settings.update(session.settings)
        except UsageError as error:
            raise BadFile(path, "settings", "those that dllama knows", str(error)) from None
        self._take(session)

    def _take(self, session: Session) -> None:
        talk = self.conversation
        talk.messages = [Message(message.role, message.content) for message in session.messages]
        talk.marks = _marks(session)
        talk.base = talk.marks[0] if session.has_base else None
        talk.started = session.started
        self.num_answers = session.num_answers
        self.apply_settings()

    def _check_ids(self, path: str, token_ids: list[int]) -> None:
        limit = self.conversation.tokenizer.vocab_size
        wrong = next((token for token in token_ids if token >= limit), None)
        if wrong is not None:
            raise BadFile(path, "token ids", f"ids below {limit}, the tokenizer's size", str(wrong))


def is_csv(path: str) -> bool:
    """Whether a name asks for token ids alone."""
    return path.lower().endswith(".csv")


def _check_replaceable(path: str) -> None:
    """Raise UsageError if there is a file that is no saved conversation."""
    if not Path(path).exists():
        return
    try:
        _ = read_token_ids(path) if is_csv(path) else read_session(path)
    except DllamaError:
        raise UsageError(f"{path}: there is a file that is no saved conversation; choose another name") from None


def _pieces(marks: list[Mark]) -> list[SessionMark]:
    """Give what each mark adds to the one before it."""
    before = [Mark("", ()), *marks]
    return [
        SessionMark(mark.text[len(last.text) :], len(mark.token_ids) - len(last.token_ids))
        for last, mark in zip(before, marks, strict=False)
    ]


def _marks(session: Session) -> list[Mark]:
    marks: list[Mark] = []
    text, count = "", 0
    for piece in session.marks:
        text, count = text + piece.text, count + piece.num_tokens
        marks.append(Mark(text, tuple(session.token_ids[:count])))
    return marks
