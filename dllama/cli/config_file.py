"""The configuration file: TOML with the flags' names as keys, for all commands or in a table for one.

    nthreads = 4

    [chat]
    model = "llama3_1_8b_instruct_q40"
    temperature = 0.6

A key that no command has is an error, wherever it stands: a setting without effect is found out late otherwise.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllama.cli.parser import suggestion
from dllama.cli.settings import Setting
from dllama.errors import BadFile, UsageError
from dllama.hub import folders

SIZE_LIMIT = 1 << 20
_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What the file says, keys written with dashes; without a file, nothing.

    Attributes:
        path: The file.
        shared: Settings for every command that has them.
        tables: Settings of single commands.
    """

    path: str = ""
    shared: dict[str, object] = field(default_factory=dict)
    tables: dict[str, dict[str, object]] = field(default_factory=dict)

    def find(self, command: str, flag: str) -> Setting | None:
        """Look a flag of a command up, in the command's table first."""
        for rank, table in ((1, command), (0, "")):
            values = self.tables.get(table, {}) if table else self.shared
            if flag in values:
                return self._setting(table, flag, values[flag], rank)
        return None

    def _setting(self, table: str, flag: str, value: object, rank: int) -> Setting:
        place = f"key '{flag}'{f' in [{table}]' if table else ''}"

        def error(expected: str, found: str) -> BadFile:
            return BadFile(self.path, place, expected, found)

        return Setting(f"'{flag}'", value, rank, error)

    def check(self, flags: dict[str, set[str]]) -> None:
        """Raise BadFile for keys and tables that mean nothing, given the flags of all commands."""
        for name in self.tables:
            if name not in flags:
                expected = f"a table of one of the commands {', '.join(flags)}"
                raise BadFile(self.path, f"table [{name}]", expected, f"no such command{suggestion(name, flags)}")
            self._check_keys(f"[{name}]", self.tables[name], flags[name])
        self._check_keys("", self.shared, set().union(*flags.values()))

    def _check_keys(self, table: str, values: dict[str, object], flags: set[str]) -> None:
        for key in values:
            if key not in flags:
                place = f"key '{key}'{f' in {table}' if table else ''}"
                raise BadFile(self.path, place, "the name of a flag", f"no such flag{suggestion(key, sorted(flags))}")


def load() -> ConfigFile:
    """Read the file that ``DLLAMA_CONFIG`` names, or the one in the user's folder if it is there.

    Raises:
        UsageError: The named file is missing, or may not be read.
        BadFile: It is not a configuration file.
    """
    named = os.environ.get("DLLAMA_CONFIG", "")
    path = Path(named) if named else folders.config_file()
    if named == os.devnull or not (named or _is_there(path)):
        return ConfigFile()
    if named and not _is_there(path):
        raise UsageError(f"DLLAMA_CONFIG: expected a configuration file, found no file {named}")
    return parse(str(path), _read(path))


def parse(path: str, text: str) -> ConfigFile:
    """Read the text of a configuration file; raises BadFile if it is not TOML."""
    import tomllib

    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise BadFile(path, "", "TOML", "lists or tables nested too deeply") from None
    except ValueError as error:
        match = _PLACE.fullmatch(str(error))
        message, place = str(error), ""
        if match:
            message, place = match[1], f"line {match[2] or len(text.splitlines())}"
        raise BadFile(path, place, "TOML", f"a mistake: {message[:1].lower()}{message[1:]}") from None
    tables = {key: _dashed(path, value) for key, value in values.items() if isinstance(value, dict)}
    return ConfigFile(path, _dashed(path, {k: v for k, v in values.items() if not isinstance(v, dict)}), tables)


def _dashed(path: str, values: dict[str, Any]) -> dict[str, object]:
    """Write keys as flags are written, with dashes."""
    written: dict[str, str] = {}
    for key in values:
        before = written.setdefault(key.replace("_", "-"), key)
        if before != key:
            raise BadFile(path, f"key '{key}'", f"it or '{before}'", "both")
    return {name: values[key] for name, key in written.items()}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that may not be entered: another user's home
        return False


def _read(path: Path) -> str:
    """Read a file that may be anything."""
    from dllama.formats.checked_file import CheckedFile

    if path.is_file() and folders.size_of(path) == 0:
        return ""
    with CheckedFile(path, "configuration") as file:
        if file.size > SIZE_LIMIT:
            raise file.bad("size", f"at most {SIZE_LIMIT} bytes", f"{file.size}")
        raw = file.read(0, file.size, "text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(path, f"byte {error.start}", "UTF-8 text", f"byte 0x{raw[error.start]:02X}") from None
