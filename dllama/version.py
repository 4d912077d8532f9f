"""What this build is and how fast its machine reads memory: facts of the compiled core for the commands."""

from __future__ import annotations

import platform

from dllama import __version__


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
    """Facts of the build: ``commit``, ``compiler``, ``target`` and what else the core knows."""
    from dllama import _native

    return {"commit": "unknown", **_native.build_info()}


def read_bandwidth(num_threads: int, seconds: float = 1.0) -> float:
    """Measure how many bytes per second this machine reads from memory, over a GiB or an eighth of what is free."""
    from dllama import _native, machine

    num_bytes = max(64 << 20, min(1 << 30, machine.available_memory() // 8))
    return _native.read_bandwidth(num_bytes, num_threads, seconds)


def describe() -> str:
    """Say it all in lines for people and bug reports."""
    from dllama import _native

    facts = {**build(), "isa": f"{isa()} (available: {', '.join(_native.supported_isas())})"}
    lines = [f"{name}: {value}" for name, value in {**facts, "python": platform.python_version()}.items()]
    return "\n".join([f"dllama {__version__}", *lines])
