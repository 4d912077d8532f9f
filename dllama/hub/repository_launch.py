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
from dllama.hub.download import Patience
from dllama.hub.model_launch import ask, check_may_download, fetch, run_model
from dllama.hub.progress import size_text
from dllama.hub.remote import DownloadFailed, Server, is_offline
from dllama.hub.repository import Reference
from dllama.hub.repository_plan import RepositoryPlan, make_plan, read_origin, remove_weights, write_origin


class ConversionFailed(DllamaError):
    """The converter ended with an error, which it has told the user itself; the exit code is its own."""


def dry_run(reference: Reference, options: argparse.Namespace) -> int:
    """Say what ``launch_repository`` would fetch, and whether there is room; write nothing."""
    if is_offline():
        raise DownloadFailed(f"{reference}: HF_HUB_OFFLINE is set; unset it to ask what is there")
    plan = make_plan(reference, Server.from_environment())
    problem = plan.problem()
    if options.json:
        print(json.dumps({**plan.as_json(), "problems": [str(problem)] if problem else []}, indent=1), flush=True)
    else:
        print("\n".join([*plan.lines(), *([f"❌ {problem}"] if problem else [])]), flush=True)
    return problem.exit_code if problem else 0


def launch_repository(reference: Reference, options: argparse.Namespace) -> int:
    """Fetch what is missing of a model, make what is run of it, write its script and run it."""
    found = folders.find_model(reference.name)
    if found is not None:
        if (found.folder / folders.ORIGIN).exists():
            read_origin(found.folder, reference)
        again = f"to download it again, remove it first: dllama models remove {reference.name}"
        print(f"✅ {reference} is in {found.folder}; {again}", flush=True)
    plan = _agree(reference, options) if found is None else None
    if not options.skip_run or (plan is not None and plan.is_converted):
        with checkout.only_one():
            checkout.set_up([])
    if plan is not None:
        _obtain(plan)
        found = folders.find_model(reference.name)
    if found is not None and found.model.suffix == ".m" and (freed := remove_weights(found.folder)):
        print(f"🧹 {size_text(freed)} of fetched weights were removed: {found.model.name} is made", flush=True)
    if found is None:
        raise DownloadFailed(f"{reference}: another program has removed it; run the same command again")
    return run_model(reference.name, found.model, found.tokenizer, options, source=str(reference))


def _agree(reference: Reference, options: argparse.Namespace) -> RepositoryPlan:
    """Make sure that a download can work and is wanted, before anything is changed."""
    check_may_download(str(reference), options)
    checkout.check_can_set_up()
    server = Server.from_environment()
    print(f"🔎 Asking {server.endpoint} for files and sizes", flush=True)
    plan = make_plan(reference, server)
    problem = plan.problem()
    if problem:
        raise problem
    if not options.yes:
        ask(plan.files, plan.folder)
    return plan


def _obtain(plan: RepositoryPlan) -> None:
    """Fetch the files that are missing, and make the model of them."""
    write_origin(plan)
    for file in plan.files:
        fetch(file, Patience())
    if plan.is_converted and not plan.model.exists():
        _convert(plan)


def _convert(plan: RepositoryPlan) -> None:
    """Make the ``.m`` file by the converter, in the model's folder."""
    converter = checkout.ROOT / "converters" / "convert_hf.py"
    command = [str(checkout.VENV / "bin" / "python"), str(converter), str(plan.folder), "q40", plan.reference.name]
    sys.stdout.flush()
    status = subprocess.run(command, cwd=plan.folder, check=False).returncode
    if status or not plan.model.is_file():
        error = ConversionFailed(f"{plan.reference}: no model was made; what was fetched is kept in {plan.folder}")
        error.exit_code = status if status > 0 else 1
        raise error
