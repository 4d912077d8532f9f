"""`docs/models.md` says what the tests verify, no more and no less."""

from __future__ import annotations

import pytest
from models_table import (  # type: ignore[import-not-found]
    BEGIN,
    COLUMNS,
    END,
    PAGE,
    Claim,
    claimed_table,
    has_all_tests,
    table,
    with_table,
)


def test_page_is_what_the_tests_verify(request: pytest.FixtureRequest) -> None:
    if not has_all_tests(request.config):
        pytest.skip("only a run of all tests knows what they verify")
    page = PAGE.read_text()
    assert page == with_table(page, claimed_table(request.config)), "run `make models-table`"


def claim(what: str, *columns: str, family: str = "llama", file: str = "test_a.py") -> Claim:
    return Claim(what, columns, (family,), file, f"{file}::test")


def test_table_has_a_number_for_each_thing_verified() -> None:
    written = table(
        [
            claim("Tokens.", "gguf", "one node", file="test_b.py"),
            claim("Logits.", "folder"),
            claim("Logits.", "folder", family="gemma2"),
            claim("Tokens.", "gguf", file="test_a.py"),
        ]
    ).splitlines()
    assert written[0].startswith("| family | `.m` file | Hugging Face folder | GGUF file |")
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in written[2:13]}
    assert rows["`llama`"] == ["", "1", "2", "", "2", "", "", ""]
    assert rows["`gemma2`"] == ["", "1", *[""] * (len(COLUMNS) - 2)]
    assert written[-2:] == ["1. Logits. `test_a.py`", "2. Tokens. `test_a.py`, `test_b.py`"]


def test_only_what_stands_between_the_marks_is_written() -> None:
    page = f"# Models\n\n{BEGIN}\nold\n{END}\n\nMore.\n"
    assert with_table(page, "new") == f"# Models\n\n{BEGIN}\n\nnew\n\n{END}\n\nMore.\n"
    assert with_table(with_table(page, "newer"), "new") == with_table(page, "new")
