"""``dllama models remove NAME``: deletes a model's own files, and what a download left unfinished.

Only regular files below a folder of models are deleted; links are left to whoever made them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from dllama.cli.common import say, to_json
from dllama.cli.models import find
from dllama.errors import DllamaError, UsageError
from dllama.hub.catalogue import Entry
from dllama.hub.folder_lock import is_locked
from dllama.hub.progress import size_text

if TYPE_CHECKING:
    from pathlib import Path

    from dllama.hub.folders import Installed

EXAMPLE = "example: dllama models remove llama3_2_1b_instruct_q40"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("name", metavar="NAME", help="name of a model; dllama models list shows them")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def removable(name: str) -> Installed:
    """Find a model that may be removed.

    Raises:
        UsageError: It is not on this disk, came with dllama, is reached through a link, or is being downloaded.
    """
    model = find(name)
    if isinstance(model, Entry):
        raise UsageError(f"{model.name} is not on this disk; there is nothing to remove")
    if model.is_bundled:
        raise UsageError(f"{model.name} comes with dllama and cannot be removed")
    for path in (model.folder, *model.files):
        if path.is_symlink():
            raise UsageError(f"{path} is a link to {path.readlink()}; only a model's own files are removed: unlink it")
        if path != model.folder and not path.is_file():
            raise UsageError(f"{path} is not a file; only a model's own files are removed: move it away")
    if any(map(is_locked, [model.folder, *model.leftovers])):
        raise UsageError(f"{model.name} is being downloaded at this moment; end that first")
    return model


def confirm(model: Installed) -> bool:
    """Ask on the terminal; raises UsageError if there is none."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"removing {model.name} needs a yes, and there is no terminal to ask on; add -y")
    for path in model.files:
        print(f"   {path}", file=sys.stderr)
    print(f"Delete these files, {size_text(model.num_bytes)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def remove(model: Installed) -> tuple[list[Path], int]:
    """Delete a model's files, and its folder if nothing else is in it; give the files and their bytes."""
    removed, freed = [], 0
    for path in model.files:
        size = path.lstat().st_size
        try:
            path.unlink()
        except OSError as error:
            raise DllamaError(f"{path}: cannot be removed: {error.strerror}; {size_text(freed)} were freed") from error
        removed.append(path)
        freed += size
    with contextlib.suppress(OSError):  # something else is in it
        model.folder.rmdir()
    return removed, freed


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    model = removable(args.name)
    if not (args.yes or confirm(model)):
        print("Nothing was removed", file=sys.stderr)
        return
    removed, freed = remove(model)
    if args.json:
        facts = {"removed": [str(path) for path in removed], "bytes": freed, "folder_kept": model.folder.exists()}
        say(to_json({"name": model.name, **facts}))
        return
    kept = f"; {model.folder} is kept, since other files are in it" if model.folder.exists() else ""
    say(f"Removed {model.name}, {freed} bytes ({size_text(freed)}) freed{kept}")
