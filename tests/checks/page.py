"""Writes docs/spec/checks.md from the table: python -m tests.checks.page."""

from pathlib import Path

from tests.checks.mutants import REPOSITORY, Check
from tests.checks.table import GROUPS

PAGE = REPOSITORY / "docs" / "spec" / "checks.md"

_BEGINNING = """\
# Every check counts

What tuunel verifies, where, which attack each verification stops, and a test that fails without it. This page is written by
`python -m tests.checks.page` from the table in `tests/checks/`, and a test keeps the two equal.

`make checks` takes the table at its word: for each row it makes a copy of the package in which this one verification is switched off, runs
the row's tests against that copy, and demands that one of them fails. A check that nothing notices is one that nobody would miss. It takes
some minutes; the ordinary suite only looks whether the text that each row replaces stands exactly once in its file, and whether its tests
are there.

Where two checks stop one attack, each is switched off alone, and the test tells them apart by the error that is named.
"""


def page() -> str:
    """Return the whole page."""
    parts = [_BEGINNING]
    for heading, checks in GROUPS:
        rows = ["| check | where | without it | noticed by |", "|---|---|---|---|", *map(_row, checks)]
        parts.append(f"## {heading}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(check: Check) -> str:
    tests = ", ".join(f"`{Path(test.partition('::')[0]).relative_to('tests')}` {_said(test)}" for test in check.tests)
    cells = (check.name, f"`{check.file}`", check.attack, tests)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _said(test: str) -> str:
    """A test's name as the promise that it is."""
    return test.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
