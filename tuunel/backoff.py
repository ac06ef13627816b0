"""How long to wait before trying again: longer with every try, in proportion to the outage, and spread by chance.

The spread (full jitter) keeps many clients from coming back at the same moment. Source: docs/spec/tunnel.md (liveness).
"""

from collections.abc import Callable
from typing import Final

FIRST: Final = 0.5  #: seconds: the ceiling of the first waiting time; it doubles with each try
SOON: Final = 2.0  #: seconds: the ceiling in an outage of up to a minute, after which everybody is back within five seconds
SHARE: Final = 1 / 30  #: of the outage so far: the ceiling of a longer one, SOON after a minute
LATE: Final = 20.0  #: seconds: the ceiling of any; with one more try, which may take ten, everybody is back within half a minute
LONGEST_ASKED: Final = 600.0  #: seconds of a pause that the other side may ask for: once it is well again we must come back


class Backoff:
    """The waiting times of one thing that is tried again and again.

    `random` returns a float in [0, 1), `clock` seconds that only grow. The outage begins with the first waiting time.
    """

    def __init__(self, random: Callable[[], float], clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._ceiling = FIRST
        self._began: float | None = None

    def next(self) -> float:
        """Return the seconds to wait now: anything from 0 to the ceiling of the moment."""
        now = self._clock()
        if self._began is None:
            self._began = now
        delay = self._random() * self._ceiling
        self._ceiling = min(self._ceiling * 2, max(SOON, (now - self._began) * SHARE), LATE)
        return delay

    def after(self, asked: float) -> float:
        """As `next`, and not less than the `asked` seconds, of which LONGEST_ASKED count."""
        return max(self.next(), min(asked, LONGEST_ASKED))

    def reset(self) -> None:
        """Begin anew with the shortest waiting times: call it after a success."""
        self._ceiling = FIRST
        self._began = None
