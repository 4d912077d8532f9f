"""Where messages come from: a terminal with line editing, or lines of a pipe.

A message is one line. A line that ends in a backslash goes on in the next one; a message that begins with three double
quotes goes on until three more.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from dllama.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_QUOTES = '"""'


class LineReader(Protocol):
    """Gives messages."""

    def next(self, typed: str = "") -> str | None:
        """Wait for the next message; None at the end of the input.

        Args:
            typed: What the user has typed already.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """


def is_unfinished(text: str) -> bool:
    """Whether a message goes on in the next line."""
    if text.lstrip().startswith(_QUOTES):
        return text.count(_QUOTES) < 2
    return text.endswith("\\")


def message_of(text: str) -> str:
    """Give the message without the signs that hold its lines together."""
    stripped = text.strip()
    if stripped.startswith(_QUOTES):
        return stripped.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")


class PipeReader:
    """Messages from lines of standard input."""

    def __init__(self) -> None:
        self._lines: Iterator[str] = iter(_stdin_lines())

    def next(self, typed: str = "") -> str | None:
        """Give the next message; blank lines between messages are left out."""
        del typed
        text = ""
        for line in self._lines:
            text += line.removesuffix("\n").removesuffix("\r")
            if is_unfinished(text):
                text += "\n"
            elif text.strip():
                return message_of(text)
        return message_of(text.rstrip("\n")) if text.strip() else None


def _stdin_lines() -> Iterable[str]:
    if sys.stdin is None:
        raise UsageError("standard input is closed; a chat reads its messages from there")
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: not UTF-8 at byte {error.start} of a block") from None


class PlainTerminalReader:
    """Messages typed on a terminal that cannot move its cursor."""

    def next(self, typed: str = "") -> str | None:
        """Ask for the next message."""
        del typed
        text = ""
        while True:
            try:
                text += input(". " if text else "> ")
            except EOFError:
                return None
            if not is_unfinished(text):
                return message_of(text)
            text += "\n"


class EditingReader:
    """Messages typed on a terminal: editing, history, completion of commands, pasted lines kept together.

    Args:
        commands: What Tab completes after a slash, with help.
    """

    def __init__(self, commands: dict[str, str]) -> None:
        self._session = _session(commands)

    def next(self, typed: str = "") -> str | None:
        """Ask for the next message."""
        from prompt_toolkit.formatted_text import FormattedText

        try:
            text = self._session.prompt(FormattedText([("bold", "> ")]), default=typed)
        except EOFError:
            return None
        return message_of(text)


def _session(commands: dict[str, str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.output.vt100 import Vt100_Output

    def size() -> Size:
        columns, rows = shutil.get_terminal_size()
        return Size(rows=rows, columns=columns)

    completer = WordCompleter(list(commands), meta_dict=commands, sentence=True)
    # Asking a terminal where its cursor is stalls on lines that do not answer.
    output = Vt100_Output(sys.stdout, size, term=os.environ.get("TERM"), enable_cpr=False)
    return PromptSession(
        multiline=True,
        prompt_continuation=". ",
        key_bindings=_bindings(),
        completer=completer,
        complete_while_typing=False,
        history=_history(),
        output=output,
        reserve_space_for_menu=4,
    )


def _bindings() -> Any:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        if is_unfinished(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> Any:
    """Keep what was typed in a file that only its owner reads; in memory where there can be none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from dllama.hub.folders import state_dir

    path = state_dir() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def choose_reader(commands: dict[str, str], *, is_interactive: bool) -> LineReader:
    """Give the reader for what standard input is."""
    if not is_interactive:
        return PipeReader()
    return PlainTerminalReader() if os.environ.get("TERM", "dumb") == "dumb" else EditingReader(commands)
