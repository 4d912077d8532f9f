"""Reasoning is told from the answer however the text is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama.text.reasoning import ReasoningSplitter


def split(pieces: list[str], *, is_open: bool = False) -> tuple[str, str]:
    """Give (reasoning, answer)."""
    splitter = ReasoningSplitter(is_open)
    parts = [part for piece in pieces for part in splitter.add(piece)] + splitter.finish()
    return "".join(text for text, kind in parts if kind), "".join(text for text, kind in parts if not kind)


CASES = [
    ("<think>\nhm\n</think>\n\nYes.", ("hm", "Yes.")),
    ("  \n<think>a\n\nb</think>Yes.", ("a\n\nb", "Yes.")),
    ("Yes, <think> is a tag.</think>", ("", "Yes, <think> is a tag.</think>")),
    ("<thinking>", ("", "<thinking>")),
    ("<think>never ends </thin", ("never ends </thin", "")),
    ("<think></think>\n\n", ("", "")),
    ("  spaces", ("", "  spaces")),
    ("", ("", "")),
    ("<think>a</think>b<think>c</think>d", ("a", "b<think>c</think>d")),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_whole_and_letter_by_letter(text: str, expected: tuple[str, str]) -> None:
    assert split([text]) == expected
    assert split(list(text)) == expected


def test_reasoning_that_the_prompt_opened() -> None:
    assert ReasoningSplitter.is_opened_by("<assistant><think>\n")
    assert not ReasoningSplitter.is_opened_by("<think></think>")
    assert split(["so it is", "</th", "ink>\n\nYes"], is_open=True) == ("so it is", "Yes")


@given(st.text("<think>/ \nab", max_size=60), st.data())
def test_cuts_do_not_matter(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    borders = [0, *places, len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(borders)]
    assert split(pieces) == split([text])
