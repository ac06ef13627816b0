"""The search for the highest rate, against systems of known capacity."""

from dataclasses import dataclass

import pytest

from bench.search import HALVINGS, LOWEST_RATE, highest


@dataclass(frozen=True)
class Known:
    rate: float
    capacity: float
    exhausted: bool = False

    @property
    def held(self) -> bool:
        return self.rate <= self.capacity

    @property
    def delivered_rate(self) -> float:
        return self.rate


@pytest.mark.parametrize("capacity", [150.0, 3_999.0, 4_000.0, 4_001.0, 13_000.0, 1_000_000.0])
def test_the_answer_is_below_the_capacity_by_less_than_one_step(capacity: float) -> None:
    best = highest(lambda rate: Known(rate, capacity), 4_000)
    assert best is not None
    assert best.rate <= capacity < best.rate * 2 ** (1 / 2**HALVINGS) * (1 + 1e-9)


def test_a_system_that_carries_nothing_has_no_answer() -> None:
    asked: list[float] = []

    def attempt(rate: float) -> Known:
        asked.append(rate)
        return Known(rate, 0)

    assert highest(attempt, 4_000) is None
    assert min(asked) >= LOWEST_RATE


def test_one_hiccup_is_no_limit() -> None:
    asked: list[float] = []

    def attempt(rate: float) -> Known:
        first_time = rate not in asked
        asked.append(rate)
        return Known(rate, 0 if first_time else 10_000)

    best = highest(attempt, 4_000)
    assert best is not None
    assert best.rate > 9_500


def test_the_search_ends_where_the_sender_can_go_no_faster() -> None:
    asked: list[float] = []

    def attempt(rate: float) -> Known:
        asked.append(rate)
        return Known(rate, 1e12, exhausted=rate > 30_000)

    best = highest(attempt, 4_000)
    assert best is not None
    assert best.rate == max(asked) == 32_000
