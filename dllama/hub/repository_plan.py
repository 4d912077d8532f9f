"""What it takes to have a model of a Hugging Face repository: files to fetch, and room for them and what they become.

Standard library only. A folder remembers in ``origin.json`` which commit its files are of, so that a download that is
gone on with weeks later never mixes two versions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dllama.errors import DllamaError, NotEnoughMemory, UsageError
from dllama.hub import folders
from dllama.hub.config_facts import ConfigFacts, read_facts
from dllama.hub.folders import ORIGIN, is_weights
from dllama.hub.model_plan import FilePlan, disk_problem, folder_of, free_disk, free_memory, plan_file
from dllama.hub.part_file import NotEnoughDisk
from dllama.hub.probe import ask_facts
from dllama.hub.progress import size_text
from dllama.hub.remote import DownloadFailed, Server
from dllama.hub.repository import Reference, choose_files, read_config, read_listing

_CONVERTED_SHARE = 18 / 64  # of 16-bit numbers, as Q40


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a folder's files are from.

    Attributes:
        reference: As the user named it.
        commit: What that meant when the download began.
    """

    reference: str
    commit: str


@dataclass(frozen=True, slots=True)
class RepositoryPlan:
    """What it takes to have a model of a repository.

    Attributes:
        reference: The model.
        origin: The commit whose files are, or will be, there.
        folder: Where they belong.
        files: All that is needed, small ones first.
        free_disk: Bytes free on that disk.
        free_memory: Bytes free in memory; None if this system does not tell.
        config: What ``config.json`` says; None if the files are run as they are.
    """

    reference: Reference
    origin: Origin
    folder: Path
    files: tuple[FilePlan, ...]
    free_disk: int
    free_memory: int | None
    config: ConfigFacts | None

    @property
    def model(self) -> Path:
        """The file that is run in the end."""
        gguf = next((file.target for file in self.files if file.target.suffix == ".gguf"), None)
        return gguf or self.folder / self.reference.model_name

    @property
    def weights(self) -> list[FilePlan]:
        """What the ``.m`` file is made of."""
        return [file for file in self.files if is_weights(file.target.name)]

    @property
    def is_converted(self) -> bool:
        """Whether the files become a ``.m`` file, rather than being run as they are."""
        return self.model.suffix == ".m"

    @property
    def missing(self) -> int:
        """Bytes to fetch."""
        return sum(file.missing for file in self.files)

    @property
    def converted_bytes(self) -> int:
        """Most bytes of the file that is made of the weights; 0 if they are run as they are, or it is there."""
        if self.config is None or self.model.exists():
            return 0
        # A model without an output matrix of its own has the embedding a second time, as Q40.
        return int(_CONVERTED_SHARE * self._weight_bytes + 1.2 * self.config.embedding_bytes)

    @property
    def least_memory(self) -> int:
        """Bytes of memory that the ``.m`` file's matrices take at least; 0 if that is not known."""
        return self.config.least_memory(self._weight_bytes) if self.config else 0

    @property
    def _weight_bytes(self) -> int:
        return sum(file.size for file in self.weights)

    def problems(self, *, is_run: bool) -> list[DllamaError]:
        """List what keeps the model from being made and, if that is meant too, from being run on this machine."""
        found = [self._disk_problem(), self._memory_problem() if is_run else None]
        return [problem for problem in found if problem]

    def _memory_problem(self) -> NotEnoughMemory | None:
        """Say what is wrong if the model cannot fit into memory."""
        if self.free_memory is None or self.least_memory <= self.free_memory:
            return None
        need, have = size_text(self.least_memory), size_text(self.free_memory)
        advice = "choose a smaller model, or only download it, with -skip-run"
        return NotEnoughMemory(f"{self.reference}: needs at least {need} of memory, but {have} are free; {advice}")

    def _disk_problem(self) -> NotEnoughDisk | None:
        """Say what is wrong if the disk lacks room."""
        need = self.missing + self.converted_bytes
        what = " for its files and the model that is made of them" if self.converted_bytes else ""
        return disk_problem(str(self.reference), self.folder, need, self.free_disk, what)

    def lines(self) -> list[str]:
        """Say it for people."""
        lines = [f"📦 {self.reference} in {self.folder}", *(f"   {file.line()}" for file in self.files)]
        if self.converted_bytes:
            lines.append(f"   {self.model.name}: at most {size_text(self.converted_bytes)}, made of these (Q40)")
        lines.append(f"💾 Disk: {size_text(self.missing)} to fetch, {size_text(self.free_disk)} free")
        if self.is_converted:
            free = "unknown" if self.free_memory is None else size_text(self.free_memory)
            lines.append(f"📀 Memory: at least {size_text(self.least_memory)}, {free} free")
            lines.append("   The fetched weights are removed once the model is made")
        return lines

    def as_json(self) -> dict[str, object]:
        """Say it for programs."""
        return {
            "name": self.reference.name,
            **asdict(self.origin),
            "folder": str(self.folder),
            "files": [file.as_json() for file in self.files],
            "model": str(self.model),
            "disk": {
                "needed_bytes": self.missing + self.converted_bytes,
                "fetched_bytes": self.missing,
                "free_bytes": self.free_disk,
            },
            "memory": {"least_bytes": self.least_memory, "free_bytes": self.free_memory},
        }


def make_plan(reference: Reference, server: Server) -> RepositoryPlan:
    """Find out what is there and what is missing.

    Raises:
        UsageError: The folder holds another repository or revision, or no file was chosen of several.
        UnsupportedModel: The repository holds no model that dllama runs, as far as can be told without installing it.
        DownloadFailed: A file that is missing is not to be had.
    """
    folder = folder_of(reference.name)
    origin = read_origin(folder, reference)
    listing = read_listing(server, reference.page, origin.commit if origin else reference.revision)
    origin = origin or Origin(str(reference), listing.commit)
    names = choose_files(server, reference, listing)
    is_converted = not any(name.endswith(".gguf") for name in names)
    config = read_facts(str(reference), read_config(server, reference, origin.commit)) if is_converted else None
    if is_converted and (folder / reference.model_name).exists():  # its weights are not needed again
        names = [name for name in names if not is_weights(name)]
    targets = {folder / name.rpartition("/")[2]: server.url(reference.page, name, origin.commit) for name in names}
    asked = [url for target, url in targets.items() if not target.exists()]
    facts, trouble = ask_facts(server, asked)
    if trouble:
        raise DownloadFailed(trouble)
    known = dict(zip(asked, facts, strict=True))
    files = tuple(
        plan_file(target, (url,), (known[url],) if url in known else (), 0) for target, url in targets.items()
    )
    return RepositoryPlan(reference, origin, folder, files, free_disk(folder), free_memory(), config)


def read_origin(folder: Path, reference: Reference) -> Origin | None:
    """Read where a folder's files are from; None if there are none.

    Raises:
        UsageError: They are of another repository or revision, or nobody knows.
    """
    origin = origin_of(folder)
    if origin is None and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{reference}: {folder} holds files that are not of a repository; move them away")
    if origin is not None and origin.reference != str(reference):
        again = f"remove it first: dllama models remove {reference.name}"
        raise UsageError(f"{reference}: {folder} holds {origin.reference}; {again}")
    return origin


def origin_of(folder: Path) -> Origin | None:
    """Read what ``write_origin`` wrote; None if there is nothing of use."""
    try:
        raw = json.loads((folder / ORIGIN).read_text("utf-8"))
        return Origin(str(raw["reference"]), str(raw["commit"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write_origin(plan: RepositoryPlan) -> None:
    """Note in the folder where its files are from.

    Raises:
        UsageError: Another program has begun with another reference.
        DownloadFailed: It has begun with another commit.
    """
    if read_origin(plan.folder, plan.reference) not in (None, plan.origin):
        raise DownloadFailed(f"{plan.reference}: another program fetches another commit; run the same command again")
    fresh = plan.folder / f"{ORIGIN}.new"
    fresh.write_text(json.dumps(asdict(plan.origin), indent=1), "utf-8")
    fresh.replace(plan.folder / ORIGIN)


def remove_weights(folder: Path) -> int:
    """Remove what was fetched of a model that is made of it, and nothing of others; give the bytes that this freed."""
    freed = 0
    for path in folder.iterdir() if origin_of(folder) else ():
        if is_weights(path.name):
            freed += folders.size_of(path)
            path.unlink(missing_ok=True)
    return freed
