"""Calls that come after a while, nearly all of which are cancelled before: each is an entry in a dict, behind one timer of asyncio's loop.

A timer of one's own costs a place in the loop's heap, and one that is cancelled is cleared away only much later.
"""

import asyncio
from collections.abc import Callable
from itertools import takewhile


class Delay:
    """Calls that all come `seconds` after they were asked for: so the first that was asked for is the next that is due."""

    __slots__ = ("_armed", "_due", "_seconds", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self._seconds = seconds
        self._due: dict[Callable[[], object], float] = {}
        self._armed = False

    def call(self, callback: Callable[[], object]) -> None:
        """Call `callback`, which must not wait for another call already, unless it is cancelled before."""
        due = self.loop.time() + self._seconds
        self._due[callback] = due
        if not self._armed:
            self._arm(due)

    def cancel(self, callback: Callable[[], object]) -> None:
        """Do not call it any more. Idempotent."""
        self._due.pop(callback, None)

    def _arm(self, due: float) -> None:
        self._armed = True
        self.loop.call_at(due, self._look)

    def _look(self) -> None:
        self._armed = False
        now = self.loop.time()
        due = list(takewhile(lambda callback: self._due[callback] <= now, self._due))
        for callback in due:
            if self._due.pop(callback, None) is not None:  # else an earlier one has cancelled it
                callback()
        if self._due and not self._armed:
            self._arm(next(iter(self._due.values())))


_delays: dict[float, Delay] = {}  # of the loop that was asked last: there is one in a process, but for tests


def delay_of(loop: asyncio.AbstractEventLoop, seconds: float) -> Delay:
    """What calls after so many seconds in this loop; few different ones are ever asked for."""
    delay = _delays.get(seconds)
    if delay is None or delay.loop is not loop:
        delay = _delays[seconds] = Delay(loop, seconds)
    return delay
