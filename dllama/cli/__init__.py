"""The command ``dllama``: picks the command, and turns every failure into one line and an exit code.

One module per command, imported only when it is the one asked for; ``dllama models list`` is ``models_list.py``. A
command module has ``EXAMPLE``, ``add_flags(parser)`` and ``run(args)``; it prints results on stdout and raises
``DllamaError`` for what goes wrong.
"""

from __future__ import annotations

# Nothing but these: all other imports are inside main's try, where an early Ctrl-C ends in one line too.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

COMMANDS = {
    "chat": "talk to a model",
    "inference": "generate text after a prompt, with the time of every step",
    "worker": "lend this machine's memory and cores to a root on another machine",
    "perplexity": "measure how well a model predicts a text",
    "bench": "measure prompt processing and generation speed, as llama-bench does",
    "plan": "show who owns what of a model on several nodes, and what it costs",
    "models": "list, show and remove the models on this disk",
    "export": "write a model in the format of another program",
    "doctor": "check this machine, and say what would make it faster",
    "completion": "print a script that completes commands in bash, zsh or fish",
}
SUBCOMMANDS = {
    "models": {
        "list": "list the models on this disk",
        "show": "show a model's files, sizes and need of memory",
        "remove": "delete a model's files",
    },
    "export": {
        "gguf": "write a model and its tokenizer as one GGUF file, for llama.cpp",
    },
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell reports a process ended by SIGINT, SIGPIPE
_HELP = ("-h", "--help", "help")


def main(arguments: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: What follows the program's name; None: take ``sys.argv``.

    Returns:
        The exit code: 0, or that of the error, which has been reported in one line on stderr.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows "?", and the program goes on
                stream.reconfigure(errors="replace")
        return finish(_run(sys.argv[1:] if arguments is None else arguments))
    except BaseException as error:
        if os.environ.get("DLLAMA_DEBUG") == "1":
            raise
        return report(error)


def _run(arguments: list[str]) -> int:
    from dllama.errors import UsageError

    if not arguments:
        print(_help("COMMAND", COMMANDS))
        return UsageError.exit_code
    command, *rest = arguments
    if command in _HELP:
        print(_help("COMMAND", COMMANDS))
        return 0
    if command in ("--version", "-V"):
        _print_version(rest)
        return 0
    name = _known(command, COMMANDS, "command")
    if name not in SUBCOMMANDS:
        return _run_command(name, rest)
    if not rest or rest[0] in _HELP:
        print(_help(f"{name} COMMAND", SUBCOMMANDS[name]))
        return 0 if rest else UsageError.exit_code
    return _run_command(f"{name} {_known(rest[0], SUBCOMMANDS[name], f'command of {name}')}", rest[1:])


def _known(name: str, known: dict[str, str], what: str) -> str:
    """Give ``name`` back if it is one of those known; raises UsageError else."""
    from dllama.cli.parser import suggestion
    from dllama.errors import UsageError

    if name not in known:
        kind = "flag" if name.startswith("-") else what
        hint = suggestion(name, [*known, "--help", "--version"])
        raise UsageError(f"unknown {kind} '{name}'{hint}; commands: {', '.join(known)}")
    return name


def _run_command(name: str, arguments: list[str]) -> int:
    from dllama.cli.commands import parse

    try:
        module, args = parse(name, arguments)
    except SystemExit:  # argparse's, after --help
        return 0
    module.run(args)
    return 0


def _print_version(flags: list[str]) -> None:
    from dllama import version
    from dllama.errors import UsageError

    if flags == ["--json"]:
        import json

        print(json.dumps(version.facts()))
        return
    if flags:
        raise UsageError(f"--version: expected --json or nothing behind it, found '{flags[0]}'")
    print(version.describe())


def _help(usage: str, commands: dict[str, str]) -> str:
    command = usage.partition(" ")[0]
    about = COMMANDS.get(command, "Large language models on the CPUs of one or several ordinary machines.")
    lines = [f"  {name:<12}{text}" for name, text in commands.items()]
    return "\n".join(
        [
            f"usage: dllama {usage} [flags]",
            "",
            about,
            "",
            *lines,
            "",
            f"dllama {usage} --help lists the flags of a command. A flag --NAME can be",
            "set as DLLAMA_NAME in the environment, too, or in ~/.config/dllama/config.toml.",
            "dllama --version [--json] says what this build is.",
        ]
    )


def finish(status: int) -> int:
    """Write out what is buffered, so that a full disk or a closed pipe is met here and not at the interpreter's end."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


def report(error: BaseException) -> int:
    """Say what went wrong in one line, and give its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return _complain("🛑 Interrupted", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        _drop(sys.stdout)
        return BROKEN_PIPE
    from dllama.errors import DllamaError

    if isinstance(error, DllamaError):
        return _complain(f"🚨 {error}", error.exit_code)
    if isinstance(error, MemoryError):
        why = str(error).replace("std::bad_alloc", "")
        return _complain(f"🚨 {why or 'the system refused memory; try a smaller --max-seq-len or a smaller model'}", 5)
    if isinstance(error, OSError):
        _drop(sys.stdout)
        return _complain(f"🚨 {error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    text = " ".join(str(error).split())
    return _complain(f"🚨 internal error: {type(error).__name__}: {text} (DLLAMA_DEBUG=1 shows where)", 1)


def _complain(line: str, status: int) -> int:
    """Print one line on stderr, whatever names of files or flags brought into it; if it cannot be, keep the code."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line)
    try:
        if sys.stderr is not None:
            print(shown, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)
    return status


def _drop(stream: TextIO | None) -> None:
    """Let the interpreter's last flush go nowhere: the reader of this stream is gone or cannot take more."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
