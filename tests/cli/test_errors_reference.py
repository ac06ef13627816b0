"""docs/reference/errors.md is complete: every named failure and every exit code, word for word."""

import ast
import inspect
from pathlib import Path

import pytest

from tuunel import errors
from tuunel.errors import ANSWERS, Failure, Reason, Speaker, TuunelError

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()


def _name(cell: str) -> str:
    """The name in a cell or a heading, which may be a link."""
    return cell.partition("](")[0].strip("[`")


TABLES = [line for line in TEXT.splitlines() if line.startswith("|")]
ROWS = {_name(cells[0]): cells[1:] for line in TABLES if (cells := [cell.strip() for cell in line.strip("|").split("|")])}
SECTIONS = {_name(each.partition("\n")[0]): each for each in TEXT.split("\n### ")[1:]}
PACKAGE = Path(errors.__file__).parent
ADVISED = {"UsageError", "StateError", "NotRunning", "ListenError"}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_row(reason: Reason) -> None:
    answer = ANSWERS[reason]
    exit_code, socks, http, speakers = ROWS[reason]
    assert (exit_code, socks, http) == (str(answer.exit), f"{answer.socks:02x}", str(answer.http))
    assert any(speaker in speakers for speaker in Speaker)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_section_with_what_happened_where_and_what_to_do(reason: Reason) -> None:
    answer = ANSWERS[reason]
    _, happened, where, remedy = SECTIONS[reason].partition("\n\n")[2].split("- **", 3)
    assert happened.strip() == f"What happened:** {answer.message}."
    assert where.startswith("Where:** ")
    assert remedy.startswith(f"What to do:** {answer.advice}.\n\n")
    assert len(remedy.partition("\n\n")[2]) > 20, "a section that says no more than the message is none"


def test_the_page_names_no_failure_that_does_not_exist() -> None:
    assert {name for name in ROWS if name.isupper() and "_" in name} <= set(Reason)


def test_every_class_of_errors_with_a_code_of_its_own_has_its_row() -> None:
    classes = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, TuunelError)}
    codes = {each.__name__: each.exit_code for each in classes if each.exit_code != 1 and not issubclass(each, Failure)}
    for name, code in codes.items():
        assert _name(ROWS[str(code)][0]) == name
        assert name in SECTIONS


def test_no_two_failures_share_an_exit_code() -> None:
    codes = [answer.exit for answer in ANSWERS.values()]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, 1, 2, 60, 61, 62}


def test_no_error_that_a_person_can_meet_is_without_advice() -> None:
    """The type asks for it; an empty literal would be none."""
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ADVISED:
                advice = [*call.args[1:], *(each.value for each in call.keywords if each.arg == "advice")]
                assert advice, f"{path}:{call.lineno}"
                assert not (isinstance(advice[0], ast.Constant) and not advice[0].value), f"{path}:{call.lineno}"


@pytest.mark.parametrize("reason", Reason)
def test_message_and_advice_are_one_line_each(reason: Reason) -> None:
    answer = ANSWERS[reason]
    for line in (answer.message, answer.advice):
        assert line
        assert line.isprintable()
        assert len(line) <= 100
