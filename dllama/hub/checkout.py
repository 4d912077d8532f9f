"""Setting up ``.venv`` of a checkout: what is missing or older than the sources is installed and compiled into it.

Standard library only, since this is what brings everything else. ``launch.py`` calls it for its users and ``make`` for
developers, so there is one way to build. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from dllama.errors import DllamaError, UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "dllama-setup.json"
LOG = ROOT / "build" / "setup.log"
COMPILED_FROM = ("CMakeLists.txt", "cmake", "csrc", "pyproject.toml", "dllama/__init__.py")
COMPLAINT = re.compile(r"error: (?!subprocess-exited)|CMake Error|undefined reference", re.IGNORECASE)
SHOWN_LINES = 12  # of the output of a stage that failed


class SetupError(DllamaError):
    """A set-up that failed; its text says what to do."""


def missing_packages() -> list[str]:
    """Debian packages without which the core cannot be built here."""
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    found = {
        "g++": any(name and shutil.which(name) for name in compilers),
        "python3-dev": headers.is_file(),
        "python3-venv": importlib.util.find_spec("ensurepip") is not None,
    }
    return [package for package, is_there in found.items() if not is_there]


def program() -> Path:
    """The command ``dllama`` that a set-up leads to."""
    return VENV / "bin" / "dllama"


def check_system() -> None:
    """Raise UsageError if this system cannot build dllama."""
    missing = missing_packages()
    if missing:
        raise UsageError(
            f"missing on this system: {', '.join(missing)}. On Debian or Ubuntu run: "
            f"sudo apt-get install -y {' '.join(missing)}"
        )


# --- what is installed, and from what -----------------------------------------------------------


def digest(*parts: str | Path) -> str:
    """Hash of words and of the files in paths, their names included."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(os.fsencode(part) + b"\0")
            continue
        files = sorted(part.rglob("*")) if part.is_dir() else [part]
        for file in files:
            if file.is_file():
                total.update(bytes(file.relative_to(ROOT)) + b"\0")
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def requirements(extras: list[str]) -> list[str]:
    """What pip must install before the core is compiled: build tools, what dllama imports, and the named extras."""
    import tomllib

    page = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted: list[str] = [*page["build-system"]["requires"], "cmake>=3.20", "ninja", *page["project"]["dependencies"]]
    optional: dict[str, list[str]] = page["project"]["optional-dependencies"]
    for extra in extras:
        if extra not in optional:
            raise UsageError(f"unknown extra '{extra}'; available: {', '.join(optional)}")
        wanted += optional[extra]
    return wanted


def read_stamp() -> dict[str, object]:
    """What the last set-up finished; empty if there was none or it is unreadable."""
    try:
        stamp = json.loads(STAMP.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp: dict[str, object]) -> None:
    """Replace the stamp in one go."""
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(stamp, indent=1), "utf-8")
    fresh.replace(STAMP)


# --- the stages ---------------------------------------------------------------------------------


class Stage:
    """One line of progress: what is being done, for how long, and how far it is."""

    def __init__(self, title: str, usual: str) -> None:
        self.title, self.start, self.live = title, time.monotonic(), sys.stdout.isatty()
        self.live = self.live and os.environ.get("TERM") != "dumb"
        self.detail = ""
        print(f"⏳ {title} ({usual})", end="\r" if self.live else "\n", flush=True)

    def show(self, detail: str | None) -> None:
        """Rewrite the line, with a new detail or the last one; only on a terminal."""
        self.detail = detail or self.detail
        if self.live:
            print(f"\x1b[2K⏳ {self.title}: {self.elapsed()} {self.detail}", end="\r", flush=True)

    def done(self) -> None:
        """End the line."""
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}✅ {self.title}: {self.elapsed()}", flush=True)

    def elapsed(self) -> str:
        """Whole seconds since the start."""
        return f"{time.monotonic() - self.start:.0f} s"


def run_stage(title: str, usual: str, command: list[str], log: IO[str]) -> None:
    """Run one command with its output in the log; show the compiler's ``[3/40]`` as it goes."""
    stage = Stage(title, usual)
    log.write(f"\n=== {title}: {' '.join(command)}\n")
    log.flush()
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line.rstrip())
            counted = re.search(r"\[\d+/\d+\]", line)
            stage.show(counted[0] if counted else None)
    if process.returncode:
        which, why = what_failed([line for line in lines if line])
        shown = "\n".join(f"   {line}" for line in why)
        raise SetupError(f"{title}: failed; the whole log is {from_here(LOG)}, {which}\n{shown}")
    stage.done()


def what_failed(lines: list[str]) -> tuple[str, list[str]]:
    """Pick the first error of a compiler, CMake or pip with what follows it; else the end, often pip's summary."""
    for number, line in enumerate(lines):
        if COMPLAINT.search(line):
            return "its first error is", lines[number : number + SHOWN_LINES]
    return "its last lines are", lines[-SHOWN_LINES:]


def from_here(path: Path) -> str:
    """Write a path so that a shell takes it where the user stands."""
    short = os.path.relpath(path)
    return shlex.quote(short if "/" in short else f"./{short}")


def make_venv(stamp: dict[str, object], base: str, log: IO[str]) -> dict[str, object]:
    """Make ``.venv``, from nothing if an earlier attempt was cut short or Python or the place has changed."""
    python = VENV / "bin" / "python"
    is_sound = stamp.get("base", base) == base and not stamp.get("unfinished")
    has_pip = is_sound and python.exists() and not subprocess.run(
        [python, "-c", "import pip"], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not has_pip:
        command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
        run_stage("Making .venv", "some seconds", command, log)
        stamp = {}
    return {**stamp, "base": base}


class _Wanted(NamedTuple):
    """What a set-up should lead to, and what the last one led to."""

    base: str
    packages: list[str]
    core: str
    stamp: dict[str, object]

    def installed(self) -> list[str]:
        """Packages that the last set-up installed."""
        have = self.stamp.get("packages")
        return have if isinstance(have, list) else []

    def has_packages(self) -> bool:
        """Whether all that is wanted is installed."""
        is_sound = self.stamp.get("base") == self.base and not self.stamp.get("unfinished")
        return is_sound and set(self.packages) <= set(self.installed())

    def is_met(self) -> bool:
        """Whether nothing is left to do."""
        return self.has_packages() and self.stamp.get("core") == self.core


def _look(extras: list[str]) -> _Wanted:
    base = digest(str(ROOT), sys.version, sys.executable)
    core = digest(*(ROOT / name for name in COMPILED_FROM))
    return _Wanted(base, requirements(extras), core, read_stamp())


def check_can_set_up() -> None:
    """Raise UsageError if a set-up is due and this system lacks what it takes."""
    if not _look([]).is_met():
        check_system()


def set_up(extras: list[str]) -> None:
    """Bring ``.venv`` up to date with the sources; a second call without changes does nothing."""
    wanted = _look(extras)
    if wanted.is_met():
        return
    check_system()
    stamp = wanted.stamp
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        if not wanted.has_packages():
            stamp = make_venv(stamp, wanted.base, log)
            write_stamp({**stamp, "unfinished": True})
            pip = [str(VENV / "bin" / "python"), "-m", "pip", "install"]
            run_stage("Installing packages", "about a minute", [*pip, *wanted.packages], log)
            kept = wanted.installed() if stamp.get("packages") else []
            stamp = {**stamp, "packages": sorted({*kept, *wanted.packages})}
            write_stamp(stamp)
        if stamp.get("core") != wanted.core:
            compile_core(log)
            write_stamp({**stamp, "core": wanted.core})


def compile_core(log: IO[str]) -> None:
    """Compile and install dllama itself; its Python files stay where they are."""
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps"]
    run_stage("Compiling the core", "one to three minutes", [*pip, "--editable", str(ROOT)], log)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Wait until no other set-up of this checkout runs."""
    import fcntl

    with (ROOT / "launch.py").open("rb") as me:
        try:
            fcntl.flock(me, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("⏳ Another set-up of this checkout is running: waiting for it", flush=True)
            fcntl.flock(me, fcntl.LOCK_EX)
        yield
