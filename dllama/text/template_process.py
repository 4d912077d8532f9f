"""The process that renders chat templates: a program of its own, which ``template_renderer`` starts.

A sandbox cannot stop a template from computing ``10 ** 10 ** 8``, so this process has limits of its own and its parent
ends it when it takes too long. It imports jinja2 and small parts of the standard library, and nothing of dllama.

It reads one JSON object a line from standard input and answers each with one on standard output, both in UTF-8. The
first answer comes unasked: what went wrong while starting, or nothing. It ends with its input.
"""

from __future__ import annotations

import codecs
import json
import resource
import signal
import sys
import time
from datetime import datetime
from typing import Any, BinaryIO

_MEMORY_BYTES = 256 << 20  # of addresses; Python and jinja2 take 30 MiB of them
_CPU_S = 5  # for one request, when nobody is left to end this process; the parent's patience is shorter
_LONGEST_OUTPUT = 16 << 20  # characters
_LONGEST_MESSAGE = 300  # characters


class _Refused(Exception):
    """What a template gives to ``raise_exception``."""


class _Unusable(Exception):
    """What is wrong with the output of a template."""


def _main(module_paths: list[str]) -> None:
    """Answer requests until there are no more.

    Args:
        module_paths: Where jinja2 and what it needs are.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.path += module_paths
    try:
        renderer = _Renderer()
    except ImportError as error:
        _answer(answers, {"error": f"cannot be rendered without jinja2: {error}"})
        return
    _limit()
    _answer(answers, {})
    while request := requests.readline():
        _lower(resource.RLIMIT_CPU, int(time.process_time()) + _CPU_S)
        _answer(answers, _outcome(renderer, request))


def _limit() -> None:
    """Give up, for good, what rendering has no use for: memory, files, processes."""
    _lower(resource.RLIMIT_AS, _MEMORY_BYTES, final=True)
    _lower(resource.RLIMIT_NOFILE, 3, final=True)
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        _lower(kind, 0, final=True)


def _lower(kind: int, limit: int, final: bool = False) -> None:
    _, highest = resource.getrlimit(kind)
    limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
    resource.setrlimit(kind, (limit, limit if final else highest))


def _answer(answers: BinaryIO, outcome: dict[str, str]) -> None:
    answers.write(json.dumps(outcome, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    answers.flush()


def _outcome(renderer: _Renderer, request: bytes) -> dict[str, str]:
    """Render; whatever a template does, there is an answer."""
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    try:
        return {"text": renderer.render(**json.loads(request))}
    except _Refused as error:
        return {"error": f"refuses: {_clean(error)}"}
    except _Unusable as error:
        return {"error": str(error)}
    except TemplateSyntaxError as error:
        return {"error": f"is broken in line {error.lineno}: {_clean(error)}"}
    except SecurityError as error:
        return {"error": f"does what none may: {_clean(error)}"}
    except MemoryError:
        return {"error": f"needs more than {_MEMORY_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "calls itself too often"}
    except Exception as error:  # noqa: BLE001 - templates raise what they like
        return {"error": f"fails: {type(error).__name__}: {_clean(error)}"}


def _clean(error: Exception) -> str:
    """Give an error's text as one short line that no terminal takes for a command."""
    text = _reason(error)[: 4 * _LONGEST_MESSAGE]
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split()).rstrip(".")
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def _reason(error: Exception) -> str:
    """Give an error's text without the paths of this computer."""
    if isinstance(error, OSError):
        return error.strerror or ""
    return f"no module {error.name}" if isinstance(error, ImportError) else str(error)


class _Renderer:
    """Renders templates as transformers does, and keeps the last one compiled."""

    def __init__(self) -> None:
        self._environment = _make_environment()
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = self._strftime
        self._source, self._template = "", self._environment.from_string("")
        self._now = datetime.min

    def render(self, template: str, variables: dict[str, Any], now: str) -> str:
        """Give the text.

        Args:
            template: The Jinja text.
            variables: What it knows by name.
            now: The time, in ISO form.
        """
        self._now = datetime.fromisoformat(now)
        compiled = self._compile(template)
        parts, length = [], 0
        for part in compiled.generate(variables):
            length += len(part)
            if length > _LONGEST_OUTPUT:
                raise _Unusable(f"writes more than {_LONGEST_OUTPUT} characters")
            parts.append(part)
        return _checked("".join(parts))

    def _compile(self, source: str) -> Any:
        if source != self._source:
            self._template = self._environment.from_string(source)
            self._source = source
        return self._template

    def _strftime(self, form: str) -> str:
        return self._now.strftime(form)


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unusable("writes half characters (surrogates), which no text can have") from None
    return text


def _refuse(message: object) -> None:
    raise _Refused(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_environment() -> Any:
    """Give Jinja's environment with transformers' settings; here, because jinja2 is not on the path before."""
    # What jinja2 loads when it needs it must be there before: later no file can be opened.
    import html  # noqa: F401
    import pprint  # noqa: F401
    import textwrap  # noqa: F401

    import jinja2.constants
    import jinja2.debug  # noqa: F401
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, modifies_known_mutable

    class Environment(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: object, attribute: str) -> Any:
            if modifies_known_mutable(obj, attribute):
                return super().unsafe_undefined(obj, attribute)  # an error once it is called
            raise SecurityError(f"reaches for {attribute!r} of type {type(obj).__name__}")

    class Generation(Extension):
        """The ``generation`` block, which marks answers for training and prints what is in it."""

        tags = {"generation"}  # noqa: RUF012 - declared by the base

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

        def _print(self, caller: Any) -> Any:
            return caller()

    codecs.lookup("unicode_escape")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    return environment


if __name__ == "__main__":
    _main(sys.argv[1:])
