"""The commands' modules and parsers, and where the values of their flags come from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from dllama.cli import COMMANDS, SUBCOMMANDS
from dllama.cli.parser import Parser
from dllama.cli.settings import Setting, fill, from_environment, variable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from dllama.cli.config_file import ConfigFile


class Module(Protocol):
    """What the module of a command has."""

    EXAMPLE: str

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags of this command."""

    def run(self, args: argparse.Namespace) -> None:
        """Run the command."""


def parse(name: str, arguments: list[str]) -> tuple[Module, argparse.Namespace]:
    """Read the command line of the command ``name`` (``"bench"``, ``"models list"``), and what is set elsewhere.

    Raises:
        UsageError: A flag, or a variable of the environment, that cannot be used as given.
        BadFile: A configuration file that cannot be used.
        SystemExit: Help was asked for and printed.
    """
    module = _module(name)
    return module, _parser(name, module).parse(arguments, lambda parser, given: _fill(name, parser, given))


def parser_of(name: str) -> Parser:
    """Make the parser of one command."""
    return _parser(name, _module(name))


def names() -> Iterator[str]:
    """List all commands that have flags, ``"models list"`` and not ``"models"``."""
    for name in COMMANDS:
        yield from (f"{name} {sub}" for sub in SUBCOMMANDS[name]) if name in SUBCOMMANDS else (name,)


def summary(name: str) -> str:
    """Say what a command does."""
    command, _, sub = name.partition(" ")
    return SUBCOMMANDS[command][sub] if sub else COMMANDS[command]


def _module(name: str) -> Module:
    module: Module = importlib.import_module(f"dllama.cli.{name.replace(' ', '_')}")
    return module


def _parser(name: str, module: Module) -> Parser:
    parser = Parser(prog=f"dllama {name}", description=summary(name))
    module.add_flags(parser)
    parser.epilog = "\n\n".join(filter(None, [module.EXAMPLE, _twins_line(parser)]))
    return parser


def _twins_line(parser: Parser) -> str:
    flag = next(iter(parser.settable), None)
    if flag is None:
        return ""
    return (
        f"Each flag can be set in the environment, --{flag} as {variable(flag)}, or in the file\n"
        f'~/.config/dllama/config.toml, as "{flag}"; see docs/commands.md.'
    )


def _fill(name: str, parser: Parser, given: set[str]) -> None:
    """Give flags the values that are set elsewhere than on the command line."""
    if not parser.settable:
        return
    from dllama.cli.config_file import load

    file, command = load(), name.partition(" ")[0]
    _check(file, name, parser)

    def from_file(flag: str) -> Setting | None:
        return file.find(command, flag)

    fill(parser, given, [from_environment, from_file])


def _check(file: ConfigFile, name: str, parser: Parser) -> None:
    """Check the file's keys; other commands are loaded only if it has some that this one does not know."""
    command = name.partition(" ")[0]
    if {*file.tables} <= {command} and {*file.shared, *file.tables.get(command, {})} <= {*parser.settable}:
        return
    flags: dict[str, set[str]] = {}
    for each in names():
        known = parser if each == name else parser_of(each)
        flags.setdefault(each.partition(" ")[0], set()).update(known.settable)
    file.check(flags)
