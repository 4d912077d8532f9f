"""From the flags to a chat that runs: files, template, conversation, engine, screen."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
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
from dllama.cli.chat.settings import KEYS, Settings
from dllama.cli.common import load_engine, prepare, say, to_json
from dllama.errors import DllamaError, UsageError
from dllama.hub.folders import make_state_dir
from dllama.text.chat_template import STORED, choose_template
from dllama.text.conversation import Conversation

if TYPE_CHECKING:
    from dllama.text.chat_template import ChatTemplate
    from dllama.text.tokenizer import Tokenizer

# Flags that a saved conversation does not hold.
_TOLD_AGAIN = (
    *("tokenizer", "chat_template", "max_seq_len", "nthreads", "weight_type", "kv_type", "draft_max"),
    *("shares", "key_file", "buffer_float_type"),
)
STEP_S = 0.5  # so long a key that stops an answer waits at most


def run_chat(args: argparse.Namespace) -> None:
    """Hold the conversation that the flags ask for."""
    name = args.model
    args.seed = int(time.time()) if args.seed is None else args.seed
    system = _system(args)
    screen = choose_screen(args.json)
    with (
        prepare(args, lambda _line: None) as prepared,
        choose_template(prepared.tokenizer, args.chat_template) as template,
    ):
        talk = _talk(args, ModelFiles(name, args.model, args.tokenizer), template, prepared.tokenizer)
        if system:
            talk.conversation.set_system(system)
        with load_engine(args, prepared, screen.progress, STEP_S) as engine:
            _converse(Chat(engine, talk, screen, context_shift=args.context_shift), args, prepared.sampling)


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
        talk.settings.take(Settings(args), [key for key in KEYS if key.replace("-", "_") in args.given])
    talk.settings.check(template, tokenizer.vocab_size)
    talk.apply_settings()
    return talk


def _converse(chat: Chat, args: argparse.Namespace, sampling: str) -> None:
    screen = chat.screen
    if args.json:
        chat.report = lambda answer: say(to_json(answer.plain()))
    if screen.is_interactive:
        screen.progress("")
        name, context = chat.conversation.template.name, chat.engine.max_seq_len
        template = "the model's own chat template" if name == STORED else f"chat template {name}"
        screen.line(f"{chat.talk.files.name}: {context} tokens of context, {template}")
        if sampling and not args.load:  # which has settings of its own
            screen.line(f"The model's makers choose {sampling}.")
        screen.line("/help lists commands, Ctrl-C or Space stops an answer, Ctrl-D ends the chat.\n")
        if args.load:
            screen.note(f"({chat.talk.summary()})")
    helps = {name: what for name, (_, what, _) in COMMANDS.items()}
    with _rescued(chat, args), hangups():
        chat.run(choose_reader(helps, is_interactive=screen.is_interactive))


@contextmanager
def _rescued(chat: Chat, args: argparse.Namespace) -> Iterator[None]:
    """Save a conversation that ends against the user's will, whatever the reason, and say where it is."""
    try:
        yield
    except (Exception, Hangup) as error:
        if chat.screen.is_interactive and chat.conversation.turns:
            raise Interrupted(f"{_reason(error)}; {_rescue(chat, args)}", error) from error
        if isinstance(error, Hangup):
            raise Interrupted(str(error), error) from error
        raise


def _reason(error: Exception | Hangup) -> str:
    if isinstance(error, DllamaError | Hangup):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"internal error: {type(error).__name__}: {error}"


def _rescue(chat: Chat, args: argparse.Namespace) -> str:
    """Save the conversation where only its owner reads it; say how to go on, or why it could not be saved."""
    try:
        path = make_state_dir() / f"chat-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
        chat.talk.save(str(path), replace=True)
        path.chmod(0o600)
    except (DllamaError, OSError) as error:
        return f"the conversation could not be saved: {_reason(error)}"
    flags = [f"--{key.replace('_', '-')}={_as_typed(args, key)}" for key in _TOLD_AGAIN if key in args.given]
    switches = ["--context-shift"] if args.context_shift else []
    workers = ["--workers", *args.workers] if "workers" in args.given else []
    name = sys.argv[0] if Path(sys.argv[0]).name == "dllama" else "dllama"
    command = [name, "chat", "--model", chat.talk.files.name, *flags, *switches, "--load", str(path), *workers]
    return f"go on with: {shlex.join(command)}"


def _as_typed(args: argparse.Namespace, key: str) -> str:
    """Write the value of a flag as it was given, or as well: shares as a comma list."""
    value = getattr(args, key)
    return ",".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value)


class Interrupted(DllamaError):
    """A chat that ended against the user's will."""

    def __init__(self, text: str, reason: Exception | Hangup) -> None:
        super().__init__(text)
        self.exit_code = reason.exit_code if isinstance(reason, DllamaError | Hangup) else DllamaError.exit_code
