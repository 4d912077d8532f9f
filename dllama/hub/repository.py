"""What a Hugging Face repository holds, and which of its files a model needs. Asks a server, and writes nothing.

Standard library only. Names of files come from the server: none is used that is not a plain name of a known kind.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dllama.errors import UnsupportedModel, UsageError
from dllama.hub.folders import CONFIG, INDEX, SINGLE, SMALL_FILES, TOKENIZERS
from dllama.hub.remote import DownloadFailed, Server, Trouble, insist

PREFIX = "hf:"
_FORM = "hf:ORG/MODEL, hf:ORG/MODEL@REVISION or, to choose a GGUF file, hf:ORG/MODEL:Q4_K_M"
_REFERENCE = re.compile(r"([\w.-]{1,96})/([\w.-]{1,96})(?:@([\w./-]{1,128}))?(?::([\w./-]{1,256}))?", re.ASCII)
_PLAIN = re.compile(r"[\w-][\w.-]{0,200}", re.ASCII)  # neither hidden nor a path
_UNREAD_TYPE = re.compile(r"(?:^|[-._/])((?:IQ|TQ)[1-9]\w*|MXFP4\w*)", re.IGNORECASE)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_LARGEST_LISTING = 32 << 20  # bytes; repositories of thousands of files have 1 or 2 MB
_LONGEST_ANSWER_S = 60.0
_WAITS_S = (1.0, 3.0)  # between attempts


@dataclass(frozen=True, slots=True)
class Reference:
    """A model as users name it on Hugging Face.

    Attributes:
        page: ``ORG/MODEL``.
        revision: A branch, tag or commit.
        choice: The end of a GGUF file's name, or all of it; empty for none.
    """

    page: str
    revision: str = "main"
    choice: str = ""

    @property
    def name(self) -> str:
        """What the model is called on this disk."""
        return re.sub(r"[^a-z0-9.]+", "_", f"{self.page}_{_stem(self.choice)}".lower()).strip("._")

    @property
    def model_name(self) -> str:
        """What the file is called that is made of its weights."""
        return f"dllama_model_{self.name}_q40.m"

    def __str__(self) -> str:
        """Write it as users do."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{self.page}{revision}{f':{self.choice}' if self.choice else ''}"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    names: tuple[str, ...]


def parse_reference(text: str) -> Reference:
    """Read ``hf:ORG/MODEL[@REVISION][:CHOICE]``. Raises UsageError for anything else."""
    found = _REFERENCE.fullmatch(text.removeprefix(PREFIX))
    if not found or any(set(part) == {"."} for part in re.split("[/@:]", text.removeprefix(PREFIX))):
        raise UsageError(f"{text!r:.100}: expected {_FORM}")
    owner, model, revision, choice = found.groups()
    reference = Reference(f"{owner}/{model}", revision or "main", choice or "")
    if not reference.name:
        raise UsageError(f"{text!r:.100}: expected {_FORM}")
    return reference


def read_listing(server: Server, page: str, revision: str) -> Listing:
    """Ask which files a repository has.

    Raises:
        DownloadFailed: It is not to be had, or the server does not answer as Hugging Face's do.
    """
    url = f"{server.endpoint}/api/models/{page}/revision/{quote(revision, safe='')}"
    answer = _read_json(server, url)
    try:
        names = tuple(str(sibling["rfilename"]) for sibling in answer["siblings"])
        commit = str(answer["sha"])
    except (KeyError, TypeError):
        raise DownloadFailed(f"{url}: the answer is no list of files; is HF_ENDPOINT right?") from None
    if not re.fullmatch("[0-9a-f]{40,64}", commit):
        raise DownloadFailed(f"{url}: expected a commit, found {commit!r:.80}")
    return Listing(commit, names)


def choose_files(server: Server, reference: Reference, listing: Listing) -> list[str]:
    """Choose what to fetch: the model's weights, and the small files that its tokenizer and its answers need.

    Returns:
        Names in the repository, small files first.

    Raises:
        UsageError: Several GGUF files are there, and none was chosen.
        UnsupportedModel: The repository holds no weights that dllama reads.
        DownloadFailed: The list of the weights' files is not to be had.
    """
    names = set(listing.names)
    ggufs = sorted(name for name in names if _is_gguf_model(name))
    if reference.choice or not any(name.endswith(".safetensors") for name in names):
        return _choose_gguf(reference, ggufs, names)
    if CONFIG not in names:
        raise _unsupported(reference, CONFIG, "none")
    if SINGLE in names:
        weights = [SINGLE]  # as transformers does, which then looks for no index
    elif INDEX in names:
        weights = [INDEX, *_indexed_files(server, reference, listing, names)]
    else:
        others = sorted(name for name in names if name.endswith(".safetensors"))
        raise _unsupported(reference, f"{SINGLE} or its index", ", ".join(others)[:120])
    if not names & {*TOKENIZERS}:
        raise _unsupported(reference, " or ".join(TOKENIZERS), "neither; choose another repository")
    return [*(name for name in SMALL_FILES if name in names), *weights]


def _indexed_files(server: Server, reference: Reference, listing: Listing, names: set[str]) -> list[str]:
    """Read from the index which files hold the weights."""
    index = _read_json(server, server.url(reference.page, INDEX, listing.commit))
    try:
        files = sorted({str(file) for file in index["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        raise _unsupported(reference, f"weight_map in {INDEX}", "something else") from None
    for file in files:
        if not (_PLAIN.fullmatch(file) and file.endswith(".safetensors") and file in names):
            raise _unsupported(reference, f"files of the repository in {INDEX}", f"{file!r:.80}")
    if not files:
        raise _unsupported(reference, f"files in {INDEX}", "none")
    return files


def _choose_gguf(reference: Reference, ggufs: list[str], names: set[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in ggufs:
        groups.setdefault(_stem(name), []).append(name)
    if not groups:
        raise _no_weights(reference, names)
    wanted = _stem(reference.choice).lower()
    endings = tuple(f"{mark}{wanted}" for mark in "-._/") if wanted else ("",)
    exact = [stem for stem in groups if stem.lower() == wanted]
    fitting = exact or [stem for stem in groups if f"/{stem.lower()}".endswith(endings)]
    if len(fitting) != 1:
        raise UsageError(_which(reference, fitting, sorted(groups)))
    if unread := _UNREAD_TYPE.search(
        fitting[0]
    ):  # said before it is fetched; its types are looked at when it is opened
        expected = "Q4_0, Q8_0, a K type, F16, BF16 or F32"
        raise _unsupported(reference, f"{expected} in the name of a GGUF file", f"{unread[1]}; choose another file")
    return groups[fitting[0]]


def _which(reference: Reference, fitting: list[str], stems: list[str]) -> str:
    """Say what there is to choose from."""
    if not reference.choice:
        what = f"{len(stems)} GGUF files are there, none is chosen"
    elif fitting:
        what, stems = f"{len(fitting)} GGUF files fit {reference.choice}", sorted(fitting)
    else:
        what = f"no GGUF file's name ends in {reference.choice}"
    example = f"{PREFIX}{reference.page}:{stems[0]}"
    return f"{reference}: {what}; choose one, e.g. {example}, of: {', '.join(stems)[:1000]}"


def _no_weights(reference: Reference, names: set[str]) -> Exception:
    if reference.choice:
        return UsageError(f"{reference}: the repository has no GGUF files")
    pickled = sorted(name for name in names if name.endswith((".bin", ".pth", ".pt")))
    found = f"{pickled[0]!r:.80} and no others: pickled files can run any program" if pickled else "neither"
    return _unsupported(reference, "weights as .safetensors or .gguf", f"{found}; choose another repository")


def _unsupported(reference: Reference, expected: str, found: str) -> UnsupportedModel:
    return UnsupportedModel(str(reference), "", expected, found)


def _stem(name: str) -> str:
    """Give what the parts of a GGUF file have in common: its name without number and ending."""
    return _SPLIT.sub("", name.removesuffix(".gguf"))


def _is_gguf_model(name: str) -> bool:
    """Whether this is the plain path of a model, and not of what turns pictures into its input."""
    parts = name.split("/")
    is_plain = all(_PLAIN.fullmatch(part) for part in parts)
    return is_plain and name.endswith(".gguf") and not parts[-1].lower().startswith("mmproj")


def _read_json(server: Server, url: str) -> Any:
    """Read a document of the server's."""
    try:
        return json.loads(insist(lambda: _read_all(server, url), _WAITS_S))
    except Trouble as trouble:
        raise DownloadFailed(str(trouble)) from trouble
    except (ValueError, RecursionError):
        raise DownloadFailed(f"{url}: expected JSON, found something else; is HF_ENDPOINT right?") from None


def _read_all(server: Server, url: str) -> bytes:
    data, end = bytearray(), time.monotonic() + _LONGEST_ANSWER_S
    with contextlib.closing(server.ask(url)) as answer:
        while piece := answer.read(1 << 18):
            data += piece
            if len(data) > _LARGEST_LISTING:
                raise DownloadFailed(f"{url}: more than {_LARGEST_LISTING} bytes, which is no list of files")
            if time.monotonic() > end:
                raise Trouble(f"{url}: not all came in {_LONGEST_ANSWER_S:.0f} s")
        if answer.length is not None and len(data) < answer.length:
            raise Trouble(f"{url}: the connection was cut")
    return bytes(data)


def read_config(server: Server, reference: Reference, commit: str) -> Any:
    """Read a model's ``config.json``."""
    return _read_json(server, server.url(reference.page, CONFIG, commit))
