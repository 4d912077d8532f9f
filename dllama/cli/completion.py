"""``dllama completion SHELL``: a script that completes commands, flags and values, made from the commands' parsers.

The script asks nobody when it completes: commands, flags and choices are written in it, and the names of models are
those of the folders that are there. What a value is follows from its flag: its choices, or those that its metavar names
(``0|1``); files if ``FILE`` or ``PATH`` is in its metavar.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dllama.cli.common import say

EXAMPLE = """bash: put this in ~/.bashrc:                    eval "$(dllama completion bash)"
zsh:  put this in ~/.zshrc, behind compinit:     eval "$(dllama completion zsh)"
fish: dllama completion fish > ~/.config/fish/completions/dllama.fish"""
SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class Value:
    """What a flag or a command takes: one of ``words``, a file, a model, or what nobody can guess."""

    words: tuple[str, ...] = ()
    is_file: bool = False
    is_model: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag under all its names; ``value`` None: a switch."""

    names: tuple[str, ...]
    help: str
    value: Value | None


@dataclass(frozen=True, slots=True)
class Completed:
    """A command as completion sees it; ``argument`` is what stands beside its flags."""

    name: str
    summary: str
    flags: tuple[Flag, ...]
    argument: Value | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def all_commands() -> list[Completed]:
    """Describe all commands, ``"models list"`` among them."""
    from dllama.cli.commands import names, parser_of, summary

    return [_completed(name, summary(name), parser_of(name)._actions) for name in names()]


def _completed(name: str, summary: str, actions: list[argparse.Action]) -> Completed:
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    flags = tuple(
        Flag(tuple(action.option_strings), action.help or "", None if action.nargs == 0 else _value(action))
        for action in shown
        if action.option_strings
    )
    arguments = [_value(action) for action in shown if not action.option_strings]
    return Completed(name, summary, flags, arguments[0] if arguments else None)


def _value(action: argparse.Action) -> Value:
    metavar = str(action.metavar)
    words = action.choices or (metavar.split("|") if "|" in metavar and metavar == metavar.lower() else ())
    is_path = "FILE" in metavar or "PATH" in metavar
    return Value(tuple(map(str, words)), is_path, "NAME" in metavar and action.dest in ("model", "name"))


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama.cli import completion_scripts

    say(completion_scripts.WRITERS[args.shell](all_commands()))
