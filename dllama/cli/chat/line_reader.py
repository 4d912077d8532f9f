"""Where messages come from: a terminal with line editing, or lines of a pipe.

A message is one line. A backslash at the end of a line, which is not part of the message, lets it go on in the next
one; a message that begins with three double quotes goes on until three more.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from dllama.cli.chat.keys import Hangup, hangups
from dllama.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_QUOTES = '"""'
_BYTE_ORDER_MARK = "\ufeff"  # which some programs put before what they pipe


class LineReader(Protocol):
    """Gives messages."""

    def next(self, typed: str = "") -> str | None:
        """Wait for the next message; None at the end of the input.

        Args:
            typed: What the user has typed already.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """


def is_open(text: str) -> bool:
    """Whether a message has opening quotes and no closing ones."""
    return text.lstrip().startswith(_QUOTES) and text.count(_QUOTES) < 2


def unquoted(text: str) -> str:
    """Give the message without the quotes around it."""
    stripped = text.strip()
    if not stripped.startswith(_QUOTES):
        return text
    return stripped.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")


class _Lines:
    """Puts lines together to messages."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, line: str) -> bool:
        """Take the next line; tell whether the message is whole."""
        self.text += line
        if is_open(self.text):
            self.text += "\n"
            return False
        if line.endswith("\\"):
            self.text = f"{self.text[:-1]}\n"
            return False
        return True

    def take(self) -> str:
        """Give the message, and begin the next one."""
        text, self.text = self.text, ""
        return unquoted(text)


class PipeReader:
    """Messages from lines of standard input."""

    def __init__(self) -> None:
        self._lines: Iterator[str] = iter(_stdin_lines())

    def next(self, typed: str = "") -> str | None:
        """Give the next message; blank lines between messages are left out."""
        del typed
        lines = _Lines()
        for line in self._lines:
            if lines.add(line.removesuffix("\n").removesuffix("\r").removeprefix(_BYTE_ORDER_MARK)):
                if lines.text.strip():
                    return lines.take()
                lines.take()
        return lines.take().rstrip("\n") if lines.text.strip() else None


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
        lines = _Lines()
        while True:
            try:
                line = input(". " if lines.text else "> ")
            except EOFError:
                return None
            if lines.add(line):
                return lines.take()


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
            with hangups(self._end):
                text = self._session.prompt(FormattedText([("bold", "> ")]), default=typed)
        except EOFError:
            return None
        return unquoted(text)

    def _end(self, hangup: Hangup) -> None:
        """Let the editor end with a hangup; raised inside its event loop, it would be lost there."""
        app = self._session.app
        if not app.is_running or app.loop is None:
            raise hangup

        def end() -> None:
            with suppress(Exception):  # it has ended meanwhile
                app.exit(exception=hangup)

        app.loop.call_soon_threadsafe(end)


def _session(commands: dict[str, str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.output import ColorDepth
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
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        reserve_space_for_menu=4,
    )


def _bindings() -> Any:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.keys import Keys

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add(Keys.Vt100MouseEvent)  # colored text that is typed or pasted reads like one
    def _(event: KeyPressEvent) -> None:
        del event

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> Any:
    """Keep what was typed in a file that only its owner reads; in memory where there can be none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from dllama.hub.folders import make_state_dir

    try:
        path = make_state_dir() / "chat_history"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def choose_reader(commands: dict[str, str], *, is_interactive: bool) -> LineReader:
    """Give the reader for what standard input is."""
    if not is_interactive:
        return PipeReader()
    return PlainTerminalReader() if os.environ.get("TERM", "dumb") == "dumb" else EditingReader(commands)
