"""The highest rate that a system carries."""

from collections.abc import Callable
from typing import Protocol, TypeVar

LOWEST_RATE = 100.0
HALVINGS = 4  # of the last factor of two: the answer is right to 2 ** (1 / 16), 4.4 %


class Trial(Protocol):
    """One attempt at a rate."""

    @property
    def held(self) -> bool:
        """Whether the system carried the rate."""

    @property
    def exhausted(self) -> bool:
        """Whether the sender itself could not go as fast as asked: a higher rate would be no other trial."""

    @property
    def delivered_rate(self) -> float:
        """What arrived, per second."""


T = TypeVar("T", bound=Trial)


def highest(attempt: Callable[[float], T], start: float) -> T | None:
    """Return the trial that held with the highest delivered rate, or None when not even LOWEST_RATE holds.

    The rate is doubled (or halved, when `start` already fails) until one holds and its double fails; then the gap is halved HALVINGS times,
    in proportion. A trial that fails is made once more before it counts as failed: one hiccup of the machine is no limit.
    """
    held: list[T] = []

    def holds(rate: float) -> bool:
        for _ in range(2):
            trial = attempt(rate)
            if trial.held:
                held.append(trial)
                return True
        return False

    low = start
    while not holds(low):
        low /= 2
        if low < LOWEST_RATE:
            return None
    high = low * 2
    if low == start:
        while not held[-1].exhausted and holds(high):
            low, high = high, high * 2
    if not held[-1].exhausted:
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(middle) else (low, middle)
    return max(held, key=lambda trial: trial.delivered_rate)
