"""`tuunel nc -u`: one read of standard input is one datagram, and each datagram that comes goes to standard output."""

import pytest

from tests.journeys.datagrams import answering, shout
from tests.journeys.targets import closed_port
from tests.journeys.world import Trio
from tuunel.errors import ANSWERS, Reason

pytestmark = pytest.mark.real


def test_a_question_and_its_answer(trio: Trio) -> None:
    with answering(shout) as target:
        done = trio.walker.tuunel("nc", "-u", "home", str(target.port), stdin=b"question")
    assert done.stdout == b"QUESTION"
    assert target.received == 1


def test_a_port_where_nobody_listens_is_refused(trio: Trio) -> None:
    done = trio.walker.tuunel("nc", "-u", "home", str(closed_port()), stdin=b"anybody?", check=False)
    assert (done.returncode, done.stdout) == (ANSWERS[Reason.CONNECTION_REFUSED].exit, b"")


def test_a_refusal_says_how_to_get_the_internet(trio: Trio) -> None:
    done = trio.walker.tuunel("nc", "-u", "203.0.113.1.home.tuunel", "53", stdin=b"out?", check=False)
    assert (done.returncode, done.stdout) == (ANSWERS[Reason.POLICY_DENIED].exit, b"")
    assert b"internet" in done.stderr


def test_a_name_that_nobody_knows(trio: Trio) -> None:
    done = trio.walker.tuunel("nc", "-u", "no-such-host.invalid.home.tuunel", "53", stdin=b"where?", check=False)
    assert done.returncode == ANSWERS[Reason.NAME_NOT_RESOLVED].exit
