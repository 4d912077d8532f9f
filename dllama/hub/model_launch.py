"""``launch.py NAME``: fetch a model of the catalogue if it is not there, write its script, and run it.

Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from dllama.errors import BadFile, DllamaError, UsageError
from dllama.hub import checkout, folders
from dllama.hub.catalogue import CONTEXT, Entry
from dllama.hub.download import Download, Patience
from dllama.hub.file_check import check_file
from dllama.hub.local_workers import run_nodes
from dllama.hub.model_plan import FilePlan, ModelPlan, make_plan
from dllama.hub.part_state import remove_stray_state
from dllama.hub.progress import size_text
from dllama.hub.remote import DownloadFailed, Server, is_offline

_NO_FIT = 5


def dry_run(entry: Entry, options: argparse.Namespace) -> int:
    """Say what ``launch_model`` would fetch, and whether there is room; write nothing."""
    plan = make_plan(entry, Server.from_environment(), is_offline=is_offline())
    problems = [*_bad_files(plan), *plan.problems(is_run=not options.skip_run)]
    if entry.refusal and not options.skip_run:
        problems.insert(0, UsageError(_refused(entry)))
    if options.json:
        print(json.dumps({**plan.as_json(), "problems": [str(problem) for problem in problems]}, indent=1), flush=True)
    else:
        print("\n".join([*plan.lines(), *(f"❌ {problem}" for problem in problems)]), flush=True)
    return problems[0].exit_code if problems else 0


def _refused(entry: Entry) -> str:
    return f"{entry.name}: {entry.refusal}; with -skip-run it is downloaded all the same"


def _bad_files(plan: ModelPlan) -> list[DllamaError]:
    """Check the files that are there already."""
    problems: list[DllamaError] = []
    for file in plan.files:
        try:
            if file.is_there:
                _check_whole(file.target)
        except BadFile as error:
            problems.append(error)
    return problems


def launch_model(entry: Entry, options: argparse.Namespace) -> int:
    """Fetch what is missing of a model, write its script and run it, but for what is not wanted."""
    if entry.refusal and not options.skip_run:
        raise UsageError(_refused(entry))
    found = folders.find_model(entry.name)
    if found is not None:
        _check_present(found)
        again = f"to download it again, remove that folder first (or: dllama models remove {entry.name})"
        print(f"✅ {entry.name} is in {found.folder}; {again}", flush=True)
    plan = _agree(entry, options) if found is None else None
    if not options.skip_run:
        with checkout.only_one():
            checkout.set_up([])
    if plan is not None:
        _fetch(plan)
        found = folders.find_model(entry.name)
    if found is None:
        raise DownloadFailed(f"{entry.name}: another program has removed it; run the same command again")
    command, nodes = _chat_command(found), options.nodes or 1
    if not options.skip_script:
        _write_script(entry, command, nodes)
    return 0 if options.skip_run else _run(entry, command, nodes)


def _check_present(model: folders.Installed) -> None:
    """Check files that nobody fetches now: an older launcher may have left them cut short."""
    for path in (model.tokenizer, model.model):
        _check_whole(path)
        remove_stray_state(path)


def _check_whole(path: Path) -> None:
    if not path.is_file():
        raise BadFile(path, "", "a file", "something else; move it away")
    try:
        check_file(path, path.suffix)
    except BadFile as error:
        advice = f"remove it to download it again: rm {shlex.quote(str(path))}"
        raise BadFile(path, error.place, error.expected, f"{error.found}; {advice}") from error


def _agree(entry: Entry, options: argparse.Namespace) -> ModelPlan:
    """Make sure that a download can work and is wanted, before anything is changed."""
    if is_offline():
        raise DownloadFailed(f"{entry.name} is not here, and HF_HUB_OFFLINE is set; unset it to download")
    if not options.yes and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(f"{entry.name} is not here, and there is no terminal to ask on; run again with -y to download")
    if not options.skip_run:
        checkout.check_can_set_up()
    server = Server.from_environment()
    print(f"🔎 Asking {server.endpoint} for sizes", flush=True)
    plan = make_plan(entry, server, is_offline=False)
    for problem in _bad_files(plan):
        raise problem
    for problem in plan.problems(is_run=not options.skip_run):
        raise problem
    if entry.refusal:
        print(f"⚠️ {entry.name} is {entry.refusal}", flush=True)
    if not options.yes:
        _ask(plan)
    return plan


def _ask(plan: ModelPlan) -> None:
    there = sum(file.have for file in plan.files)
    rest = f" ({size_text(there)} are there)" if there else ""
    print(f"❓ Download {size_text(plan.missing)}{rest} to {plan.folder}? [Y/n] ", end="", flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n") or answer.strip().lower() not in ("", "y", "yes"):
        raise UsageError("nothing was downloaded")


def _fetch(plan: ModelPlan) -> None:
    """Fetch the files that are missing, the small one first."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    server = Server.from_environment()
    # Whoever never reached the server hears of it sooner than those whose line is gone for a while.
    patience = Patience(attempts=5) if plan.trouble else Patience()
    for file in plan.files:
        if not file.target.exists():
            _fetch_file(Download(server, file.urls, file.target, file.facts, patience), file)


def _fetch_file(download: Download, file: FilePlan) -> None:
    is_verified = download.run(file.size)
    if is_verified is None:
        print(f"✅ {file.target.name}: another program has fetched it", flush=True)
    elif is_verified:
        print(f"✅ {file.target.name}: whole, its SHA-256 is the server's", flush=True)
    else:
        print(f"✅ {file.target.name}: whole by size and header; the server gave no hash to compare", flush=True)


def _chat_command(model: folders.Installed) -> list[str]:
    command = [str(checkout.program()), "chat"]
    command += ["--model", str(model.model), "--tokenizer", str(model.tokenizer)]
    return [*command, "--max-seq-len", str(CONTEXT), "--buffer-float-type", "q80"]


def _write_script(entry: Entry, command: list[str], nodes: int) -> None:
    """Write ``run_NAME.sh`` beside ``launch.py``, which works from any folder."""
    path = checkout.ROOT / f"run_{entry.name}.sh"
    whose = ""
    if nodes > 1:  # only launch.py starts workers, and ends them
        launch = str(checkout.ROOT / "launch.py")
        command = [sys.executable, launch, entry.name, "--nodes", str(nodes), "-skip-script"]
        whose = " of launch.py's"
    text = (
        f"#!/bin/sh\n# Talk to {entry.name}; flags{whose} given to this script are added.\n"
        f'exec {shlex.join(command)} "$@"\n'
    )
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(text, "utf-8")
        fresh.chmod(0o755)
        fresh.replace(path)
    except OSError as error:  # the conversation does not need it
        print(f"⚠️ {checkout.from_here(path)} cannot be written: {error.strerror}", flush=True)
    else:
        print(f"📝 {checkout.from_here(path)} starts it again", flush=True)


def _run(entry: Entry, command: list[str], nodes: int) -> int:
    """Begin the conversation; on one node by becoming it, so that keys and exit code are its own."""
    if nodes == 1:
        sys.stdout.flush()
        os.execv(command[0], command)
    # Each node compares its own part alone with the memory that is free; here all parts are in one memory.
    for problem in make_plan(entry, Server.from_environment(), is_offline=True).problems(is_run=True):
        raise problem
    return run_nodes(command, nodes)
