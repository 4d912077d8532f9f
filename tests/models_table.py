"""The table of `docs/models.md`: which tests verify what of which family, and where its models come from.

A test says so with one line, and `make models-table` writes the table when all of them have passed:

    @pytest.mark.verifies("What it shows, in one sentence.", "gguf", "three nodes", families=["llama"])

Without `families`, one of the test's parameters is a family's name, but for what follows a comma, or has a `family`.
A test that needs what may not be installed is marked `skipif`, so that its claim is known wherever the page is checked;
writing the page takes all of them. `conftest.py` imports the hooks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dllama.families import MODEL_TYPES

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- What follows is written by `make models-table`. -->", "<!-- End of what is written. -->"
# Columns by the names that tests use.
COLUMNS = {
    ".m": "`.m` file",
    "folder": "Hugging Face folder",
    "gguf": "GGUF file",
    "converters": "converters",
    "one node": "one node",
    "three nodes": "three nodes",
    "Q40": "Q40",
    "export": "export to GGUF",
}
_OPTION = "--write-models-table"


@dataclass(frozen=True)
class Claim:
    """A test's word that something works."""

    what: str
    columns: tuple[str, ...]
    families: tuple[str, ...]
    file: str
    test: str  # pytest's id


_CLAIMS = pytest.StashKey[list[Claim]]()
_PASSED = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_OPTION, action="store_true", help=f"write the table of {PAGE.name}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CLAIMS], config.stash[_PASSED] = [], set()


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_CLAIMS].extend(claim for item in session.items for claim in _claims_of(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.passed:
        item.config.stash[_PASSED].add(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if not config.getoption(_OPTION):
        return
    left = [claim.test for claim in config.stash[_CLAIMS] if claim.test not in config.stash[_PASSED]]
    if left or not has_all_tests(config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        terminal = config.pluginmanager.getplugin("terminalreporter")
        terminal.write_line(f"{PAGE} is not written; missing: {', '.join(left) or 'tests that this run leaves out'}")
        return
    PAGE.write_text(with_table(PAGE.read_text(), claimed_table(config)))


def has_all_tests(config: pytest.Config) -> bool:
    """Whether this run has every test that claims something: no file, word or last failure picks some of them."""
    is_picked = config.option.keyword or config.option.lf or config.option.markexpr not in ("not slow", "verifies")
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not is_picked


def claimed_table(config: pytest.Config) -> str:
    """Give the table that this run's tests claim."""
    claims = config.stash[_CLAIMS]
    return table(claims)


def _claims_of(item: pytest.Item) -> Iterator[Claim]:
    for marker in item.iter_markers("verifies"):
        what, *columns = marker.args
        families = tuple(marker.kwargs.get("families", ())) or (_family_of(item),)
        if not columns or not {*columns} <= {*COLUMNS} or not {*families} <= {*MODEL_TYPES}:
            raise pytest.UsageError(f"{item.nodeid}: verifies: expected columns of {[*COLUMNS]} and known families")
        yield Claim(what, tuple(columns), families, item.path.name, item.nodeid)


def _family_of(item: pytest.Item) -> str:
    values = item.callspec.params.values() if isinstance(item, pytest.Function) else ()
    names = [getattr(value, "family", str(value).partition(",")[0]) for value in values]
    return next((name for name in names if name in MODEL_TYPES), "")


def table(made: Iterable[Claim]) -> str:
    """Write the table, and below it what the numbers in it stand for."""
    claims = list(made)
    notes = sorted({(min([*COLUMNS].index(name) for name in claim.columns), claim.what) for claim in claims})
    numbers = {what: number for number, (_, what) in enumerate(notes, 1)}
    head = ["family", *COLUMNS.values()]
    rows = [[f"`{family}`", *(_cell(claims, numbers, family, column) for column in COLUMNS)] for family in MODEL_TYPES]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    files = {what: ", ".join(sorted({f"`{c.file}`" for c in claims if c.what == what})) for what in numbers}
    return "\n".join([*lines, "", *(f"{number}. {what} {files[what]}" for what, number in numbers.items())])


def _cell(claims: Iterable[Claim], numbers: dict[str, int], family: str, column: str) -> str:
    found = {numbers[claim.what] for claim in claims if family in claim.families and column in claim.columns}
    return ", ".join(map(str, sorted(found)))


def with_table(page: str, written: str) -> str:
    """Give the page with what stands between its marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"
