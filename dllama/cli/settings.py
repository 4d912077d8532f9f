"""Flags that are not on the command line: their twins in the environment and in the configuration file.

``--max-seq-len`` is ``DLLAMA_MAX_SEQ_LEN`` in the environment and ``max-seq-len`` in the file. The command line wins
over the environment, that over the table of the command in the file, that over the file's top level. Knows argparse and
no command; a value goes through the type and the choices of its flag, and errors name where it came from.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllama.errors import DllamaError, UsageError

if TYPE_CHECKING:
    from dllama.cli.parser import Parser

SWITCH_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one flag, from elsewhere than the command line.

    Attributes:
        name: What users call it there.
        value: A text, or from the file whatever TOML knows.
        rank: Of where it comes from; the greater wins.
        error: Makes the error that says what was expected and found there.
        is_text: Whether it comes from where there are texts only.
    """

    name: str
    value: object
    rank: int
    error: Callable[[str, str], DllamaError]
    is_text: bool = False


Lookup = Callable[[str], Setting | None]  # by a flag's long name without dashes


def fill(parser: Parser, given: set[str], lookups: list[Lookup]) -> None:
    """Make defaults of all settings but those of flags that the command line gives, named by ``given``."""
    found: dict[argparse.Action, Setting] = {}
    for flag, action in parser.settable.items():
        setting = next(filter(None, (lookup(flag) for lookup in lookups)), None)
        if action.dest not in given and setting is not None:
            found[action] = setting
    values = {action: value_of(parser, action, setting) for action, setting in found.items()}
    values = {action: value for action, value in values.items() if value is not None}
    for group in parser.exclusive_groups:
        _choose(group, given, found, values)
    parser.filled |= {action.dest for action in values}
    for action in sorted(values, key=lambda action: found[action].rank):
        for same in parser.settable.values():
            if same.dest == action.dest:  # argparse takes the default of the first
                same.default, same.required = values[action], False


def from_environment(flag: str) -> Setting | None:
    """Look a flag up in the environment; an empty variable is none."""
    name = variable(flag)
    text = os.environ.get(name)

    def error(expected: str, found: str) -> DllamaError:
        return UsageError(f"{name}: expected {expected}, found {found}")

    return Setting(name, text, 2, error, is_text=True) if text else None


def variable(flag: str) -> str:
    """Name the environment variable of a flag."""
    return f"DLLAMA_{flag.upper().replace('-', '_')}"


def value_of(parser: Parser, action: argparse.Action, setting: Setting) -> Any:
    """Give what the command line would have given for the same value; None for a switch that is off."""
    if action.nargs == 0:
        if not _is_on(setting):
            return None
        calls: list[list[Any]] = [[]]
    else:
        calls = [[_convert(parser, action, setting, item) for item in items] for items in _items(action, setting)]
    holder = argparse.Namespace(**{action.dest: None})
    for values in calls:
        action(parser, holder, values[0] if values and action.nargs is None else values, action.option_strings[-1])
    return getattr(holder, action.dest)


def _is_on(setting: Setting) -> bool:
    if isinstance(setting.value, bool):
        return setting.value
    if not setting.is_text:
        raise setting.error("true or false", show(setting.value))
    value = SWITCH_WORDS.get(str(setting.value).strip().lower())
    if value is None:
        raise setting.error("1, true, yes or on, or 0, false, no or off", show(setting.value))
    return value


def _items(action: argparse.Action, setting: Setting) -> list[list[object]]:
    """Say what stands behind each time that the flag would be written on a command line."""
    value = setting.value
    items = value if isinstance(value, list) else [value]
    if action.nargs is not None:
        if setting.is_text:
            try:
                items = shlex.split(str(value))
            except ValueError:
                raise setting.error("values as a shell takes them", f"a quote that does not end in {value!r}") from None
        if not items:
            raise setting.error("at least one value", "none")
        return [items]
    repeats = isinstance(action, argparse._AppendAction)  # argparse's class of extend is one too
    if isinstance(value, dict) or (isinstance(value, list) and not repeats):
        raise setting.error("one value", show(value))
    return [[item] for item in items]


def _convert(parser: Parser, action: argparse.Action, setting: Setting, item: object) -> Any:
    """Convert one value, and compare its kind in TOML with what it became."""
    if isinstance(item, dict | list):
        raise setting.error("a value", show(item))
    try:
        value = parser.value_of(action, [item if isinstance(item, str) else show(item)])
    except argparse.ArgumentError as error:
        expected, _, _found = error.message.removeprefix("expected ").rpartition(", found ")
        raise setting.error(expected or "a value that the flag takes", show(item)) from None
    value = value[0] if action.nargs is not None else value
    if not setting.is_text and isinstance(item, str) and isinstance(value, int | float):
        raise setting.error("a number without quotes", show(item))
    if not isinstance(item, str) and isinstance(value, str):
        raise setting.error("text in quotes", show(item))
    return value


def show(value: object) -> str:
    """Write a value as TOML has it, or by what it is if it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of too many digits"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return f"a text of {len(value)} characters"
    return repr(value) if isinstance(value, str) else str(value)


def _choose(
    group: argparse._MutuallyExclusiveGroup,
    given: set[str],
    found: dict[argparse.Action, Setting],
    values: dict[argparse.Action, Any],
) -> None:
    """Keep at most one of the ``values`` of a group: none if the command line gives one, else that of highest rank."""
    members = [action for action in group._group_actions if action in values]
    best = max((found[action].rank for action in members), default=0)
    first = [action for action in members if found[action].rank == best]
    is_given = any(action.dest in given for action in group._group_actions)
    for action in members:
        if is_given or action not in first:
            del values[action]
    if is_given or not first:
        return
    if len(first) > 1:
        one, other = (found[action] for action in first[:2])
        raise one.error(f"it or {other.name}", "both")
    group.required = False
