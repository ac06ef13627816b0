"""The harness notices a check that nobody would miss, and takes nothing else for a noticed one."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.checks.mutants import Check, Copy

OFFERS = "tests/e2e/test_handshake.py::test_f_stops_an_offer_that_was_made_for_another_relay"
OTHERS = "tests/e2e/test_handshake.py::test_an_offer_lives_no_longer_than_a_day"
RELAY_ID = Check("relay id", "e2e/offer.py", "if offer.relay_id != relay_id:", "if False:", "an offer of another relay", ())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


def test_a_check_that_is_off_makes_its_test_fail(copy: Copy) -> None:
    verdict = copy.judge(RELAY_ID, [OTHERS, OFFERS])

    assert verdict.failed == (OFFERS,), verdict.output
    assert verdict.broken == ()


def test_a_test_that_does_not_miss_the_check_passes(copy: Copy) -> None:
    assert copy.judge(RELAY_ID, [OTHERS]).failed == ()


def test_the_copy_is_whole_again_afterwards(copy: Copy) -> None:
    copy.judge(RELAY_ID, [OFFERS])
    same = replace(RELAY_ID, new=RELAY_ID.old)

    verdict = copy.judge(same, [OTHERS, OFFERS])

    assert (verdict.failed, verdict.broken) == ((), ()), verdict.output


def test_a_change_that_is_no_python_is_not_taken_for_a_noticed_check(copy: Copy) -> None:
    verdict = copy.judge(replace(RELAY_ID, new="if"), [OFFERS])

    assert verdict.failed == ()
    assert verdict.broken


def test_a_test_that_is_not_there_is_not_taken_for_one_that_failed(copy: Copy) -> None:
    verdict = copy.judge(RELAY_ID, [f"{OFFERS}_or_so"])

    assert verdict.failed == ()
    assert verdict.broken


def test_the_real_package_is_left_alone(copy: Copy) -> None:
    before = (Path(__file__).parents[2] / "tuunel" / RELAY_ID.file).read_text()

    copy.judge(RELAY_ID, [OFFERS])

    assert (Path(__file__).parents[2] / "tuunel" / RELAY_ID.file).read_text() == before
