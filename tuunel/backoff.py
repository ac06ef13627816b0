"""How long to wait before trying again: exponential, with full jitter, so that many clients do not come back at the same moment."""

from collections.abc import Callable
from typing import Final

LONGEST_ASKED: Final = 600.0  #: seconds of a pause that the other side may ask for: once it is well again we must come back


class Backoff:
    """The waiting times of one thing that is tried again and again.

    `random` returns a float in [0, 1); `first` and `limit` are seconds: the ceilings of the first and of every late waiting time.
    """

    def __init__(self, random: Callable[[], float], first: float = 0.5, limit: float = 30.0) -> None:
        self._random = random
        self._first = first
        self._limit = limit
        self._ceiling = first

    def next(self) -> float:
        """Return the seconds to wait now: anything from 0 to a ceiling that doubles with each call, up to the limit."""
        delay = self._random() * self._ceiling
        self._ceiling = min(self._limit, self._ceiling * 2)
        return delay

    def after(self, asked: float) -> float:
        """As `next`, and not less than the `asked` seconds, of which LONGEST_ASKED count."""
        return max(self.next(), min(asked, LONGEST_ASKED))

    def reset(self) -> None:
        """Begin anew with the shortest waiting times: call it after a success."""
        self._ceiling = self._first
