"""The text of completion scripts for bash, zsh and fish, given what the commands are."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from dllama.cli import COMMANDS, SUBCOMMANDS
from dllama.cli.completion import Completed, Flag, Value
from dllama.hub import folders

_TOP_FLAGS = ("--help", "--version")

_BASH = """\
# Completes the command dllama in bash.
_dllama_models() {{
    local dir name
    local -a dirs
    IFS=: read -ra dirs <<< "${{DLLAMA_MODELS-}}"
    echo {bundled}
    for dir in "${{dirs[@]}}" {checkout} "${{XDG_DATA_HOME:-${{HOME-}}/.local/share}}/dllama/models"; do
        for name in "$dir"/*/; do
            name=${{name%/}} name=${{name##*/}}
            [[ $name == *[!A-Za-z0-9._+-]* ]] || echo "$name"  # compgen would run what is in it
        done
    done
}}
_dllama_words() {{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}}
_dllama_files() {{
    compopt -o filenames 2> /dev/null
    mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$cur")
}}
_dllama() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} command=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$cur" = = ]; then
        cur=
    elif [ "$prev" = = ]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    if [ "$COMP_CWORD" -eq 1 ]; then
        _dllama_words {top}
        return
    fi
{groups}
    case "$command $prev" in
{values}
    esac
    case $command in
{flags}
    esac
}}
complete -F _dllama dllama"""

_ZSH = """\
#compdef dllama
# Completes the command dllama in zsh.
_dllama_models() {{
    local -a dirs names
    dirs=(${{(s.:.)DLLAMA_MODELS}} {checkout} ${{XDG_DATA_HOME:-$HOME/.local/share}}/dllama/models)
    names=({bundled} ${{^dirs}}/*(N/:t))
    compadd -a names
}}
_dllama_models_or_files() {{
    _dllama_models
    _files
}}
_dllama() {{
    local -a commands
    if (( CURRENT == 2 )); then
        commands=({commands})
        _describe command commands
        return
    fi
    shift words
    (( CURRENT-- ))
    local command=$words[1]
{groups}
    case $command in
{arguments}
    esac
}}
if [ "$funcstack[1]" = _dllama ]; then
    _dllama "$@"
else
    compdef _dllama dllama
fi"""

_ZSH_GROUP = """\
    if [ $command = {name} ]; then
        if (( CURRENT == 2 )); then
            commands=({commands})
            _describe command commands
            return
        fi
        shift words
        (( CURRENT-- ))
        command="{name} $words[1]"
    fi"""

_FISH = """\
# Completes the command dllama in fish.
function __dllama_models
    echo {bundled}
    set -l data $XDG_DATA_HOME $HOME/.local/share
    for dir in (string split -n : -- "$DLLAMA_MODELS") {checkout} $data[1]/dllama/models
        for name in $dir/*/
            path basename -- $name
        end
    end
end
complete -c dllama -f
{lines}"""


def bash(commands: list[Completed]) -> str:
    """Write the script for bash."""
    groups = [
        f'    if [ "$command" = {name} ]; then\n'
        f'        if [ "$COMP_CWORD" -eq 2 ]; then\n            _dllama_words {_quoted(subs)}\n            return\n'
        f'        fi\n        command="$command ${{COMP_WORDS[2]}}"\n    fi'
        for name, subs in SUBCOMMANDS.items()
    ]
    patterns: dict[Value, list[str]] = {}
    for command in commands:
        for flag in command.flags:
            if flag.value is not None:
                patterns.setdefault(flag.value, []).extend(_quoted([command.name, name]) for name in flag.names)
    values = [
        f"        {' | '.join(names)})\n{_bash_value(value)}            return\n            ;;"
        for value, names in patterns.items()
    ]
    flags = [f"        {_quoted([command.name])})\n{_bash_argument(command)}            ;;" for command in commands]
    return _BASH.format(
        bundled=folders.BUNDLED,
        checkout=_checkout(),
        top=_quoted([*COMMANDS, *_TOP_FLAGS]),
        groups="\n".join(groups),
        values="\n".join(values),
        flags="\n".join(flags),
    )


def _bash_value(value: Value) -> str:
    lines = []
    if value.words or value.is_model:
        words = _quoted(value.words) if value.words else '"$(_dllama_models)"'
        lines.append(f"            _dllama_words {words}\n")
    if value.is_file:
        lines.append("            _dllama_files\n")
    return "".join(lines)


def _bash_argument(command: Completed) -> str:
    flags = _quoted(name for flag in command.flags for name in flag.names)
    if command.argument is None:
        return f"            _dllama_words {flags}\n"
    return (
        f'            if [ "${{cur#-}}" != "$cur" ]; then\n                _dllama_words {flags}\n            else\n'
        f"    {_bash_value(command.argument)}            fi\n"
    )


def zsh(commands: list[Completed]) -> str:
    """Write the script for zsh."""
    groups = [_ZSH_GROUP.format(name=name, commands=_zsh_described(subs)) for name, subs in SUBCOMMANDS.items()]
    arguments = [
        f"        {_quoted([command.name])})\n            _arguments "
        + " \\\n                ".join([*map(_zsh_flag, command.flags), *_zsh_argument(command)])
        + "\n            ;;"
        for command in commands
    ]
    return _ZSH.format(
        bundled=folders.BUNDLED,
        checkout=_checkout(),
        commands=_zsh_described(COMMANDS),
        groups="\n".join(groups),
        arguments="\n".join(arguments),
    )


def _zsh_described(commands: dict[str, str]) -> str:
    return " ".join(shlex.quote(f"{name}:{text}") for name, text in commands.items())


def _zsh_flag(flag: Flag) -> str:
    help_ = flag.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    value = "" if flag.value is None else f":value:{_zsh_value(flag.value)}"
    return " ".join(
        shlex.quote(f"*{name}{'=' if value and name.startswith('--') else ''}[{help_}]{value}") for name in flag.names
    )


def _zsh_argument(command: Completed) -> list[str]:
    return [] if command.argument is None else [shlex.quote(f":argument:{_zsh_value(command.argument)}")]


def _zsh_value(value: Value) -> str:
    if value.words:
        return f"({' '.join(value.words)})"
    if value.is_model:
        return "_dllama_models_or_files" if value.is_file else "_dllama_models"
    return "_files" if value.is_file else " "


def fish(commands: list[Completed]) -> str:
    """Write the script for fish."""
    lines = [_fish_line("__fish_use_subcommand", "-a", name, text) for name, text in COMMANDS.items()]
    lines += [f"complete -c dllama -n __fish_use_subcommand -l {flag.removeprefix('--')}" for flag in _TOP_FLAGS]
    for group, subs in SUBCOMMANDS.items():
        condition = f"{_seen(group)}; and not __fish_seen_subcommand_from {' '.join(subs)}"
        lines += [_fish_line(condition, "-a", name, text) for name, text in subs.items()]
    for command in commands:
        condition = "; and ".join(map(_seen, command.name.split()))
        lines += [_fish_flag(condition, flag) for flag in command.flags]
        if command.argument is not None:
            lines.append(f"complete -c dllama -n {shlex.quote(condition)}{_fish_value(command.argument)}")
    return _FISH.format(bundled=folders.BUNDLED, checkout=_checkout(), lines="\n".join(lines))


def _seen(name: str) -> str:
    return f"__fish_seen_subcommand_from {name}"


def _fish_line(condition: str, option: str, name: str, text: str) -> str:
    return f"complete -c dllama -n {shlex.quote(condition)} {option} {name} -d {_fish_quoted(text)}"


def _fish_flag(condition: str, flag: Flag) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
    value = "" if flag.value is None else f"{' -r' if flag.value.is_file else ' -x'}{_fish_value(flag.value)}"
    return f"complete -c dllama -n {shlex.quote(condition)} {names}{value} -d {_fish_quoted(flag.help)}"


def _fish_value(value: Value) -> str:
    offered = " ".join(value.words) or ("(__dllama_models)" if value.is_model else "")
    return f"{' -F' if value.is_file else ''}{f' -a {shlex.quote(offered)}' if offered else ''}"


def _fish_quoted(text: str) -> str:
    """Quote for fish, which knows backslashes inside single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _checkout() -> str:
    """Give the folder of models beside ``launch.py``, quoted; empty if this is no checkout."""
    beside = Path(folders.__file__).resolve().parents[2]
    return shlex.quote(str(beside / "models")) if (beside / "launch.py").is_file() else ""


WRITERS: dict[str, Callable[[list[Completed]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
