"""A token bucket whose tokens may be spent before they are there: who spends then waits for as long as it is told.

Pure: the clock is injected. Source: docs/spec/relay.md, "Limits that the operator sets".
"""

from collections.abc import Callable


class Bucket:
    """Holds `burst` tokens and gains `rate` a second; free while the rate is None: then there is always enough.

    Whoever heeds the waits that `spend` tells has at no moment used more than `burst` tokens and what has come since the start.
    """

    __slots__ = ("_burst", "_clock", "_level", "_since", "rate")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rate: float | None = None
        self._clock = clock
        self._burst = self._level = 0.0
        self._since = clock()

    def allow(self, rate: float | None, burst: float) -> None:
        """Gain `rate` tokens a second from now on. A bucket that was free is full; what has been spent ahead stays spent."""
        level = burst if self.rate is None else min(self.level, burst)
        self.rate, self._burst, self._level, self._since = rate, burst, level, self._clock()

    @property
    def level(self) -> float:
        """The tokens that are there; negative while some are spent ahead. Means nothing while the bucket is free."""
        now = self._clock()
        self._level = min(self._level + (now - self._since) * (self.rate or 0.0), self._burst)
        self._since = now
        return self._level

    @property
    def full(self) -> bool:
        """Whether it is as if nothing had ever been spent."""
        return self.rate is None or self.level >= self._burst

    def spend(self, n: float) -> float:
        """Take `n` tokens, there or not: the seconds until they are there, behind all that were spent before."""
        if self.rate is None:
            return 0.0
        self._level = self.level - n
        return max(0.0, -self._level / self.rate)

    def give_back(self, n: float) -> None:
        """Return `n` tokens that were spent and not used."""
        if self.rate is not None:
            self._level = min(self.level + n, self._burst)
