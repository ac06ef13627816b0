"""Waiting times grow with the outage up to a limit and are spread over everything below."""

import pytest

from tuunel.backoff import LATE, LONGEST_ASKED, SOON, Backoff


class Outage:
    """A clock that goes on by every waiting time, and by what each try takes; chance always takes the longest wait."""

    def __init__(self, attempt: float = 0.0) -> None:
        self.now = 1000.0
        self.attempt = attempt
        self.backoff = Backoff(lambda: 1.0, lambda: self.now)

    def wait(self) -> float:
        delay = self.backoff.next()
        self.now += delay + self.attempt
        return delay

    @property
    def lasted(self) -> float:
        return self.now - 1000.0


def test_the_ceiling_doubles_and_stays_short_for_a_minute():
    outage = Outage()
    assert [outage.wait() for _ in range(4)] == [0.5, 1, 2, 2]
    while outage.lasted < 60:
        assert outage.wait() <= SOON


@pytest.mark.parametrize("attempt", [0.0, 0.01, 10.0])
def test_after_an_outage_of_any_length_it_is_tried_in_time(attempt: float) -> None:
    """Within five seconds after a minute at most, within thirty after more, what a try takes included; but never in a hurry again."""
    outage = Outage(attempt)
    delays = []
    while outage.lasted < 3600:
        began = outage.lasted
        delays.append(outage.wait())
        assert delays[-1] <= (SOON if began <= 60 else LATE)
    assert delays[-1] == LATE
    assert LATE + 10 <= 30


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
def test_chance_spreads_it_over_everything_below_the_ceiling(chance):
    backoff = Backoff(lambda: chance, lambda: 0.0)
    assert [backoff.next() for _ in range(4)] == pytest.approx([chance * ceiling for ceiling in (0.5, 1, 2, 2)])


def test_a_success_begins_anew():
    outage = Outage()
    while outage.wait() < LATE:
        pass
    outage.backoff.reset()
    assert [outage.wait() for _ in range(4)] == [0.5, 1, 2, 2]


def test_a_longer_pause_may_be_asked_for_but_not_any():
    backoff = Backoff(lambda: 1.0, lambda: 0.0)
    assert [backoff.after(asked) for asked in (0, 0, 60, 2**32 - 1)] == [0.5, 1, 60, LONGEST_ASKED]


def test_it_never_overflows():
    outage = Outage()
    assert [outage.wait() for _ in range(5000)][-1] == LATE
