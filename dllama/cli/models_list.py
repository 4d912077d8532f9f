"""``dllama models list``: the models on this disk, by folder, and with ``--all`` those that can be downloaded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dllama.cli.common import say, to_json
from dllama.cli.models import state_of
from dllama.hub import folders
from dllama.hub.catalogue import CATALOGUE, Entry
from dllama.hub.progress import size_text

EXAMPLE = "example: dllama models list --all"
MORE = "dllama models list --all shows those that can be downloaded, too."
DOWNLOADS = "not on this disk; python3 launch.py NAME downloads one"
NAME_WIDTH, SIZE_WIDTH = 34, 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--all", action="store_true", help="list the models that can be downloaded, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def on_disk() -> list[dict[str, Any]]:
    """Describe every model on this disk."""
    return [_describe(model) for model in [folders.bundled_model(), *folders.installed_models()]]


def _describe(model: folders.Installed) -> dict[str, Any]:
    state, problem = state_of(model)
    return {
        "name": model.name,
        "state": state,
        "problem": problem,
        "bytes": model.num_bytes,
        "folder": str(model.folder),
        "model": str(model.model),
        "tokenizer": str(model.tokenizer),
    }


def absent(here: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Describe every model of the catalogue that is not on this disk."""
    names = {model["name"] for model in here}
    return [describe_entry(entry) for name, entry in CATALOGUE.items() if name not in names]


def describe_entry(entry: Entry) -> dict[str, Any]:
    """Describe a model of the catalogue."""
    return {
        "name": entry.name,
        "state": "absent",
        "problem": None,
        "bytes": entry.model_bytes,
        "memory_bytes": entry.memory_bytes,
        "folder": None,
    }


def lines(models: list[dict[str, Any]]) -> list[str]:
    """Write models in lines of at most 80 columns, below the folder that they are in."""
    written: list[str] = []
    heading = None
    for model in models:
        above = _heading(model)
        if above != heading:
            written += [*([""] if written else []), above]
            heading = above
        size = size_text(model["bytes"])
        written.append(f"  {model['name']:<{NAME_WIDTH}}{size:>{SIZE_WIDTH}}  {_remark(model)}")
    return written


def _heading(model: dict[str, Any]) -> str:
    if model["folder"] is None:
        return DOWNLOADS
    folder = Path(model["folder"])
    return "comes with dllama" if folder == folders.bundled_model().folder else str(folder.parent)


def _remark(model: dict[str, Any]) -> str:
    if model["state"] == "absent":
        return f"needs {size_text(model['memory_bytes'])} of memory"
    return str(model["state"])


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    models = on_disk()
    if args.all:
        models += absent(models)
    if args.json:
        say(to_json({"models": models}))
        return
    for line in [*lines(models), *([] if args.all else ["", MORE])]:
        say(line)
