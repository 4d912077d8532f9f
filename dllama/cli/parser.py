"""Command lines: argparse with errors of one line, suggestions, and values that may begin with a dash.

Knows no command and no flag of ours, and not where values come from that are not on the command line. Also the types of
flags: functions from text to a checked value.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dllama.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

T = TypeVar("T")
Fill = Callable[["Parser", set[str]], None]  # gives flags defaults, but for those of the names given


_ON_THE_LINE_ONLY = ("help", "yes")  # what removes things is not agreed to once and for all


class Parser(argparse.ArgumentParser):
    """A parser that raises ``UsageError``. Flags are ``--name value`` or ``--name=value``, never shortened."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.filled: set[str] = set()  # names whose values come from elsewhere than the command line

    def error(self, message: str) -> NoReturn:
        """Raise what argparse has to say as a UsageError."""
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; argparse's own ignores that a disk is full."""
        print(self.format_help(), end="", file=file)

    def parse(self, arguments: Sequence[str], fill: Fill | None = None) -> argparse.Namespace:
        """Read all of ``arguments``; ``fill`` may set defaults once it is known which flags they give.

        The result has those names in ``given``, too, and these and those that ``fill`` set in ``chosen``.
        """
        words = self._join_values(arguments)
        given = self._given(words)
        if fill is not None:
            fill(self, given)
        args, rest = self.parse_known_args(words)
        if rest:
            raise UsageError(f"unexpected argument '{rest[0]}'; see {self.prog} --help")
        args.given, args.chosen = frozenset(given), frozenset(given | self.filled)
        return args

    @property
    def settable(self) -> dict[str, argparse.Action]:
        """The flags that have a value or a switch, by their long names without dashes."""
        return {
            name.removeprefix("--"): action
            for action in self._actions
            if action.help != argparse.SUPPRESS and action.dest not in _ON_THE_LINE_ONLY
            for name in action.option_strings
            if name.startswith("--")
        }

    @property
    def exclusive_groups(self) -> list[argparse._MutuallyExclusiveGroup]:
        """The groups of flags of which one may be given."""
        return self._mutually_exclusive_groups

    def value_of(self, action: argparse.Action, words: Sequence[str]) -> Any:
        """Convert ``words`` as if they stood behind the flag of ``action``; raises argparse.ArgumentError."""
        values = [self._get_value(action, word) for word in words]
        for value in values:
            if action.choices is not None and value not in action.choices:
                choices = ", ".join(map(str, action.choices))
                raise argparse.ArgumentError(action, f"expected one of {choices}, found {value!r}")
        return values[0] if action.nargs is None else values

    def _given(self, words: Sequence[str]) -> set[str]:
        """Names under which ``words`` set something; raises UsageError for what is wrong about them."""
        flags = [action for action in self._actions if action.option_strings]
        before = [(action.default, action.required) for action in flags]
        required = [group.required for group in self.exclusive_groups]
        try:
            for action in flags:
                action.default, action.required = argparse.SUPPRESS, False
            for group in self.exclusive_groups:
                group.required = False
            return {*vars(self.parse_known_args(words)[0])}
        finally:
            for action, (default, is_required) in zip(flags, before, strict=True):
                action.default, action.required = default, is_required
            for group, is_required in zip(self.exclusive_groups, required, strict=True):
                group.required = is_required

    def _join_values(self, arguments: Sequence[str]) -> list[str]:
        """Write ``--flag -value`` as ``--flag=-value``, so that a prompt or a number may begin with a dash.

        So is a value with a dash and a digit later in the list of a flag that takes several.

        Raises:
            UsageError: A flag that does not exist, whatever else is wrong.
        """
        joined: list[str] = []
        flag = ""  # the last one
        for word in arguments:
            last = joined[-1] if joined else ""
            if self._takes_dash(flag, is_next=last == flag, word=word):
                if last == flag:
                    joined.pop()
                joined.append(f"{flag}={word}")
                continue
            if word.startswith("--"):
                self._check_flag(word.split("=", maxsplit=1)[0])
            if word.startswith("-"):
                flag = word
            joined.append(word)
        return joined

    def _takes_dash(self, flag: str, is_next: bool, word: str) -> bool:
        """Whether a word is a value of ``flag``, the last flag before it, although it begins with a dash."""
        action = self._option_string_actions.get(flag)
        if action is None or not word.startswith("-") or word in self._option_string_actions:
            return False
        if action.nargs == "+":
            return word[1:2].isdecimal()
        return is_next and action.nargs is None and flag.startswith("--")

    def _check_flag(self, name: str) -> None:
        if name not in self._option_string_actions:
            hint = suggestion(name, self._option_string_actions)
            raise UsageError(f"unknown flag '{name}'{hint}; see {self.prog} --help")


def suggestion(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` if a known word is close to ``word``, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class Refused(argparse.Action):
    """A flag that others know and dllama cannot serve: says why, whatever its value."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, why: str) -> None:
        super().__init__(option_strings, dest, nargs="*", help=argparse.SUPPRESS)
        self.why = why

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Raise UsageError."""
        raise UsageError(f"{option_string}: {self.why}")


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Make the type of a whole number in a range."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    """Make the type of a number in a range."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, found {text!r}")
        return value

    return convert


def file_name(text: str) -> str:
    """Be the type of a file's name."""
    if not text:
        raise argparse.ArgumentTypeError("expected a file, found an empty file name")
    return text


def list_of(convert: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Make the type of a comma list."""
    return lambda text: [convert(part) for part in text.split(",")]
