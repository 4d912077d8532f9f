#!/usr/bin/env python3
"""Start dllama from a fresh checkout: ``python3 launch.py demo``.

Needs Python 3.11 and its standard library alone. Checks for the compiler, makes ``.venv`` beside this file, installs
and compiles into it what is missing or older than the sources, then runs dllama. It knows nothing of models but where
the bundled one lies. ``make`` uses ``python3 launch.py setup``, so there is one way to build.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import SupportsWrite

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "dllama-setup.json"
LOG = ROOT / "build" / "setup.log"
DEMO = ROOT / "dllama" / "demo"
OLDEST_PYTHON = (3, 11)
COMPILED_FROM = ("CMakeLists.txt", "cmake", "csrc", "pyproject.toml", "dllama/__init__.py")
DEMO_PROMPT = "Once upon a time"
DEMO_SEED = 2
COMPLAINT = re.compile(r"error: (?!subprocess-exited)|CMake Error|undefined reference", re.IGNORECASE)
SHOWN_LINES = 12  # of the output of a stage that failed

NEXT_STEPS = """
That was the bundled model, on this machine's CPU. Next things to try:

  {dllama} inference --model {model} --tokenizer {tokenizer} --prompt "Once upon a time, there was a little fox"
      another story, a new one each time; --seed N repeats one
  {dllama} inference --model YOUR.m --tokenizer YOUR.t --prompt "Hello" --steps 64
      a model file of distributed-llama's that you have
  {dllama} bench -m {model} -p 64 -n 32
      how fast this machine is
  {dllama} --help
      all commands
"""


class SetupError(Exception):
    """A set-up that failed; its text says what to do."""

    exit_code = 1


class UserError(SetupError):
    """Something to change before another try: the command line, or a package that this system lacks."""

    exit_code = 2


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


def check_system() -> None:
    """Raise UserError if this system cannot build dllama."""
    missing = missing_packages()
    if missing:
        raise UserError(
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
            raise UserError(f"unknown extra '{extra}'; available: {', '.join(optional)}")
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


def set_up(extras: list[str]) -> None:
    """Bring ``.venv`` up to date with the sources; a second call without changes does nothing."""
    base = digest(str(ROOT), sys.version, sys.executable)
    wanted = requirements(extras)
    core = digest(*(ROOT / name for name in COMPILED_FROM))
    stamp = read_stamp()
    have = stamp.get("packages")
    packages = have if isinstance(have, list) else []
    is_current = stamp.get("base") == base and not stamp.get("unfinished") and set(wanted) <= set(packages)
    if is_current and stamp.get("core") == core:
        return
    check_system()
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        if not is_current:
            stamp = make_venv(stamp, base, log)
            write_stamp({**stamp, "unfinished": True})
            pip = [str(VENV / "bin" / "python"), "-m", "pip", "install"]
            run_stage("Installing packages", "about a minute", [*pip, *wanted], log)
            kept = packages if stamp.get("packages") else []
            stamp = {**stamp, "packages": sorted({*kept, *wanted})}
            write_stamp(stamp)
        if stamp.get("core") != core:
            compile_core(log)
            write_stamp({**stamp, "core": core})


def compile_core(log: IO[str]) -> None:
    """Compile and install dllama itself; its Python files stay where they are."""
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps"]
    run_stage("Compiling the core", "one to three minutes", [*pip, "--editable", str(ROOT)], log)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Wait until no other set-up of this checkout runs."""
    import fcntl

    with Path(__file__).open("rb") as me:
        try:
            fcntl.flock(me, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("⏳ Another set-up of this checkout is running: waiting for it", flush=True)
            fcntl.flock(me, fcntl.LOCK_EX)
        yield


# --- commands -----------------------------------------------------------------------------------


def run_demo(options: argparse.Namespace) -> int:
    """Run the bundled model and say what to try next."""
    model, tokenizer = DEMO / "model.m", DEMO / "tokenizer.t"
    for file in (model, tokenizer):
        if not file.is_file():
            raise SetupError(f"{from_here(file)} is missing; get it back with: git checkout -- {from_here(DEMO)}")
    dllama = VENV / "bin" / "dllama"
    command = [str(dllama), "inference", "--model", str(model), "--tokenizer", str(tokenizer)]
    command += ["--prompt", options.prompt, "--steps", str(options.steps), "--seed", str(options.seed), "--text"]
    try:
        status = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # dllama got it too, and has said so
        return 130
    if status == 0:
        paths = {"dllama": dllama, "model": model, "tokenizer": tokenizer}
        print(NEXT_STEPS.format(**{name: from_here(path) for name, path in paths.items()}), flush=True)
    return status if status >= 0 else 128 - status


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message}; see python3 launch.py --help")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; argparse's own ignores that a disk is full."""
        print(self.format_help(), end="", file=file)
        print(end="", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; raises UserError for what it cannot use."""
    parser = Parser(prog="launch.py", allow_abbrev=False, description="Set dllama up in .venv and run a model.")
    parser.add_argument("name", nargs="?", help="demo: run the bundled model; setup: only prepare .venv")
    parser.add_argument(
        "extras", nargs="*", help="with setup: extras of pyproject.toml to install as well (test, lint)"
    )
    parser.add_argument("--prompt", default=DEMO_PROMPT, help="how the story begins (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=256, help="most tokens to generate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=DEMO_SEED, help="another seed, another story")
    options = parser.parse_args(arguments)
    if options.name not in ("demo", "setup"):
        given = f"unknown name '{options.name}'" if options.name else "name a model"
        raise UserError(f"{given}; available: demo (the bundled model). Run: python3 launch.py demo")
    if options.extras and options.name != "setup":
        raise UserError(f"unknown argument '{options.extras[0]}'; see python3 launch.py --help")
    return options


def main(arguments: list[str]) -> int:
    """Run one command and return the exit code."""
    try:
        options = parse(arguments)
        with only_one():
            set_up(options.extras)
        return run_demo(options) if options.name == "demo" else 0
    except SetupError as error:
        return complain(f"🚨 {error}", error.exit_code)
    except KeyboardInterrupt:
        return complain("\n🛑 Interrupted; run the same command again to go on", 130)
    except BrokenPipeError:
        drop(sys.stdout)
        return 141
    except OSError as error:
        drop(sys.stdout)
        return complain(f"🚨 {error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)


def complain(text: str, status: int) -> int:
    """Say on stderr what went wrong; if that cannot be, the exit code still says so."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)
    return status


def drop(stream: TextIO) -> None:
    """Let the interpreter's last flush go nowhere: the reader of this stream is gone or cannot take more."""
    with contextlib.suppress(OSError, AttributeError):  # no such file, or no such stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def start() -> int:
    """Run as a program, by whatever Python there is, on whatever terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.version_info < OLDEST_PYTHON:
        return complain(f"🚨 dllama needs Python 3.11 or newer, this is {sys.version.split()[0]}", 2)
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
