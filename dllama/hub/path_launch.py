"""``launch.py PATH``: talk to a model that is on this disk already: a ``.m`` or GGUF file, or a Hugging Face folder.

Standard library only. Nothing is fetched, and nothing of the user's is changed.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from dllama.errors import UnsupportedModel, UsageError
from dllama.hub import checkout
from dllama.hub.file_check import check_file
from dllama.hub.model_launch import run_model

_FILES = (".m", ".gguf")


def is_path(name: str) -> bool:
    """Whether a name on the command line means a file or folder rather than a model of the catalogue."""
    return os.sep in name or name.endswith(_FILES) or Path(name).exists()


def launch_path(name: str, options: argparse.Namespace) -> int:
    """Look whether this can be a model, set dllama up, write a script and run it."""
    path = Path(os.path.abspath(name))  # noqa: PTH100  (links stay what they are)
    _check(path)
    if not options.skip_run:
        with checkout.only_one():
            checkout.set_up([])
    script = re.sub(r"[^\w.-]+", "_", path.name).strip("._") or "model"
    return run_model(script, path, None, options, source=str(path))


def _check(path: Path) -> None:
    """Refuse what cannot be a model, before minutes of setting up."""
    if path.is_dir():
        _check_folder(path)
    elif not path.is_file():
        raise UsageError(f"{path}: no such file or folder; python3 launch.py --list shows what can be downloaded")
    elif path.suffix not in _FILES:
        raise UsageError(f"{path}: expected a .m or .gguf file, or a folder with config.json")
    else:
        check_file(path, path.suffix)


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if "params.json" in names and any(name.endswith(".pth") for name in names):
        advice = f"make a .m file of it: python3 converters/convert_llama.py {folder} q40"
        raise UnsupportedModel(folder, "", "a Hugging Face folder", f"a checkpoint of Meta's; {advice}")
    if "config.json" not in names:
        raise UnsupportedModel(folder, "", "a folder with config.json and .safetensors files", "no config.json")
    if not any(name.endswith(".safetensors") for name in names):
        found = (
            "pickled weights (.bin), which can run any program" if any(n.endswith(".bin") for n in names) else "none"
        )
        raise UnsupportedModel(folder, "", "weights in .safetensors files", found)
