"""docs/reference/errors.md is complete: every named failure and every exit code, word for word."""

import inspect
from pathlib import Path

import pytest

from tuunel import errors
from tuunel.errors import ANSWERS, Failure, Reason, Speaker, TuunelError

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
ROWS = {cells[0].strip("`"): cells[1:] for line in TEXT.splitlines() if (cells := [cell.strip() for cell in line.strip("|").split("|")])}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_row(reason: Reason) -> None:
    answer = ANSWERS[reason]
    exit_code, socks, http, speakers, message, advice = ROWS[reason]
    assert (exit_code, socks, http, message, advice) == (
        str(answer.exit),
        f"{answer.socks:02x}",
        str(answer.http),
        answer.message,
        answer.advice,
    )
    assert any(speaker in speakers for speaker in Speaker)


def test_the_page_names_no_failure_that_does_not_exist() -> None:
    assert {name for name in ROWS if name.isupper() and "_" in name} <= set(Reason)


def test_every_class_of_errors_with_a_code_of_its_own_has_its_row() -> None:
    classes = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, TuunelError)}
    codes = {each.__name__: each.exit_code for each in classes if each.exit_code != 1 and not issubclass(each, Failure)}
    for name, code in codes.items():
        assert ROWS[str(code)][0] == f"`{name}`"


def test_no_two_failures_share_an_exit_code() -> None:
    codes = [answer.exit for answer in ANSWERS.values()]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, 1, 2, 60, 61, 62}
