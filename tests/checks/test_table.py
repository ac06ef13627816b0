"""The table of checks is true to the code: each text is there once, each test exists, and the page is what the table says."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.checks.mutants import REPOSITORY, Check, occurrences
from tests.checks.page import PAGE, page
from tests.checks.table import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_text_that_a_check_is_made_of_stands_exactly_once_in_its_file(check: Check) -> None:
    assert occurrences(check) == 1, f"{check.file} has changed: bring its row in tests/checks/ up to date"
    assert check.new != check.old


def test_every_check_has_a_name_of_its_own() -> None:
    assert [name for name, number in Counter(check.name for check in CHECKS).items() if number > 1] == []


def test_every_check_names_a_test_that_exists() -> None:
    tests = sorted({test for check in CHECKS for test in check.tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests]
    collected = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert collected.returncode == 0, collected.stdout[-2000:]
    assert [check.name for check in CHECKS if not check.tests] == []


def test_the_page_of_checks_is_what_the_table_says() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m tests.checks.page"


def test_what_shows_each_promise_is_there() -> None:
    text = (PAGE.parent / "proofs.md").read_text(encoding="utf-8")
    promises = text[text.index("## Promise by promise") : text.index("## The evil relay")]
    named = set(re.findall(r"`([a-z0-9_/]+\.py|[a-z]+/)`", promises))
    assert len(named) > 40
    assert sorted(name for name in named if not (REPOSITORY / "tests" / name).exists()) == []
