"""``dllama models show NAME``: a model's files, what they say of themselves, and the memory it needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dllama.cli.common import MIB, say, to_json
from dllama.cli.models import find, state_of
from dllama.cli.models_list import describe_entry
from dllama.errors import DllamaError
from dllama.hub import folders
from dllama.hub.catalogue import CONTEXT, Entry
from dllama.hub.progress import size_text

EXAMPLE = "example: dllama models show demo"
_ENDLESS = 1 << 62  # bytes of memory: what is needed is shown even where it is not there


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("name", metavar="NAME", help="name of a model; dllama models list shows them")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def describe(model: folders.Installed) -> dict[str, Any]:
    """Describe a model on this disk."""
    state, problem = state_of(model)
    facts: dict[str, Any] = {
        "name": model.name,
        "state": state,
        "problem": problem,
        "bytes": model.num_bytes,
        "folder": str(model.folder),
        "files": [{"path": str(path), "bytes": folders.size_of(path)} for path in model.files],
    }
    if state != "ready":
        return facts
    try:
        return facts | _contents(model)
    except DllamaError as error:  # in the tokenizer, which the state does not tell of
        return facts | {"state": "broken", "problem": str(error)}


def _contents(model: folders.Installed) -> dict[str, Any]:
    """Say what the files contain, and compare the memory that they need with what is free."""
    from dllama import machine
    from dllama.engine.prompts import open_tokenizer
    from dllama.engine.sizing import NodeOptions, settle_size
    from dllama.formats.open_model import open_model
    from dllama.plan import make_plan

    free = machine.available_memory()
    options = NodeOptions(num_threads=machine.physical_cores())
    with open_model(model.model) as file:
        tokenizer = open_tokenizer(model.tokenizer, file.config)
        assert tokenizer is not None
        size = settle_size(file.config, make_plan(file.config), 0, options, _ENDLESS)
        needs = {"needed_bytes": size.memory.total, "context": size.max_seq_len, "free_bytes": free}
        return {"model": file.summary(), "tokenizer": tokenizer.summary(), "memory": needs}


def lines(facts: dict[str, Any]) -> list[str]:
    """Write the description of a model in lines."""
    written = [f"name: {facts['name']}", f"state: {facts['state']}"]
    if facts["problem"]:
        written.append(f"problem: {facts['problem']}")
    if facts["folder"] is None:
        return [*written, *_entry_lines(facts)]
    written.append(f"folder: {facts['folder']}")
    written += [f"   {size_text(file['bytes']):>10}  {Path(file['path']).name}" for file in facts["files"]]
    for part in ("model", "tokenizer"):
        if part in facts:
            written += [f"{part}:", *(f"   {name}: {value}" for name, value in facts[part].items())]
    return [*written, *([_memory_line(facts["memory"])] if "memory" in facts else [])]


def _entry_lines(facts: dict[str, Any]) -> list[str]:
    written = [f"download: {size_text(facts['bytes'])}; python3 launch.py {facts['name']}"]
    written.append(f"memory: {size_text(facts['memory_bytes'])} with a context of {CONTEXT}")
    return written


def _memory_line(memory: dict[str, int]) -> str:
    needed, free = -(-memory["needed_bytes"] // MIB), memory["free_bytes"] // MIB
    verdict = "" if memory["needed_bytes"] <= memory["free_bytes"] else ": a shorter context (--max-seq-len) needs less"
    return f"memory: needs {needed} MiB with a context of {memory['context']}, {free} MiB are free{verdict}"


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    found = find(args.name)
    facts = describe_entry(found) if isinstance(found, Entry) else describe(found)
    if args.json:
        say(to_json(facts))
        return
    for line in lines(facts):
        say(line)
