"""What can be told to a chat with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.cli.chat.repl import Ended
from dllama.cli.chat.settings import KEYS
from dllama.cli.chat.stats import stats_lines
from dllama.cli.parser import suggestion
from dllama.errors import UsageError

if TYPE_CHECKING:
    from dllama.cli.chat.repl import Chat

_COMMAND = re.compile(r"/([A-Za-z?][\w?-]*)(?:\s+(.*))?", re.DOTALL)
_LARGEST_TEXT = 1 << 24  # bytes of a file to read


def is_command(text: str) -> bool:
    """Whether a message is a command: a slash and one word come first. A blank before them makes it a message."""
    return bool(_COMMAND.fullmatch(text))


def run_command(chat: Chat, text: str) -> None:
    """Do what a command says.

    Raises:
        Ended: It ends the chat.
        UsageError: An unknown command, or one that cannot be done.
        BadFile: A session that is none.
    """
    match = _COMMAND.fullmatch(text)
    assert match is not None
    name, rest = match[1].lower(), (match[2] or "").strip()
    command = COMMANDS.get(f"/{_ALIASES.get(name, name)}")
    if command is None:
        raise UsageError(f"unknown command '/{name}'{suggestion(f'/{name}', COMMANDS)}; /help lists the commands")
    command[2](chat, rest)


def _help(chat: Chat, _rest: str) -> None:
    for name, (argument, what, _) in COMMANDS.items():
        chat.screen.line(f"{name} {argument}".ljust(20) + what)
    if chat.screen.is_interactive:
        chat.screen.line("Ctrl-C or Space stops an answer, Alt-Enter or \\ at its end begins another line,")
        chat.screen.line('""" before and after a message lets it have many lines; Ctrl-D ends the chat.')


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.conversation.set_system("" if rest == '""' else rest)
    system = chat.conversation.system
    chat.screen.line(f"system message: {system}" if system else "no system message")


def _clear(chat: Chat, _rest: str) -> None:
    chat.conversation.clear()
    chat.attached = []
    chat.screen.note("(a new conversation)")


def _regenerate(chat: Chat, _rest: str) -> None:
    chat.regenerate()


def _set(chat: Chat, rest: str) -> None:
    key, value = rest.split(maxsplit=1)[:1], rest.split(maxsplit=1)[1:]
    settings = chat.talk.settings
    if value:
        changed = deepcopy(settings)
        changed.set(key[0], value[0])
        changed.check(chat.conversation.template, chat.conversation.tokenizer.vocab_size)
        settings.take(changed, key)
        chat.talk.apply_settings()
    for name in [settings.check_key(key[0])] if key else KEYS:
        chat.screen.line(f"{name:<18} {settings.text(name) or '(none)'}")


def _stats(chat: Chat, _rest: str) -> None:
    chat.screen.progress("measuring memory …")
    for line in stats_lines(chat):
        chat.screen.line(line)


def _save(chat: Chat, rest: str) -> None:
    path = _file("/save", rest)
    if not (chat.conversation.turns or chat.conversation.token_ids):
        raise UsageError("/save: nothing was said yet")
    chat.talk.save(path)
    chat.screen.note(f"(saved to {path}: {chat.talk.summary()})")


def _load(chat: Chat, rest: str) -> None:
    chat.talk.load(_file("/load", rest))
    chat.attached = []
    chat.screen.note(f"({chat.talk.summary()})")


def _read(chat: Chat, rest: str) -> None:
    path = Path(_file("/read", rest))
    text = read_text(path)
    chat.attached.append(text)
    num_tokens = len(chat.conversation.tokenizer.encode(text, add_bos=False))
    chat.screen.note(f"({path.name}, {num_tokens} tokens, goes with your next message)")


def _exit(_chat: Chat, _rest: str) -> None:
    raise Ended


def _file(command: str, rest: str) -> str:
    if not rest:
        raise UsageError(f"{command}: expected a file name, e.g. {command} talk.json")
    if len(rest) > 2 and rest[0] == rest[-1] and rest[0] in "\"'":
        rest = rest[1:-1]
    try:
        return str(Path(rest).expanduser())
    except RuntimeError:  # ~name of nobody, or no home
        raise UsageError(f"{command}: {rest}: there is no such home folder") from None


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UsageError: There is no such file, or it is not UTF-8 text.
        BadFile: It is something else than a file, or empty.
    """
    from dllama.formats.checked_file import CheckedFile

    with CheckedFile(path, "text") as file:
        if file.size > _LARGEST_TEXT:
            raise UsageError(f"{path}: expected a text of at most {_LARGEST_TEXT} bytes, found {file.size}")
        raw = file.read(0, file.size, "byte 0")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text at byte {error.start}") from None


# Argument, help, and what does it.
COMMANDS: dict[str, tuple[str, str, Callable[[Chat, str], None]]] = {
    "/help": ("", "this list", _help),
    "/system": ("[TEXT]", 'show or change the system message; "" removes it', _system),
    "/clear": ("", "begin a new conversation; the system message stays", _clear),
    "/regen": ("", "give another answer to the last message", _regenerate),
    "/set": ("[KEY [VALUE]]", "show or change settings, e.g. /set temperature 0.5", _set),
    "/stats": ("", "speed of the last answer, context used", _stats),
    "/save": ("FILE", "save the conversation; FILE.csv gets its token ids alone", _save),
    "/load": ("FILE", "go on with a saved conversation", _load),
    "/read": ("FILE", "put a text file before the next message", _read),
    "/exit": ("", "end the chat", _exit),
}
_ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "h": "help", "?": "help", "reset": "clear"}
