"""Saving a chat to a file and going on from one."""

from __future__ import annotations

import os
import stat
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from dllama.cli.chat.settings import Settings
from dllama.errors import BadFile, UsageError
from dllama.formats.fingerprint import model_fingerprint, tokenizer_fingerprint
from dllama.formats.session_file import (
    Session,
    SessionMark,
    SessionMessage,
    read_session,
    read_token_ids,
    write_session,
    write_token_ids,
)
from dllama.text.chat_template import STORED, Message
from dllama.text.conversation import Conversation


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
        return model_fingerprint(self.model)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Fingerprint of the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)

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
        own_paths: Files that were saved or loaded, links followed: only these may be replaced.
        is_distrusted: Whether token ids were loaded that do not stand for the messages, and so are made anew.
    """

    conversation: Conversation
    settings: Settings
    files: ModelFiles
    num_answers: int = 0
    own_paths: set[str] = field(default_factory=set)
    is_distrusted: bool = False

    def apply_settings(self) -> None:
        """Tell the template what it must know of the settings."""
        self.conversation.variables = {"enable_thinking": False} if self.settings["think"] == "off" else {}

    def summary(self) -> str:
        """Say how long it is, and whether token ids were loaded that do not say what the messages do."""
        num_messages, num_tokens = len(self.conversation.turns), len(self.conversation.token_ids)
        distrust = "; its token ids say something else, and the messages count" if self.is_distrusted else ""
        return f"{num_messages} messages, {num_tokens} tokens{distrust}"

    def save(self, path: str, replace: bool = False) -> None:
        """Write a session, or with a name ending in ``.csv`` its token ids; where ``path`` is a link, to its target.

        Args:
            path: The file.
            replace: Whether it may be one that this chat has neither saved nor loaded.

        Raises:
            UsageError: ``path`` holds something else already, or cannot be written.
            TemplateError: The template cannot write the conversation.
            DllamaError: The disk is full or fails.
        """
        target = _resolved(path)
        if not replace and target not in self.own_paths and _exists(target):
            raise UsageError(
                f"{path}: there is a file that this chat has neither saved nor loaded; choose another name"
            )
        if is_csv(path):
            write_token_ids(target, self.conversation.lasting_ids())
        else:
            write_session(target, self._session())
        self.own_paths.add(target)
        self.is_distrusted = False

    def _session(self) -> Session:
        pieces = self.conversation.pieces()
        return Session(
            model_name=Path(self.files.name).name,
            model_hash=self.files.model_hash,
            tokenizer_hash=self.files.tokenizer_hash,
            template=self.conversation.template.name,
            started=self.conversation.started,
            settings=self.settings.plain(),
            messages=[SessionMessage(message.role, message.content) for message in self.conversation.messages],
            token_ids=list(self.conversation.token_ids),
            marks=[SessionMark(text, len(token_ids)) for text, token_ids in pieces],
            has_base=self.conversation.base is not None,
            num_answers=self.num_answers,
        )

    def load(self, path: str) -> None:
        """Put what a file holds in place of this; nothing changes if it cannot be used.

        A setting that the file does not name stays as it is. A last message without an answer is kept, so that it can
        be answered yet.

        Raises:
            UsageError: There is no such file.
            BadFile: It is no session, or one of another model, or with settings that cannot be.
        """
        if is_csv(path):
            token_ids = read_token_ids(path)
            self._check_ids(path, token_ids)
            self.conversation.start_from(token_ids)
            self.num_answers, self.is_distrusted = 0, False
        else:
            session = read_session(path)
            self._check(path, session)
            self._take(session)
        self.own_paths.add(_resolved(path))

    def _check(self, path: str, session: Session) -> None:
        self.files.check(path, session)
        self._check_ids(path, session.token_ids)
        template = self.conversation.template
        if session.template != template.name:
            is_stored = session.template == STORED
            advice = "without --chat-template" if is_stored else f"with --chat-template {session.template:.40}"
            raise BadFile(
                path, "template", repr(template.name), f"{session.template!r:.40}; start dllama chat {advice}"
            )
        settings = deepcopy(self.settings)
        try:
            settings.update(session.settings)
            settings.check(template, self.conversation.tokenizer.vocab_size)
        except UsageError as error:
            raise BadFile(path, "settings", "those that dllama knows", str(error)) from None

    def _take(self, session: Session) -> None:
        self.settings.update(session.settings)
        ends = [0, *accumulate(mark.num_tokens for mark in session.marks)]
        pieces = [
            (mark.text, session.token_ids[begin:end])
            for mark, (begin, end) in zip(session.marks, pairwise(ends), strict=True)
        ]
        messages = [Message(message.role, message.content) for message in session.messages]
        self.conversation.restore(messages, pieces, session.has_base)
        self.is_distrusted = len(self.conversation.token_ids) < len(session.token_ids)
        self.conversation.started = session.started
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


def _resolved(path: str) -> str:
    """Follow links; what cannot be followed stays, and fails when it is opened."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path


def _exists(path: str) -> bool:
    """Whether there is a regular file.

    Raises:
        UsageError: Nobody can tell: the name is too long, or a folder may not be entered.
    """
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path:.200}: cannot be written: {reason}") from None
