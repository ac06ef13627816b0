"""An event loop whose clock stands still until the test moves it: hours pass in milliseconds, and always in the same order."""

import asyncio
import math
import time
from typing import Any

START = 1_800_000_000  #: unix seconds when the clock reads 0


class SteppedLoop(asyncio.SelectorEventLoop):
    """Runs what is ready and nothing else; only `advance` lets time pass."""

    _ready: Any  # asyncio's own queues: the only way to see that nothing is left to do
    _scheduled: Any
    _clock_resolution: float

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        # A timer that runs before its time, however little, finds that it is not due and is set again: for ever, on a clock that stands.
        self._clock_resolution = 0.0

    def time(self) -> float:
        return self._now

    def settle(self) -> None:
        """Run every task until all of them wait."""
        self.run_until_complete(self._idle())

    async def _idle(self) -> None:
        await asyncio.sleep(0)
        while self._ready:
            await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let time pass, from one timer to the next."""
        end = self._now + seconds
        self.settle()
        while (due := self._next_timer()) is not None and due <= end:
            self._now = max(math.nextafter(due, math.inf), self._now)  # what is due runs behind its time
            self.settle()
        self._now = max(end, self._now)
        self.settle()

    def _next_timer(self) -> float | None:
        return min((timer.when() for timer in self._scheduled if not timer.cancelled()), default=None)


class Clock:
    """Stands for the module `time`."""

    def __init__(self, loop: SteppedLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return START + self._loop.time()

    def time_ns(self) -> int:
        return time.time_ns()  # compared with the times of files, which are real

    def clock_gettime(self, _: int) -> float:
        return self._loop.time()
