"""The command ``dllama``: picks the command, and turns every failure into one line and an exit code.

One module per command, imported only when it is the one asked for. A command module has ``EXAMPLE``,
``add_flags(parser)`` and ``run(args)``; it prints results on stdout and raises ``DllamaError`` for what goes wrong.
"""

from __future__ import annotations

# Nothing but these: all other imports are inside main's try, where an early Ctrl-C ends in one line too.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

COMMANDS = {
    "inference": "generate text after a prompt, with the time of every step",
    "perplexity": "measure how well a model predicts a text",
    "bench": "measure prompt processing and generation speed, as llama-bench does",
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell reports a process ended by SIGINT, SIGPIPE
DOCS = "docs/commands.md"


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
        return _finish(_run(sys.argv[1:] if arguments is None else arguments))
    except BaseException as error:
        if os.environ.get("DLLAMA_DEBUG") == "1":
            raise
        return _report(error)


def _run(arguments: list[str]) -> int:
    from dllama.errors import UsageError

    if not arguments:
        print(_help())
        return UsageError.exit_code
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        print(_help())
        return 0
    if command in ("--version", "-V"):
        from dllama.version import describe

        print(describe())
        return 0
    return _run_command(command, rest)


def _run_command(command: str, arguments: list[str]) -> int:
    import importlib

    from dllama.cli.parser import Parser, suggestion
    from dllama.errors import UsageError

    if command not in COMMANDS:
        kind = "flag" if command.startswith("-") else "command"
        hint = suggestion(command, [*COMMANDS, "--help", "--version"])
        raise UsageError(f"unknown {kind} '{command}'{hint}; commands: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"dllama.cli.{command}")
    parser = Parser(prog=f"dllama {command}", description=COMMANDS[command], epilog=module.EXAMPLE)
    module.add_flags(parser)
    try:
        args = parser.parse(arguments)
    except SystemExit:  # argparse's, after --help
        return 0
    module.run(args)
    return 0


def _help() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dllama COMMAND [flags]",
            "",
            "Large language models on the CPUs of one or several ordinary machines.",
            "",
            *lines,
            "",
            "dllama COMMAND --help lists the flags of a command; dllama --version says what this build is.",
        ]
    )


def _finish(status: int) -> int:
    """Write out what is buffered, so that a full disk or a closed pipe is met here and not at the interpreter's end."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


def _report(error: BaseException) -> int:
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
