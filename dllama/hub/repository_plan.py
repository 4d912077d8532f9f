"""What it takes to have a model of a Hugging Face repository: files to fetch, and room for them and what they become.

Standard library only. A folder remembers in ``origin.json`` which commit its files are of, so that a download that is
gone on with weeks later never mixes two versions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dllama.errors import UsageError
from dllama.hub import folders
from dllama.hub.folders import ORIGIN
from dllama.hub.model_plan import RESERVE_BYTES, FilePlan, folder_of, free_disk, plan_file
from dllama.hub.part_file import NotEnoughDisk
from dllama.hub.probe import ask_facts
from dllama.hub.progress import size_text
from dllama.hub.remote import DownloadFailed, Server
from dllama.hub.repository import Reference, choose_files, embedding_bytes, read_listing

WEIGHTS = (".safetensors", ".safetensors.index.json")
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
        embedding_bytes: Of the embedding in a ``.m`` file.
    """

    reference: Reference
    origin: Origin
    folder: Path
    files: tuple[FilePlan, ...]
    free_disk: int
    embedding_bytes: int = 0

    @property
    def model(self) -> Path:
        """The file that is run in the end."""
        gguf = next((file.target for file in self.files if file.target.suffix == ".gguf"), None)
        return gguf or self.folder / self.reference.model_name

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
        if not self.is_converted or self.model.exists():
            return 0
        weights = sum(file.size for file in self.files if file.target.name.endswith(WEIGHTS))
        # A model without an output matrix of its own has the embedding a second time, as Q40.
        return int(_CONVERTED_SHARE * weights + 1.2 * self.embedding_bytes)

    def problem(self) -> NotEnoughDisk | None:
        """Say what is wrong if the disk lacks room."""
        need = self.missing + self.converted_bytes
        if need == 0 or need + RESERVE_BYTES <= self.free_disk:
            return None
        wanted, have = size_text(need + RESERVE_BYTES), size_text(self.free_disk)
        what = " for its files and the model that is made of them" if self.converted_bytes else ""
        advice = "make room, or name a folder on another disk in DLLAMA_MODELS"
        return NotEnoughDisk(f"{self.reference}: needs {wanted} in {self.folder}{what}, but {have} are free; {advice}")

    def lines(self) -> list[str]:
        """Say it for people."""
        lines = [f"📦 {self.reference} in {self.folder}", *(f"   {file.line()}" for file in self.files)]
        if self.converted_bytes:
            lines.append(f"   {self.model.name}: at most {size_text(self.converted_bytes)}, made of these (Q40)")
        lines.append(f"💾 Disk: {size_text(self.missing)} to fetch, {size_text(self.free_disk)} free")
        if self.is_converted:
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
        }


def make_plan(reference: Reference, server: Server) -> RepositoryPlan:
    """Find out what is there and what is missing.

    Raises:
        UsageError: The folder holds another repository or revision, or no file was chosen of several.
        UnsupportedModel: The repository holds no weights that dllama reads.
        DownloadFailed: A file that is missing is not to be had.
    """
    folder = folder_of(reference.name)
    origin = read_origin(folder, reference)
    listing = read_listing(server, reference.page, origin.commit if origin else reference.revision)
    origin = origin or Origin(str(reference), listing.commit)
    names = choose_files(server, reference, listing)
    is_converted = not any(name.endswith(".gguf") for name in names)
    if is_converted and (folder / reference.model_name).exists():  # its weights are not needed again
        names = [name for name in names if not name.endswith(WEIGHTS)]
    targets = {folder / name.rpartition("/")[2]: server.url(reference.page, name, origin.commit) for name in names}
    asked = [url for target, url in targets.items() if not target.exists()]
    facts, trouble = ask_facts(server, asked)
    if trouble:
        raise DownloadFailed(trouble)
    known = dict(zip(asked, facts, strict=True))
    files = tuple(
        plan_file(target, (url,), (known[url],) if url in known else (), 0) for target, url in targets.items()
    )
    embedding = embedding_bytes(server, reference, origin.commit) if is_converted else 0
    return RepositoryPlan(reference, origin, folder, files, free_disk(folder), embedding)


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
    """Note in the folder where its files are from."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    fresh = plan.folder / f"{ORIGIN}.new"
    fresh.write_text(json.dumps(asdict(plan.origin), indent=1), "utf-8")
    fresh.replace(plan.folder / ORIGIN)


def remove_weights(folder: Path) -> int:
    """Remove what was fetched of a model that is made of it, and nothing of others; give the bytes that this freed."""
    freed = 0
    for path in folder.iterdir() if origin_of(folder) else ():
        if path.name.endswith(WEIGHTS):
            freed += folders.size_of(path)
            path.unlink(missing_ok=True)
    return freed
