"""The parent's side of ``template_process``: starts it, talks to it, and ends it when it misbehaves.

Knows nothing of tokens or roles; ``chat_template`` calls it.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dllama.errors import DllamaError

_PROGRAM = Path(__file__).with_name("template_process.py")
_START_S = 30.0  # until it runs, and to take a request; a Pi that swaps is slow
_RENDER_S = 2.0
_LONGEST_TEMPLATE = 64 << 10  # characters; the longest in use have 16 thousand
_LONGEST_ANSWER = 128 << 20  # bytes
_ENVIRONMENT = ("LD_LIBRARY_PATH",)  # without which some interpreters do not start
_LONGEST_PROBLEM = 500  # characters
_SPOILED = "spoils the answers of the process that renders it"
_GONE = "ends the process that renders it"


class TemplateError(DllamaError):
    """A chat template that is broken, refuses these messages, or does what templates may not do."""

    exit_code = 3


class _Misbehaved(Exception):
    """The process must be ended; the text says why."""


class TemplateRenderer:
    """Renders one untrusted Jinja template in a process of its own, started when it is first needed.

    Args:
        template: The Jinja text.
        what: Names it in errors, e.g. ``"chat template llama3"``.

    Raises:
        TemplateError: The template is too long.
    """

    def __init__(self, template: str, what: str) -> None:
        self._template, self._what = template, what
        self._lock = threading.Lock()
        self._child: _Child | None = None
        if len(template) > _LONGEST_TEMPLATE:
            raise self._error(f"has {len(template)} characters, more than {_LONGEST_TEMPLATE}")

    def render(self, variables: Mapping[str, object], now: datetime) -> str:
        """Give the text for ``variables``, which JSON can hold; ``now`` is what the template takes for the time.

        Raises:
            TemplateError: It fails, takes too long, or needs too much.
        """
        request = {"template": self._template, "variables": variables, "now": now.isoformat()}
        with self._lock:
            answer = self._ask(json.dumps(request).encode() + b"\n")
        if "error" in answer:
            raise self._error(answer["error"])
        return answer.get("text", "")

    def close(self) -> None:
        """End the process; rendering again starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> dict[str, str]:
        try:
            if self._child is not None and self._child.is_gone():
                self._end()
            if self._child is None:
                self._child = _Child()
            return self._child.ask(request)
        except _Misbehaved as error:
            self._end()
            raise self._error(str(error)) from None
        except BaseException:  # an interrupt leaves an answer behind, which the next request must not get
            self._end()
            raise

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _error(self, problem: str) -> TemplateError:
        return TemplateError(f"{self._what} {problem}; another is chosen with --chat-template NAME")


class _Child:
    """A running ``template_process``; ``end`` ends it, as does the garbage collector."""

    def __init__(self) -> None:
        try:
            process = _start()
        except OSError as error:
            raise _Misbehaved(f"cannot be rendered: no process for it: {error.strerror}") from error
        self.end = weakref.finalize(self, _end, process)
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin.fileno(), process.stdout.fileno()
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe, False)
        problem = self._read(_START_S, "cannot be rendered: its process does not start").get("error")
        if problem is not None:
            raise _Misbehaved(problem)

    def is_gone(self) -> bool:
        """Whether it ended while nobody asked it for anything, as when memory ran out elsewhere."""
        return self._process.poll() is not None

    def ask(self, request: bytes) -> dict[str, str]:
        """Send a request and give the answer to it.

        Raises:
            _Misbehaved: None comes, or none that makes sense.
        """
        deadline, rest = time.monotonic() + _START_S, memoryview(request)
        try:
            while rest:
                _wait(self._stdin, selectors.EVENT_WRITE, deadline, "cannot be rendered: its process does not listen")
                rest = rest[os.write(self._stdin, rest[: 1 << 16]) :]
        except BrokenPipeError:
            raise _Misbehaved(_GONE) from None
        return self._read(_RENDER_S, f"takes more than {_RENDER_S:g} seconds")

    def _read(self, patience: float, problem: str) -> dict[str, str]:
        deadline, parts, length = time.monotonic() + patience, [b""], 0
        while not parts[-1].endswith(b"\n"):
            _wait(self._stdout, selectors.EVENT_READ, deadline, problem)
            parts.append(os.read(self._stdout, 1 << 20))
            length += len(parts[-1])
            if not parts[-1] or length > _LONGEST_ANSWER:
                raise _Misbehaved("writes too much" if parts[-1] else _GONE)
        return _checked(b"".join(parts))


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", os.fspath(_PROGRAM), *_module_paths()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        start_new_session=True,  # Ctrl-C in the terminal is not for it
        bufsize=0,
    )


def _wait(pipe: int, event: int, deadline: float, problem: str) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if not selector.select(max(deadline - time.monotonic(), 0)):
            raise _Misbehaved(problem)


def _checked(raw: bytes) -> dict[str, str]:
    """Read an answer, from a process that a template may have taken over."""
    try:
        answer: Any = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not all(isinstance(text, str) for text in answer.values()):
        raise _Misbehaved(_SPOILED)
    problem = answer.get("error", "")
    if not problem.isprintable() or len(problem) > _LONGEST_PROBLEM:
        raise _Misbehaved(_SPOILED)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()


def _module_paths() -> list[str]:
    """Where jinja2 and markupsafe are, each once."""
    specs = [find_spec(name) for name in ("jinja2", "markupsafe")]
    return list(dict.fromkeys(str(Path(spec.origin).parent.parent) for spec in specs if spec and spec.origin))
