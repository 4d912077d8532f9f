"""What the commands of ``dllama models`` share: in what state a model is, and finding one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dllama.cli.parser import suggestion
from dllama.errors import DllamaError, UnsupportedModel, UsageError
from dllama.hub import folders
from dllama.hub.catalogue import CATALOGUE, Entry, find_entry
from dllama.hub.repository_plan import origin_of

if TYPE_CHECKING:
    from dllama.hub.folders import Installed


class State(NamedTuple):
    """Whether a model can be run, in a word, and if not, why."""

    word: str  # "ready", "unfinished", "incomplete", "unsupported", "broken"
    problem: str | None = None


def state_of(model: Installed) -> State:
    """Look at a model's files, and into the header of the model file."""
    if not model.is_complete:
        missing = model.tokenizer if folders.is_model(model.model) else model.model
        if find_entry(model.name):
            return State("unfinished", f"python3 launch.py {model.name} goes on with the download")
        if origin := origin_of(model.folder):
            return State("unfinished", f"python3 launch.py {origin.reference} goes on with the download")
        if model.leftovers:
            return State("unfinished", "its download did not end, and python3 launch.py has no model of this name")
        return State("incomplete", f"there is no {missing.name}")
    from dllama.formats.open_model import open_model

    try:
        open_model(model.model).close()
    except UnsupportedModel as error:
        return State("unsupported", str(error))
    except DllamaError as error:
        return State("broken", str(error))
    return State("ready")


def find(name: str) -> Installed | Entry:
    """Find a model on this disk, or else in the catalogue.

    Raises:
        UsageError: There is no such model.
    """
    found = folders.find_installed(name) or find_entry(name)
    if found is None:
        known = [folders.BUNDLED, *(model.name for model in folders.installed_models()), *CATALOGUE]
        hint = suggestion(name.replace("-", "_"), known)
        raise UsageError(f"unknown model '{name}'{hint}; dllama models list --all shows all names")
    return found
