"""``dllama doctor``: what this machine does for dllama, and what holds it back, with a line of advice each."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from dllama.cli.common import say, to_json

if TYPE_CHECKING:
    from dllama.health import Check

EXAMPLE = """Checks that end in note or warn say what to do. The exit code is 0 all the same.

example: dllama doctor"""
WIDTH = 80


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def lines(check: Check) -> list[str]:
    """Write a check, and its advice, in lines of at most 80 columns where its words allow it."""
    start = f"{check.state:<6}{check.name:<13}"
    indent = " " * len(start)
    written = [f"{start}{check.value}"]
    if check.advice:
        written.append(f"{indent}{check.advice}")
    return [
        line
        for text in written
        for line in textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    ]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama import health

    if args.json:
        say(to_json({"checks": [asdict(check) for check in health.checks()]}))
        return
    for check in health.checks():
        for line in lines(check):
            say(line)
