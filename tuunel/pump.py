"""The pump: copies both ways between two conduits until both directions have ended, or one of them breaks.

Half-close is kept: the end of one direction is passed on while the other goes on. A reset is never passed on as an end, nor an end
as a reset. A pump that cannot write also does not read, so it would not see that the side it stopped reading from has been reset;
therefore every side that is not being read is watched. Source: docs/spec/records.md, docs/spec/tunnel.md (ends).
"""

from collections.abc import Awaitable, Callable
from enum import Enum, StrEnum
from functools import partial
from typing import Final, Generic, TypeVar

import anyio
import anyio.lowlevel

from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.companions import Companion, companions
from tuunel.errors import RemoteProtocolError
from tuunel.events import Traffic
from tuunel.rawstream import Conduit, Rest

# Seconds. A reset crosses forward proxy, relay and agent, each with a watch of its own: at most four rounds together,
# and 3 seconds on a machine that has other things to do, too.
WATCH_INTERVAL: Final = 0.4

#: What a broken connection raises. OSError: the kernel says so. Closed: somebody else cut this side, by a revoke for instance.
BROKEN: Final = (OSError, anyio.ClosedResourceError, RemoteProtocolError)

End = TypeVar("End", bound=Conduit)


class PumpEnd(StrEnum):
    """How a pump ended: both directions by their own clean end, or both by a reset."""

    DONE = "done"
    RESET = "reset"


class Step(Enum):
    """Why a direction's steps have paused: a write waits for the sink, it may not go on yet, or the source has come to its clean end."""

    BLOCKED = "blocked"
    WAITING = "waiting"
    ENDED = "ended"


class Direction(Generic[End]):
    """One of the two directions of a pump: where from, where to, and what the watch must know about it."""

    __slots__ = ("_busy", "_seen", "_writes", "count", "ended", "sink", "source", "writing")

    def __init__(self, source: End, sink: End, count: Callable[[int], None], busy: Callable[[], None]) -> None:
        self.source = source
        self.sink = sink
        self.count = count  #: takes the number of bytes that were just written to the sink
        self.writing = False
        self.ended = False
        self._busy = busy
        self._writes = 0
        self._seen = 0

    def begin_write(self) -> None:
        """Say that the source is not being read from now on. Only a task may: a watch begins."""
        self._writes += 1
        self.writing = True
        self._busy()

    def end_write(self, n: int) -> None:
        """Say that `n` bytes were written and the source is read again."""
        self.writing = False
        self.count(n)

    @property
    def unread(self) -> bool:
        """Whether nobody reads the source at this moment."""
        return self.writing or self.ended

    def has_lost_its_source(self) -> bool:
        """Whether the source is broken and nobody reads it: the direction has ended, or its write has not moved since the last call."""
        blocked = self.writing and self._writes == self._seen
        self._seen = self._writes
        return (blocked or self.ended) and self.source.broken()


async def copy_both_ways(a: Conduit, b: Conduit, traffic: Traffic, buffers: BufferPool) -> PumpEnd:
    """Copy between `a` (the app's side) and `b` until both directions have ended. Counts a to b as `traffic.up`, b to a as `down`.

    DONE: both ends have been passed on, and both conduits are still open: close them, or use them again. RESET: an error on either
    side has reset both. Any other error of a conduit, and a cancellation, resets both and is raised.
    """
    return await pump_both_ways(a, b, traffic, partial(_copy, buffers=buffers))


async def pump_both_ways(a: End, b: End, traffic: Traffic, carry: Callable[[Direction[End]], Awaitable[None]]) -> PumpEnd:
    """Run `carry` for each direction, under the rules of `copy_both_ways`.

    `carry` moves bytes from the direction's source to its sink until the source's clean end, and tells the direction when it writes.
    """
    pump = _Pump(a, b, traffic, carry)
    try:
        return await pump.run()
    except BaseException:
        a.reset()
        b.reset()
        raise


class _Pump(Generic[End]):
    def __init__(self, a: End, b: End, traffic: Traffic, carry: Callable[[Direction[End]], Awaitable[None]]) -> None:
        def count_up(n: int) -> None:
            traffic.up += n

        def count_down(n: int) -> None:
            traffic.down += n

        self._forth = Direction(a, b, count_up, self._begin_watch)
        self._back = Direction(b, a, count_down, self._begin_watch)
        self._carry = carry
        self._watcher: Companion | None = None
        self._error: Exception | None = None

    async def run(self) -> PumpEnd:
        try:
            async with companions() as self._companions:
                self._companions.start(self._run, self._back)
                await self._run(self._forth)
        finally:
            del self._forth, self._back  # they refer to this: garbage that would have to be looked for
        if self._error is None:
            return PumpEnd.DONE
        if not isinstance(self._error, BROKEN):
            raise self._error
        return PumpEnd.RESET

    async def _run(self, direction: Direction[End]) -> None:
        try:
            await self._carry(direction)
            direction.begin_write()
            await direction.sink.write_eof()
            direction.end_write(0)
        except Exception as error:  # raised by run(): a lone error, not a group of one
            self._fail(error)
            return
        direction.ended = True
        if self._watcher is not None and self._forth.ended and self._back.ended:
            self._watcher.cancel()

    def _begin_watch(self) -> None:
        if self._watcher is None:
            self._watcher = self._companions.start_later(WATCH_INTERVAL, self._watch)

    async def _watch(self) -> None:
        """Look after the sides that nobody reads, as long as there are any: a tunnel at rest has no task for it."""
        directions = (self._forth, self._back)
        try:
            while not any(direction.has_lost_its_source() for direction in directions):
                if not any(direction.unread for direction in directions):
                    return
                await anyio.sleep(WATCH_INTERVAL)
            raise ConnectionResetError
        except Exception as error:  # as in _run
            self._fail(error)
        finally:
            self._watcher = None

    def _fail(self, error: Exception) -> None:
        """Reset both sides, which ends the other direction, whatever it waits for, and the watch at its next look."""
        if self._error is None:
            self._error = error
        if self._watcher is not None:
            self._watcher.cancel()
        self._forth.source.reset()
        self._forth.sink.reset()


class Copying:
    """What one direction of a pump copies, a buffer at a time. `step` is for `on_readable`; `finish` waits for what it could not write."""

    __slots__ = ("_buffer", "_buffers", "_direction", "_rest", "taken")

    def __init__(self, direction: Direction[End], buffers: BufferPool) -> None:
        self.taken = 0  #: bytes that the last step has read
        self._direction = direction
        self._buffers = buffers
        self._buffer: memoryview | None = None
        self._rest: Rest | None = None

    def step(self, most: int = MAX_BODY) -> Step | None:
        """Copy what can be read and written now; of a raw stream at most `most` bytes. None: all that was read is written."""
        direction = self._direction
        buffer = self._buffer = self._buffers.borrow()
        n = direction.source.read_into(buffer, min(most, direction.sink.chunk_limit))
        self.taken = n or 0
        ended = n == 0
        if n:
            ended = direction.source.at_end
            self._rest = direction.sink.write_now(buffer, n, last=ended)
            if self._rest is not None:
                return Step.BLOCKED
            direction.count(n)
        self.close()
        return Step.ENDED if ended else None

    async def finish(self) -> None:
        """Write the rest, after BLOCKED."""
        assert self._rest is not None
        self._direction.begin_write()
        await self._rest()
        self._direction.end_write(self.taken)
        self.close()

    def close(self) -> None:
        """Give back what is borrowed."""
        self._rest = None
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None


async def _copy(direction: Direction[Conduit], buffers: BufferPool) -> None:
    copying = Copying(direction, buffers)
    try:
        while await direction.source.on_readable(copying.step) is Step.BLOCKED:
            await copying.finish()
    finally:
        copying.close()
