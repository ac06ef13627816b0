"""Answers and errors: data on stdout, words on stderr, one line what happened and one line what to do."""

import json

import pytest

from tuunel.cli.report import answer, error_document, first_error, put, say_error, what_happened
from tuunel.errors import ANSWERS, Failure, NotRunning, PeerMismatch, Reason, Speaker, StateError, UsageError

HOSTILE = "x\ny\x1b[2J"


def test_an_error_is_two_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(StateError("grants.json is damaged", "restore it from a backup"))
    assert capsys.readouterr() == ("", "tuunel: grants.json is damaged\n        restore it from a backup\n")


def test_an_error_without_advice_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(UsageError("no", ""))
    assert capsys.readouterr().err == "tuunel: no\n"


@pytest.mark.parametrize(
    ("speaker", "start"),
    [
        (Speaker.LOCAL, "POLICY_DENIED: "),
        (Speaker.RELAY, "the relay says POLICY_DENIED: "),
        (Speaker.AGENT, "the agent says POLICY_DENIED: "),
    ],
)
def test_a_failure_names_its_reason_and_who_said_so(speaker: Speaker, start: str) -> None:
    failure = Failure(Reason.POLICY_DENIED, speaker, "10.0.0.1")
    assert what_happened(failure) == f"{start}{ANSWERS[Reason.POLICY_DENIED].message}: 10.0.0.1"


def test_a_peers_detail_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(Failure(Reason.POLICY_DENIED, Speaker.AGENT, HOSTILE))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_an_answer_is_one_json_document_or_what_show_makes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    answer(lambda: {"link": "tuunel://"}, lambda document: put(document["link"]), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"link": "tuunel://"}
    answer(lambda: {"link": "tuunel://"}, lambda document: put(document["link"]), as_json=False)
    assert capsys.readouterr().out == "tuunel://\n"


def test_a_failed_answer_is_a_json_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> dict[str, object]:
        raise Failure(Reason.UNKNOWN_NAME, detail="hme; did you mean home?")

    with pytest.raises(Failure):
        answer(fail, lambda _: None, as_json=True)
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["reason"], error["speaker"], error["exit"]) == ("UNKNOWN_NAME", "local", 50)
    with pytest.raises(Failure):
        answer(fail, lambda _: None, as_json=False)
    assert capsys.readouterr().out == ""


def test_an_error_that_is_no_failure_has_no_reason() -> None:
    document = error_document(NotRunning("no agent", "start it"))
    assert document == {"error": {"message": "no agent", "advice": "start it", "exit": 61}}


def test_the_error_to_read_is_found_inside_groups() -> None:
    mismatch = PeerMismatch("another key")
    group = BaseExceptionGroup("tasks", [OSError("other"), ExceptionGroup("inner", [ValueError(), mismatch])])
    assert first_error(group) is mismatch
    assert first_error(ExceptionGroup("tasks", [ValueError()])) is None
    assert first_error(KeyboardInterrupt()) is None
