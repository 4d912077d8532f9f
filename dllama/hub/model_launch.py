"""``launch.py NAME``: fetch a model of the catalogue if it is not there, write its script, and run it.

Standard library only. What is done with a model once it is there, wherever it is from, is here too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
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


def dry_run(entry: Entry, options: argparse.Namespace) -> int:
    """Say what ``launch_model`` would fetch, and whether there is room; write nothing."""
    plan = make_plan(entry, Server.from_environment(), is_offline=is_offline())
    problems = [*_bad_files(plan), *plan.problems(is_run=is_run_here(options))]
    if options.json:
        print(json.dumps({**plan.as_json(), "problems": [str(problem) for problem in problems]}, indent=1), flush=True)
    else:
        print("\n".join([*plan.lines(), *(f"❌ {problem}" for problem in problems)]), flush=True)
    return problems[0].exit_code if problems else 0


def _bad_files(plan: ModelPlan) -> list[DllamaError]:
    """Check the files that are there already."""
    problems: list[DllamaError] = []
    for file in plan.files:
        try:
            if file.is_there:
                check_whole(file.target)
        except BadFile as error:
            problems.append(error)
    return problems


def launch_model(entry: Entry, options: argparse.Namespace) -> int:
    """Fetch what is missing of a model, write its script and run it, but for what is not wanted."""
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
        _fetch_all(plan)
        found = folders.find_model(entry.name)
    if found is None:
        raise DownloadFailed(f"{entry.name}: another program has removed it; run the same command again")
    if (options.nodes or 1) > 1 and not options.skip_run:
        _check_common_memory(entry)
    flags = ("--buffer-float-type", "q80")
    return run_model(entry.name, found.model, found.tokenizer, options, flags=flags)


def _check_present(model: folders.Installed) -> None:
    """Check files that nobody fetches now: an older launcher may have left them cut short."""
    for path in (model.tokenizer, model.model):
        check_whole(path)
        remove_stray_state(path)


def check_whole(path: Path) -> None:
    """Raise BadFile, with what to do, if a file that was fetched is not what its name says."""
    if not path.is_file():
        raise BadFile(path, "", "a file", "something else; move it away")
    try:
        check_file(path, path.suffix)
    except BadFile as error:
        advice = f"remove it to download it again: rm {shlex.quote(str(path))}"
        raise BadFile(path, error.place, error.expected, f"{error.found}; {advice}") from error


def _check_common_memory(entry: Entry) -> None:
    """Each node compares its own part alone with the memory that is free; here all parts are in one memory."""
    for problem in make_plan(entry, Server.from_environment(), is_offline=True).problems(is_run=True):
        raise problem


def _agree(entry: Entry, options: argparse.Namespace) -> ModelPlan:
    """Make sure that a download can work and is wanted, before anything is changed."""
    check_may_download(entry.name, options)
    if not options.skip_run:
        checkout.check_can_set_up()
    server = Server.from_environment()
    print(f"🔎 Asking {server.endpoint} for sizes", flush=True)
    plan = make_plan(entry, server, is_offline=False)
    for problem in _bad_files(plan):
        raise problem
    for problem in plan.problems(is_run=is_run_here(options)):
        raise problem
    if not options.yes:
        ask(plan.files, plan.folder)
    return plan


def _fetch_all(plan: ModelPlan) -> None:
    """Fetch the files that are missing, the small one first."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    # Whoever never reached the server hears of it sooner than those whose line is gone for a while.
    patience = Patience(attempts=5) if plan.trouble else Patience()
    for file in plan.files:
        fetch(file, patience)


# --- wherever a model is from -------------------------------------------------------------------


def is_run_here(options: argparse.Namespace) -> bool:
    """Whether the model must fit this machine's memory."""
    return not options.skip_run and not options.workers


def check_may_download(name: str, options: argparse.Namespace) -> None:
    """Make sure that a model which is not here may be fetched, and that there is somebody to ask if need be.

    Raises:
        DownloadFailed: Nothing is to be fetched.
        UsageError: A question is due, and there is no terminal to ask on.
    """
    if is_offline():
        raise DownloadFailed(f"{name} is not here, and HF_HUB_OFFLINE is set; unset it to download")
    if not options.yes and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(f"{name} is not here, and there is no terminal to ask on; run again with -y to download")


def ask(files: tuple[FilePlan, ...], folder: Path) -> None:
    """Ask whether to download; raises UsageError if not."""
    there, missing = sum(file.have for file in files), sum(file.missing for file in files)
    rest = f" ({size_text(there)} are there)" if there else ""
    print(f"❓ Download {size_text(missing)}{rest} to {folder}? [Y/n] ", end="", flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n") or answer.strip().lower() not in ("", "y", "yes"):
        raise UsageError("nothing was downloaded")


def fetch(file: FilePlan, patience: Patience) -> None:
    """Fetch a file that is not there, and say how sure it is to be the right one."""
    if file.target.exists():
        return
    is_verified = Download(Server.from_environment(), file.urls, file.target, file.facts, patience).run(file.size)
    if is_verified is None:
        print(f"✅ {file.target.name}: another program has fetched it", flush=True)
    elif is_verified:
        print(f"✅ {file.target.name}: whole, its SHA-256 is the server's", flush=True)
    else:
        print(f"✅ {file.target.name}: whole by size and header; the server gave no hash to compare", flush=True)


def run_model(
    name: str,
    model: Path,
    tokenizer: Path | None,
    options: argparse.Namespace,
    source: str | None = None,
    flags: Sequence[str] = (),
) -> int:
    """Write a model's script and begin the conversation, but for what is not wanted.

    Args:
        name: What the script is called by.
        model: The file or folder to run.
        tokenizer: Its tokenizer, if it is not the one beside it.
        options: Of ``launch.py``.
        source: What ``launch.py`` is called with to run this model, if not ``name``.
        flags: More flags of ``dllama chat``.

    Returns:
        The conversation's exit code; on one node this program becomes it instead, so that keys are its own.
    """
    command, nodes = [*_chat_command(model, tokenizer), *flags, *_cluster_flags(options)], options.nodes or 1
    if not options.skip_script:
        _write_script(name, source or name, command, nodes)
    if options.skip_run:
        return 0
    if nodes == 1:
        sys.stdout.flush()
        os.execv(command[0], command)
    return run_nodes(command, nodes)


def _chat_command(model: Path, tokenizer: Path | None) -> list[str]:
    command = [str(checkout.program()), "chat", "--model", str(model)]
    return [*command, *(["--tokenizer", str(tokenizer)] if tokenizer else []), "--max-seq-len", str(CONTEXT)]


def _cluster_flags(options: argparse.Namespace) -> list[str]:
    flags = ["--workers", *options.workers] if options.workers else []
    return [*flags, *(["--key-file", str(Path(options.key_file).absolute())] if options.key_file else [])]


def _write_script(name: str, source: str, command: list[str], nodes: int) -> None:
    """Write ``run_NAME.sh`` beside ``launch.py``, which works from any folder."""
    path = checkout.ROOT / f"run_{name}.sh"
    whose = ""
    if nodes > 1:  # only launch.py starts workers, and ends them
        launch = str(checkout.ROOT / "launch.py")
        command = [sys.executable, launch, source, "--nodes", str(nodes), "-skip-script"]
        whose = " of launch.py's"
    text = (
        f'#!/bin/sh\n# Talk to {name}; flags{whose} given to this script are added.\nexec {shlex.join(command)} "$@"\n'
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
