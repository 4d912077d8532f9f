"""What it takes to have a model of the catalogue: files to fetch, room on the disk, memory. Asks, and writes nothing.

Standard library only.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dllama import machine
from dllama.errors import DllamaError, NotEnoughMemory
from dllama.hub import folders
from dllama.hub.catalogue import CONTEXT, Entry
from dllama.hub.part_file import NotEnoughDisk
from dllama.hub.part_state import bytes_there, source_names
from dllama.hub.probe import ask_facts
from dllama.hub.progress import size_text
from dllama.hub.remote import Facts, Server

_TOKENIZER_BYTES = 3 << 20  # of a tokenizer, until the server says more
_RESERVE_BYTES = 64 << 20  # left free on a disk


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file of a model.

    Attributes:
        target: Where it belongs.
        urls: Where its parts are.
        facts: What the server says of each.
        size: Bytes of the whole file, of the server's or else the catalogue's knowledge.
        have: Bytes that are there.
        is_there: Whether it is there whole.
    """

    target: Path
    urls: tuple[str, ...]
    facts: tuple[Facts, ...]
    size: int
    have: int
    is_there: bool

    @property
    def missing(self) -> int:
        """Bytes to fetch."""
        return 0 if self.is_there else max(0, self.size - self.have)

    def line(self) -> str:
        """Say it in one line."""
        what = "is there" if self.is_there else "to fetch"
        if self.have and not self.is_there:
            what = f"{size_text(self.have)} are there, {size_text(self.missing)} to fetch"
        parts = f", in {len(self.urls)} parts" if len(self.urls) > 1 else ""
        return f"{self.target.name}: {size_text(self.size)}{parts}, {what}"

    def as_json(self) -> dict[str, object]:
        """Say it for programs."""
        return {
            "path": str(self.target),
            "urls": list(self.urls),
            "bytes": self.size,
            "bytes_there": self.size if self.is_there else self.have,
            "is_there": self.is_there,
        }


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What it takes to have a model.

    Attributes:
        entry: The model.
        folder: Where it belongs, or is.
        files: Its tokenizer, then its ``.m`` file.
        free_disk: Bytes free on that disk.
        free_memory: Bytes free in memory; None if this system does not tell.
        trouble: Why the server did not answer; the sizes are the catalogue's then.
    """

    entry: Entry
    folder: Path
    files: tuple[FilePlan, ...]
    free_disk: int
    free_memory: int | None
    trouble: str = ""

    @property
    def missing(self) -> int:
        """Bytes to fetch."""
        return sum(file.missing for file in self.files)

    def problems(self, *, is_run: bool) -> list[DllamaError]:
        """List what keeps the model from being downloaded and, if that is meant too, from being run."""
        found = [self._disk_problem(), self._memory_problem() if is_run else None]
        return [problem for problem in found if problem]

    def _disk_problem(self) -> DllamaError | None:
        """Say what is wrong if the disk lacks room for what is missing."""
        return disk_problem(self.entry.name, self.folder, self.missing, self.free_disk)

    def _memory_problem(self) -> DllamaError | None:
        """Say what is wrong if the model would not fit into memory."""
        if self.free_memory is None or self.entry.memory_bytes <= self.free_memory:
            return None
        need, have = size_text(self.entry.memory_bytes), size_text(self.free_memory)
        advice = "free some, choose a smaller model, or only download it, with -skip-run"
        text = f"needs {need} of memory at a context of {CONTEXT} tokens, but {have} are free; {advice}"
        return NotEnoughMemory(f"{self.entry.name}: {text}")

    def lines(self) -> list[str]:
        """Say it for people."""
        lines = [f"📦 {self.entry.name} in {self.folder}"]
        for file in self.files:
            lines.append(f"   {file.line()}")
            lines += [f"      {url}" for url in file.urls if not file.is_there]
        if self.trouble:
            lines.append(f"⚠️ {self.trouble}: these sizes are the catalogue's")
        lines.append(f"💾 Disk: {size_text(self.missing)} to fetch, {size_text(self.free_disk)} free")
        free = "unknown" if self.free_memory is None else size_text(self.free_memory)
        need = size_text(self.entry.memory_bytes)
        return [*lines, f"📀 Memory: {need} at a context of {CONTEXT} tokens, {free} free"]

    def as_json(self) -> dict[str, object]:
        """Say it for programs."""
        return {
            "name": self.entry.name,
            "folder": str(self.folder),
            "files": [file.as_json() for file in self.files],
            "disk": {"needed_bytes": self.missing, "free_bytes": self.free_disk},
            "memory": {"needed_bytes": self.entry.memory_bytes, "free_bytes": self.free_memory},
            "server_trouble": self.trouble or None,
        }


def make_plan(entry: Entry, server: Server, *, is_offline: bool) -> ModelPlan:
    """Find out what is there and what is missing.

    Raises:
        DownloadFailed: A file that is missing is not to be had.
    """
    folder = folder_of(entry.name)
    wanted = {
        folder / entry.tokenizer_name: ((entry.tokenizer_file,), _TOKENIZER_BYTES),
        folder / entry.model_name: (entry.model_files, entry.model_bytes),
    }
    urls = {target: tuple(server.url(entry.page, part) for part in parts) for target, (parts, _) in wanted.items()}
    asked = [url for target in urls for url in urls[target] if not target.exists()]
    facts, trouble = ([Facts()] * len(asked), "HF_HUB_OFFLINE is set") if is_offline else ask_facts(server, asked)
    known = dict(zip(asked, facts, strict=True))
    files = tuple(
        plan_file(target, urls[target], tuple(known.get(url, Facts()) for url in urls[target]), size)
        for target, (_, size) in wanted.items()
    )
    return ModelPlan(entry, folder, files, free_disk(folder), free_memory(), trouble if asked else "")


def plan_file(target: Path, urls: tuple[str, ...], facts: tuple[Facts, ...], size: int) -> FilePlan:
    """Say what is there of a file and what is missing; ``size`` is taken if the server did not say it."""
    if target.exists():
        size = folders.size_of(target)
        return FilePlan(target, urls, facts, size, size, is_there=True)
    sizes = [each.size for each in facts]
    whole = sum(each or 0 for each in sizes) if None not in sizes else size
    return FilePlan(target, urls, facts, whole, bytes_there(target, source_names(urls)), is_there=False)


def disk_problem(name: str, folder: Path, need: int, free: int, what: str = "") -> NotEnoughDisk | None:
    """Say what is wrong if the disk lacks room; ``what`` is what the room is for."""
    if need == 0 or need + _RESERVE_BYTES <= free:
        return None
    wanted, have = size_text(need + _RESERVE_BYTES), size_text(free)
    advice = "make room, or name a folder on another disk in DLLAMA_MODELS"
    return NotEnoughDisk(f"{name}: needs {wanted} in {folder}{what}, but {have} are free; {advice}")


def folder_of(name: str) -> Path:
    """Where a model is, whole or not, or else belongs: in the first folder of models that can be written to."""
    found = folders.find_installed(name)
    if found is not None:
        return found.folder
    dirs = folders.model_dirs()
    is_chosen = bool(os.environ.get("DLLAMA_MODELS"))
    parent = dirs[0] if is_chosen else next((each for each in dirs if os.access(_existing(each), os.W_OK)), dirs[0])
    return parent / name


def free_disk(folder: Path) -> int:
    """Bytes free on the disk on which ``folder`` is or would be."""
    return shutil.disk_usage(_existing(folder)).free


def free_memory() -> int | None:
    """Bytes free in memory; None if that takes packages that are not installed yet."""
    try:
        return machine.available_memory()
    except ImportError:
        return None


def _existing(folder: Path) -> Path:
    """The folder itself, or the first one above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())
