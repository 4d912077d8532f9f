"""``launch.py hf:ORG/MODEL``: fetch a model of a Hugging Face repository, make a ``.m`` file of it, and run it.

Standard library only; the model is made by ``converters/convert_hf.py``, with what ``.venv`` holds. Of a model's files
the ``.m`` file stays, with the small ones that describe its tokenizer and its answers: fetched weights are two to four
times its size, and can be had again. GGUF files are run as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from dllama.errors import DllamaError
from dllama.hub import checkout, folders
from dllama.hub.catalogue import CONTEXT
from dllama.hub.download import Patience
from dllama.hub.folder_lock import only_one_in
from dllama.hub.model_launch import ask, check_may_download, fetch, is_run_here, run_model
from dllama.hub.progress import size_text
from dllama.hub.remote import DownloadFailed, Server, is_offline
from dllama.hub.repository import Reference
from dllama.hub.repository_plan import RepositoryPlan, make_plan, read_origin, remove_weights, write_origin


class ConversionFailed(DllamaError):
    """The model cannot be made or run; the exit code is that of the program that said so."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.exit_code = status if status > 0 else 1


def dry_run(reference: Reference, options: argparse.Namespace) -> int:
    """Say what ``launch_repository`` would fetch, and whether there is room; write nothing."""
    if is_offline():
        raise DownloadFailed(f"{reference}: HF_HUB_OFFLINE is set; unset it to ask what is there")
    plan = make_plan(reference, Server.from_environment())
    problems = plan.problems(is_run=is_run_here(options))
    if options.json:
        print(json.dumps({**plan.as_json(), "problems": [str(problem) for problem in problems]}, indent=1), flush=True)
    else:
        print("\n".join([*plan.lines(), *(f"❌ {problem}" for problem in problems)]), flush=True)
    return problems[0].exit_code if problems else 0


def launch_repository(reference: Reference, options: argparse.Namespace) -> int:
    """Fetch what is missing of a model, make what is run of it, write its script and run it."""
    found = folders.find_model(reference.name)
    if found is not None:
        if (found.folder / folders.ORIGIN).exists():
            read_origin(found.folder, reference)
        again = f"to download it again, remove it first: dllama models remove {reference.name}"
        print(f"✅ {reference} is in {found.folder}; {again}", flush=True)
    if found is None:
        found = _get(reference, options)
    elif not options.skip_run:
        _set_up()
    with only_one_in(found.folder):
        if found.model.suffix == ".m" and (freed := remove_weights(found.folder)):
            print(f"🧹 {size_text(freed)} of fetched weights were removed: {found.model.name} is made", flush=True)
    return run_model(reference.name, found.model, found.tokenizer, options, source=str(reference))


def _get(reference: Reference, options: argparse.Namespace) -> folders.Installed:
    """Fetch what is missing of a model, and make what is run of it."""
    plan = _agree(reference, options)
    if plan.is_converted or not options.skip_run:
        _set_up()
    with only_one_in(plan.folder):
        _obtain(plan, is_run_here=is_run_here(options))
    found = folders.find_model(reference.name)
    if found is None:
        raise DownloadFailed(f"{reference}: another program has removed it; run the same command again")
    return found


def _set_up() -> None:
    with checkout.only_one():
        checkout.set_up([])


def _agree(reference: Reference, options: argparse.Namespace) -> RepositoryPlan:
    """Make sure that a download can work and is wanted, before anything is changed."""
    check_may_download(str(reference), options)
    checkout.check_can_set_up()
    server = Server.from_environment()
    print(f"🔎 Asking {server.endpoint} for files and sizes", flush=True)
    plan = make_plan(reference, server)
    for problem in plan.problems(is_run=is_run_here(options)):
        raise problem
    if not options.yes:
        ask(plan.files, plan.folder)
    return plan


def _obtain(plan: RepositoryPlan, *, is_run_here: bool) -> None:
    """Fetch the files that are missing, and make the model of them; weights come once all else is found right."""
    write_origin(plan)
    for file in plan.files:
        if file not in plan.weights:
            fetch(file, Patience())
    if not plan.is_converted or plan.model.exists():
        return
    _check(plan, is_run_here=is_run_here)
    for file in plan.weights:
        if not plan.model.exists():  # where folders cannot be locked, another program may have made it
            fetch(file, Patience())
    if not plan.model.exists():
        _convert(plan)


def _check(plan: RepositoryPlan, *, is_run_here: bool) -> None:
    """Let ``.venv`` say what is wrong with the model, by its small files, before its weights are fetched."""
    context = [str(CONTEXT)] if is_run_here else []
    checker = _converter("check_hf.py")
    result = subprocess.run([*checker, str(plan.folder), "q40", *context], stderr=subprocess.PIPE, check=False)
    if result.returncode:
        why = " ".join(result.stderr.decode(errors="replace").removeprefix("🚨 ").split())
        raise ConversionFailed(f"{plan.reference}: {why}; its weights were not fetched", result.returncode)


def _convert(plan: RepositoryPlan) -> None:
    """Make the ``.m`` file by the converter, in the model's folder."""
    command = [*_converter("convert_hf.py"), str(plan.folder), "q40", plan.reference.name]
    sys.stdout.flush()
    status = subprocess.run(command, cwd=plan.folder, check=False).returncode
    if status or not plan.model.is_file():
        kept = f"what was fetched is kept in {plan.folder}"
        raise ConversionFailed(f"{plan.reference}: no model was made; {kept}", status)


def _converter(name: str) -> list[str]:
    return [str(checkout.VENV / "bin" / "python"), str(checkout.ROOT / "converters" / name)]
