"""A clock that moves when a test says so, or when somebody sleeps by it."""

import anyio
import anyio.lowlevel


class Clock:
    """Call it for the time; `now` may be moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Be there at once: the clock goes on by as much, and others have their turn."""
        until = self.now + seconds
        await anyio.lowlevel.checkpoint()
        self.now = max(self.now, until)


class StandingClock(Clock):
    """A clock that stands still for all who sleep by it, until `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeping = 0
        self._moved = anyio.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait for the clock to be moved so far."""
        until = self.now + seconds
        self.sleeping += 1
        try:
            while self.now < until:
                await self._moved.wait()
        finally:
            self.sleeping -= 1

    def go_on(self, seconds: float) -> None:
        """Move the clock, and wake those whose time has come."""
        self.now += seconds
        self._moved.set()
        self._moved = anyio.Event()
