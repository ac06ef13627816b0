"""Waiting times double up to a limit and are spread over everything below."""

import pytest

from tuunel.backoff import LONGEST_ASKED, Backoff


def test_the_ceiling_doubles_up_to_the_limit():
    backoff = Backoff(lambda: 1.0, first=0.5, limit=3)
    assert [backoff.next() for _ in range(5)] == [0.5, 1, 2, 3, 3]


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
def test_chance_spreads_it_over_everything_below_the_ceiling(chance):
    backoff = Backoff(lambda: chance)
    assert [backoff.next() for _ in range(8)] == pytest.approx([chance * ceiling for ceiling in (0.5, 1, 2, 4, 8, 16, 30, 30)])


def test_a_success_begins_anew():
    backoff = Backoff(lambda: 1.0)
    for _ in range(100):
        backoff.next()
    backoff.reset()
    assert backoff.next() == 0.5


def test_a_longer_pause_may_be_asked_for_but_not_any():
    backoff = Backoff(lambda: 1.0, first=0.5, limit=3)
    assert [backoff.after(asked) for asked in (0, 0, 60, 2**32 - 1)] == [0.5, 1, 60, LONGEST_ASKED]


def test_it_never_overflows():
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next() for _ in range(5000)][-1] == 30
