"""Tasks that run beside their owner, for the paths that every connection takes.

A task group gives each of its tasks a cancel scope, a handle and an event, which cost more than most of what runs here.
On asyncio a companion is a bare task; elsewhere (trio) it is a task of a task group, behind the same contract.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import anyio

from tuunel.delays import Delay, delay_of

Work = Callable[..., Awaitable[object]]


class Companion(Protocol):
    """One task that was started."""

    def cancel(self) -> None:
        """Cancel it, once: at its first wait where it has not begun, and whatever is shielded. What it awaits while it winds up goes on."""

    async def ended(self) -> None:
        """Wait until it has ended, in whatever way; of one that is cancelled before it has begun, there is nothing to wait for."""


class Companions(Protocol):
    """Starts tasks, and waits for them where its context is left; when the body raises, or is cancelled, they are cancelled first.

    What a companion raises interrupts nobody: the first such error is raised where the context is left, unless the body raises its own.
    """

    async def __aenter__(self) -> Self:
        """Begin."""

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for all."""

    def start(self, work: Work, *args: Any) -> Companion:
        """Run `work(*args)` from the next turn of the event loop on. Only within the context."""

    def start_later(self, seconds: float, work: Work, *args: Any) -> Companion:
        """As `start`, after a while. One that is cancelled before, or that alone is left where the context is left, never begins."""

    def cancel(self) -> None:
        """Cancel all that run."""


def companions() -> Companions:
    """Make a context for companions, of the kind that fits the event loop which runs."""
    try:
        return _BareTasks(asyncio.get_running_loop())
    except RuntimeError:
        return GroupedTasks()


class _BareTask:
    __slots__ = ("_begun", "_cancelled", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Work, args: tuple[Any, ...]) -> None:
        self._begun = False
        self._cancelled = False
        self.task: asyncio.Task[None] = loop.create_task(self._run(work, args))

    def cancel(self) -> None:
        if self._begun:
            self.task.cancel()
        self._cancelled = True

    async def ended(self) -> None:
        if self.task.done():
            return
        over: asyncio.Future[None] = self.task.get_loop().create_future()

        def tell(_: asyncio.Task[None]) -> None:
            if not over.done():  # who waits may have been cancelled
                over.set_result(None)

        self.task.add_done_callback(tell)
        await over

    async def _run(self, work: Work, args: tuple[Any, ...]) -> None:
        self._begun = True
        if self._cancelled:  # only now: asyncio would throw a cancelled task away before it has begun, and what it was to look after
            self.task.cancel()
        # A cancelled task keeps the error, which refers to what ran here, and so to the task: garbage that would have to be looked for.
        with suppress(asyncio.CancelledError):
            await work(*args)


class _DelayedTask:
    """A bare task that is to begin: until then it is an entry among the loop's delays and no more."""

    __slots__ = ("_begun", "_delay", "_start", "_waiting")

    def __init__(self, delay: Delay, start: Callable[[], Companion], waiting: "set[_DelayedTask]") -> None:
        self._begun: Companion | None = None
        self._delay = delay
        self._start = start
        self._waiting = waiting
        waiting.add(self)
        delay.call(self)

    def __call__(self) -> None:
        """The time has come."""
        start = self._start
        self._leave()
        self._begun = start()

    def cancel(self) -> None:
        if self._begun is not None:
            self._begun.cancel()
        elif self in self._waiting:
            self._delay.cancel(self)
            self._leave()

    async def ended(self) -> None:
        if self._begun is not None:
            await self._begun.ended()

    def _leave(self) -> None:
        self._waiting.discard(self)
        del self._start  # it refers to who holds this: garbage that would have to be looked for


class _BareTasks:
    __slots__ = ("_all_ended", "_delayed", "_error", "_loop", "_members")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._members: dict[asyncio.Task[None], _BareTask] = {}
        self._delayed: set[_DelayedTask] = set()
        self._error: BaseException | None = None
        self._all_ended: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            try:
                await self._until_all_have_ended()
            except BaseException:
                await self._end_all()
                raise
            self._forget_delayed()
            if self._error is not None:
                raise self._error
        elif self._members or self._delayed:
            await self._end_all()

    def start(self, work: Work, *args: Any) -> Companion:
        member = _BareTask(self._loop, work, args)
        self._members[member.task] = member
        member.task.add_done_callback(self._note_end)
        return member

    def start_later(self, seconds: float, work: Work, *args: Any) -> Companion:
        return _DelayedTask(delay_of(self._loop, seconds), partial(self.start, work, *args), self._delayed)

    def cancel(self) -> None:
        self._forget_delayed()
        for member in self._members.values():
            member.cancel()

    def _forget_delayed(self) -> None:
        for member in tuple(self._delayed):
            member.cancel()

    async def _end_all(self) -> None:
        self.cancel()
        with anyio.CancelScope(shield=True):
            await self._until_all_have_ended()

    async def _until_all_have_ended(self) -> None:
        while self._members:
            self._all_ended = self._loop.create_future()
            await self._all_ended

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        del self._members[task]
        if not task.cancelled() and self._error is None:
            self._error = task.exception()
        if not self._members and self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)


class _GroupedTask:
    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()

    def cancel(self) -> None:
        self.scope.cancel()

    async def ended(self) -> None:
        await self.over.wait()


class GroupedTasks:
    """The portable kind, for every event loop that anyio knows."""

    def __init__(self) -> None:
        self._members: set[_GroupedTask] = set()
        self._delayed: set[_GroupedTask] = set()
        self._error: BaseException | None = None
        self._leaving = False

    async def __aenter__(self) -> Self:
        """Begin."""
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for all."""
        if error is not None:
            self.cancel()
        self._leaving = True
        self._forget_those_left_alone()
        await self._group.__aexit__(None, None, None)
        if error is None and self._error is not None:
            raise self._error

    def start(self, work: Work, *args: Any) -> Companion:
        """Run `work(*args)`."""
        member = _GroupedTask()
        self._members.add(member)
        self._group.start_soon(self._run, member, work, args)
        return member

    def start_later(self, seconds: float, work: Work, *args: Any) -> Companion:
        """Run `work(*args)` after a while."""
        member = _GroupedTask()
        self._delayed.add(member)
        self._group.start_soon(self._run_later, member, seconds, work, args)
        return member

    def cancel(self) -> None:
        """Cancel all that run."""
        for member in self._members | self._delayed:
            member.cancel()

    def _forget_those_left_alone(self) -> None:
        if self._leaving and not self._members:
            for member in self._delayed:
                member.cancel()

    async def _run_later(self, member: _GroupedTask, seconds: float, work: Work, args: tuple[Any, ...]) -> None:
        begins = False
        try:
            with member.scope:
                await anyio.sleep(seconds)
            begins = not member.scope.cancel_called
        finally:
            self._delayed.discard(member)
            if not begins:
                member.over.set()
        if not begins:
            return
        self._members.add(member)
        member.scope = anyio.CancelScope()
        await self._run(member, work, args)

    async def _run(self, member: _GroupedTask, work: Work, args: tuple[Any, ...]) -> None:
        try:
            with member.scope:
                await work(*args)
        except Exception as error:
            self._error = self._error or error
        finally:
            self._members.discard(member)
            member.over.set()
            self._forget_those_left_alone()
