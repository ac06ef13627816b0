"""Makes again what a pool has given away: several at a time, and after the rush that emptied it."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel.errors import Failure

AT_ONCE: Final = 4  #: one after the other takes a minute over a long line; more would hold up who asks meanwhile
PATIENCE: Final = 1.0  #: seconds in which a refill lets those who wait go first: they may be there all the time


class Refill:
    """Refills a pool in `tasks`: `lacking()` says how many things it lacks now, and `make()` makes one and puts it in, or raises Failure.

    A Failure ends the refill. Things that spoil as soon as they are made end it too: no more are made than were lacking at its beginning.
    """

    def __init__(self, tasks: TaskGroup, lacking: Callable[[], int], make: Callable[[], Awaitable[object]]) -> None:
        self._tasks = tasks
        self._lacking = lacking
        self._make = make
        self._rushing = 0
        self._calm = anyio.Event()
        self._making = 0
        self._left = 0
        self._patient_until = 0.0
        self.running = False  #: whether a refill is under way

    @contextmanager
    def rush(self) -> Iterator[None]:
        """Let what is done inside go before: somebody waits for it."""
        self._rushing += 1
        try:
            yield
        finally:
            self._rushing -= 1
            if not self._rushing:
                self._calm.set()
                self._calm = anyio.Event()

    def begin(self) -> None:
        """Begin to make what is lacking, unless that is under way."""
        if not self.running and self._lacking() > 0:
            self.running = True
            self._tasks.start_soon(self._run)

    async def _run(self) -> None:
        try:
            self._patient_until = anyio.current_time() + PATIENCE
            await self._let_the_rush_go_before()
            self._left = self._lacking()
            async with anyio.create_task_group() as workers:
                for _ in range(min(self._left, AT_ONCE)):
                    workers.start_soon(self._work)
        finally:
            self.running = False

    async def _let_the_rush_go_before(self) -> None:
        with anyio.CancelScope(deadline=self._patient_until):
            while self._rushing:
                await self._calm.wait()

    async def _work(self) -> None:
        while self._left > 0 and self._lacking() > self._making:
            self._left -= 1
            self._making += 1
            try:
                await self._let_the_rush_go_before()
                await self._make()
            except Failure:
                self._left = 0  # whoever needs one next makes his own, and is told what is wrong
            finally:
                self._making -= 1
