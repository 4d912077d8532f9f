"""What can go wrong, and the exit code each mistake ends in.

DllamaError              1  anything that went wrong while running
├── UsageError           2  flags, prompts and settings that cannot be used as given
│   ├── ContextFull         a prompt longer than the context
│   └── UnsupportedIsa      DLLAMA_ISA names a level this CPU or build lacks
├── BadFile              3  a file that is not what it claims to be
│   └── UnsupportedModel    a sound file of a model that dllama cannot run
├── TemplateError        3  a chat template that is broken or does what templates may not do (in dllama.text)
├── EngineStopped        1  a step failed for good (in dllama.engine)
├── ClusterError         4  a worker that cannot be reached, authenticated or used
│   └── WorkerLost       7  a worker that went away while in use
├── DownloadFailed       6  what is there is kept (in dllama.hub, as the next two)
├── NotEnoughDisk        5
├── SetupError           1  .venv could not be made or the core not compiled
└── NotEnoughMemory      5  the plan needs more memory than is free
"""

from __future__ import annotations

from os import PathLike, fspath


class DllamaError(Exception):
    """Base of every error a user can cause or meet; its text is one line that says what to do."""

    exit_code = 1


class UsageError(DllamaError):
    """A flag, prompt or setting that cannot be used as given."""

    exit_code = 2


class ContextFull(UsageError):
    """A prompt and the tokens wanted after it do not fit the context."""


class UnsupportedIsa(UsageError):
    """``DLLAMA_ISA`` names a level that is unknown, not built, or missing in this CPU."""


class BadFile(DllamaError):
    """A file that is not what it claims to be.

    Args:
        path: The file.
        place: Where in it, e.g. ``"byte 8 (header key 2, hidden_size)"``; empty for the whole file.
        expected: What should have been there.
        found: What is there.
    """

    exit_code = 3

    def __init__(self, path: str | PathLike[str], place: str, expected: str, found: str) -> None:
        self.path, self.place, self.expected, self.found = fspath(path), place, expected, found
        where = f"{self.path}: {place}" if place else self.path
        super().__init__(f"{where}: expected {expected}, found {found}")


class UnsupportedModel(BadFile):
    """A sound file of a model that dllama cannot run, named."""


class NotEnoughMemory(DllamaError):
    """The plan needs more memory than is free; raised before anything is allocated."""

    exit_code = 5


class ClusterError(DllamaError):
    """A worker, or a root, that cannot be reached, authenticated or used."""

    exit_code = 4


class WorkerLost(ClusterError):
    """A worker that went away while it was needed.

    Args:
        name: The worker as the user named it, e.g. ``"10.0.0.2:9999"``.
        why: What was seen of it last.
    """

    exit_code = 7

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why
        super().__init__(f"worker {name} was lost: {why}")
