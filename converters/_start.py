"""How every converter starts: in ``.venv`` of this checkout, with errors of one line and a bar on a terminal alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(main: Callable[[list[str]], None], usage: str, counts: tuple[int, ...]) -> int:
    """Run a converter.

    Args:
        main: What to run; takes the words of the command line.
        usage: What these are, for a wrong number of them.
        counts: How many there may be.

    Returns:
        The exit code.
    """
    _enter_venv()
    from dllama.cli import finish, report
    from dllama.errors import UsageError

    words, usage = sys.argv[1:], f"usage: python {Path(sys.argv[0]).name} {usage}"
    try:
        if {"-h", "--help"} & {*words}:
            print(usage)
        elif len(words) not in counts:
            raise UsageError(f"{len(words)} words on the command line; {usage}")
        else:
            main(words)
        return finish(0)
    except BaseException as error:
        if os.environ.get("DLLAMA_DEBUG") == "1":
            raise
        return report(error)


def _enter_venv() -> None:
    """Become the Python that dllama is installed for, if this one is not it."""
    sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("numpy") and _has_core():
        return
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != ROOT / ".venv":
        os.execv(python, [str(python), *sys.argv])
    sys.exit("🚨 dllama is not set up here; run: python3 launch.py setup")


def _has_core() -> bool:
    try:
        return importlib.util.find_spec("dllama._native") is not None
    except ImportError:
        return False
