"""What this build is and how fast its machine reads memory: facts of the compiled core for the commands."""

from __future__ import annotations

import platform
from pathlib import Path

from dllama import __version__

_CHECKOUT = Path(__file__).resolve().parent.parent  # if it is one


def isa() -> str:
    """Name the instruction-set level in use.

    Raises:
        UnsupportedIsa: ``DLLAMA_ISA`` names a level that cannot be had.
    """
    from dllama import _native
    from dllama.errors import UnsupportedIsa

    try:
        return _native.isa()
    except _native.UnsupportedIsaError as error:
        raise UnsupportedIsa(str(error)) from error


def build() -> dict[str, str]:
    """Facts of the build: ``commit``, ``compiler``, ``architecture`` and what else the core knows.

    In a git checkout the commit is the one checked out, as Python files are used from there; else the core's.
    """
    from dllama import _native

    facts = {"commit": "unknown", **_native.build_info()}
    return {**facts, "commit": checked_out() or facts["commit"]}


def checked_out() -> str:
    """Name the commit of the git checkout that this package lies in; empty if it lies in none, or git does not say."""
    import subprocess

    folder = _CHECKOUT / ".git"  # a file in a worktree
    if not folder.exists():
        return ""
    command = ["git", f"--git-dir={folder}", "rev-parse", "--short=12", "--verify", "--quiet", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.decode("ascii", "replace").strip() if result.returncode == 0 else ""


def read_bandwidth(num_threads: int, seconds: float = 1.0, most_bytes: int = 1 << 30) -> float:
    """Measure how many bytes per second this machine reads from memory.

    Args:
        num_threads: Threads that read.
        seconds: How long.
        most_bytes: Of the buffer, if an eighth of what is free is more; caches should not hold it.
    """
    from dllama import _native, machine

    num_bytes = max(64 << 20, min(most_bytes, machine.available_memory() // 8))
    return _native.read_bandwidth(num_bytes, num_threads, seconds)


def supported_isas() -> list[str]:
    """List the instruction-set levels that this CPU and this build have, best first."""
    from dllama import _native

    return _native.supported_isas()


def facts() -> dict[str, str | list[str]]:
    """Say what this build is, as data."""
    level, levels = isa(), supported_isas()
    return {
        "version": __version__,
        **build(),
        "isa": level,
        "supported_isas": levels,
        "python": platform.python_version(),
    }


def describe() -> str:
    """Say it all in lines for people and bug reports."""
    shown = {**build(), "isa": f"{isa()} (available: {', '.join(supported_isas())})"}
    lines = [f"{name}: {value}" for name, value in {**shown, "python": platform.python_version()}.items()]
    return "\n".join([f"dllama {__version__}", *lines])
