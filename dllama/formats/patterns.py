"""Telling regular expressions of a file that could take forever.

The library that runs them tries all ways to match, gives up after ten million and then panics. What makes so many ways
is nearly always a group that is repeated and can match the same text in several ways.
"""

from __future__ import annotations

import re

_MAX_LENGTH = 4096  # characters; the longest in use has 900
# Escapes, classes of characters, openings of groups, repetition, and all else.
_PARTS = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^:=!<>)]*[:=!>]|\(\?<(?:[=!]|\w+>)|\(|\)|\{\d*,?\d*\}|.",
    re.DOTALL,
)
_REPEAT = re.compile(r"[*+?]|\{\d*,?\d*\}")


def is_risky(pattern: str) -> bool:
    """Whether a pattern repeats what leaves a choice: of alternatives, or of how often something is there."""
    if len(pattern) > _MAX_LENGTH:
        return True
    open_groups, has_choice = [False], False  # the latter of what a repetition here would repeat
    for part in _PARTS.findall(pattern):
        if _REPEAT.fullmatch(part):
            if has_choice and part != "?":
                return True
            leaves_choice = part in "*+?" or "," in part
            open_groups[-1] |= leaves_choice
            has_choice |= leaves_choice and part.startswith("{")  # the library makes one of a+* and the like
            continue
        has_choice = False
        if part.startswith("("):
            open_groups.append(False)
        elif part == ")" and len(open_groups) > 1:
            has_choice = open_groups.pop()
            open_groups[-1] |= has_choice
        elif part == "|":
            open_groups[-1] = True
    return False
