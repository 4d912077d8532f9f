"""Reading the prose in ``texts/``: files of named sections, one wording a line.

``(nothing)`` is the empty wording. Lines that begin with ``= `` are the answers to the questions above them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "texts"


@dataclass
class Section:
    """A named list of wordings, with the wordings of the answers if it holds questions."""

    name: str
    lines: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


@cache
def sections(file: str) -> tuple[Section, ...]:
    """All sections of ``texts/{file}.txt`` in order; names may come more than once."""
    found: list[Section] = []
    for line in (FOLDER / f"{file}.txt").read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[([a-z_ ]+)\]", line):
            found.append(Section(header[1]))
        elif line.startswith("= "):
            found[-1].answers.append(line[2:])
        elif line:
            found[-1].lines.append("" if line == "(nothing)" else line)
    return tuple(found)


def lines(file: str, name: str) -> list[str]:
    """The wordings of the one section of this name."""
    (section,) = (section for section in sections(file) if section.name == name)
    return section.lines


def words(file: str, name: str) -> list[str]:
    """The single words of a section."""
    return " ".join(lines(file, name)).split()


def table(file: str, name: str) -> list[list[str]]:
    """The rows of a section whose cells are parted by bars."""
    return [line.split(" | ") for line in lines(file, name)]
