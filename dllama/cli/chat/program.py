"""From the flags to a chat that runs: files, template, conversation, engine, screen."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.cli.chat.commands import COMMANDS, read_text
from dllama.cli.chat.keys import Hangup, hangups
from dllama.cli.chat.line_reader import choose_reader
from dllama.cli.chat.repl import Chat
from dllama.cli.chat.screen import choose_screen
from dllama.cli.chat.sessions import ModelFiles, Talk
from dllama.cli.chat.settings import Settings
from dllama.cli.common import load_engine, prepare, say, to_json
from dllama.errors import DllamaError, UsageError
from dllama.hub.folders import make_state_dir
from dllama.text.chat_template import choose_template
from dllama.text.conversation import Conversation

if TYPE_CHECKING:
    from dllama.text.chat_template import ChatTemplate
    from dllama.text.tokenizer import Tokenizer

STEP_S = 0.5  # so long a key that stops an answer waits at most


def run_chat(args: argparse.Namespace) -> None:
    """Hold the conversation that the flags ask for."""
    name = args.model
    args.seed = int(time.time()) if args.seed is None else args.seed
    system = _system(args)
    screen = choose_screen(args.json)
    prepared = prepare(args, lambda _line: None)
    with choose_template(prepared.tokenizer, args.chat_template) as template:
        talk = _talk(args, ModelFiles(name, args.model, args.tokenizer), template, prepared.tokenizer)
        if system:
            talk.conversation.set_system(system)
        with load_engine(args, prepared, screen.progress, STEP_S) as engine:
            _converse(Chat(engine, talk, screen, context_shift=args.context_shift), args)


def _system(args: argparse.Namespace) -> str:
    """Get the system message of the flags, or an empty text.

    Raises:
        UsageError: Its file cannot be read, or a saved conversation is loaded, which has its own.
    """
    if args.load and (args.system is not None or args.system_file is not None):
        raise UsageError("--system: a saved conversation has its own; leave --system or --load away")
    if args.system_file is None:
        return args.system or ""
    return read_text(Path(args.system_file))


def _talk(args: argparse.Namespace, files: ModelFiles, template: ChatTemplate, tokenizer: Tokenizer) -> Talk:
    """Begin or load the conversation; all that can go wrong with it goes wrong before weights are loaded."""
    talk = Talk(Conversation(template, tokenizer), Settings(args), files)
    if args.load:
        talk.load(args.load)
    talk.apply_settings()
    return talk


def _converse(chat: Chat, args: argparse.Namespace) -> None:
    screen = chat.screen
    if args.json:
        chat.report = lambda answer: say(to_json(answer.plain()))
    if screen.is_interactive:
        screen.progress("")
        name, context = chat.conversation.template.name, chat.engine.max_seq_len
        template = "the model's own chat template" if name == "stored" else f"chat template {name}"
        screen.line(f"{chat.talk.files.name}: {context} tokens of context, {template}")
        screen.line("/help lists commands, Ctrl-C or Space stops an answer, Ctrl-D ends the chat.\n")
        if args.load:
            screen.note(chat.talk.summary())
    helps = {name: what for name, (_, what, _) in COMMANDS.items()}
    with _rescued(chat), hangups():
        chat.run(choose_reader(helps, is_interactive=screen.is_interactive))


@contextmanager
def _rescued(chat: Chat) -> Iterator[None]:
    """Save the conversation if the chat ends against the user's will, and say where it is."""
    try:
        yield
    except (DllamaError, OSError, Hangup) as error:  # OSError: the terminal is gone
        if not chat.screen.is_interactive or not chat.conversation.turns:
            raise Interrupted(str(error), error) from error
        path = make_state_dir() / "last_chat.json"
        chat.talk.save(str(path))
        command = shlex.join(["dllama", "chat", "--model", chat.talk.files.name, "--load", str(path)])
        raise Interrupted(f"{error}; go on with: {command}", error) from error


class Interrupted(DllamaError):
    """A chat that ended against the user's will; its conversation is saved if there was one on a terminal."""

    def __init__(self, text: str, reason: DllamaError | OSError | Hangup) -> None:
        super().__init__(text)
        self.exit_code = DllamaError.exit_code if isinstance(reason, OSError) else reason.exit_code
