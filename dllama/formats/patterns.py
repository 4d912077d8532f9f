"""Telling regular expressions of a file that could take forever.

The library that runs them tries all ways to match, gives up after ten million and then panics. What makes so many ways
is nearly always a group that is repeated without end and can match the same text in several ways.
"""

from __future__ import annotations

import re

_MAX_LENGTH = 4096  # characters; the longest in use has 900
# Escapes, classes of characters, openings of groups, repetition, and all else.
_PARTS = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^:=!<>)]*[:=!>]|\(\?<[=!]|\(|\)|\{\d+,\}|[*+]|.",
    re.DOTALL,
)
_ENDLESS = re.compile(r"[*+]|\{\d+,\}")


def is_risky(pattern: str) -> bool:
    """Whether a pattern repeats a group without end in which there is a choice, or an endless repetition."""
    if len(pattern) > _MAX_LENGTH:
        return True
    open_groups, closed = [False], False
    for part in _PARTS.findall(pattern):
        is_endless = _ENDLESS.fullmatch(part) is not None
        if is_endless and closed:
            return True
        closed = False
        if part.startswith("("):
            open_groups.append(False)
        elif part == ")" and len(open_groups) > 1:
            closed = open_groups.pop()
            open_groups[-1] |= closed
        elif part == "|" or is_endless:
            open_groups[-1] = True
    return False
