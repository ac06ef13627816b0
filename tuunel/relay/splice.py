"""The relay's pipe: moves bytes between two sockets inside the kernel, without looking at them.

`os.splice` moves through a kernel pipe, which is borrowed only while it holds bytes: a tunnel at rest costs no descriptors of its own.
Without splice (not Linux, or refused), and while no pipe is to be had, bytes are copied instead. The rules of ends and resets are
those of the pump. Source: docs/spec/tunnel.md.
"""

import errno
import fcntl
import os
import sys
from typing import Final

from tuunel.buffers import BufferPool
from tuunel.events import Traffic
from tuunel.pump import Copying, Direction, PumpEnd, Step, pump_both_ways
from tuunel.rawstream import RawStream
from tuunel.relay.pace import FREE, Pace

PIPE_SIZE: Final = 1024 * 1024  # bytes; the most that Linux grants without privilege. Smaller ones cost up to four times the CPU.
MAX_LENT: Final = 64  # pipes out at a time, so 64 MiB at most are held for readers that stall; also what Linux grants one user
KEEP: Final = 16  # free pipes kept for the next borrower
SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if sys.platform == "linux" else 0
REFUSED: Final = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)  # splice is not for these sockets, or not on this machine


class Pipe:
    """A kernel pipe of PIPE_SIZE bytes, non-blocking at both ends. Creating one raises OSError when the system has no more to give."""

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self) -> None:
        self.held = 0  #: bytes in it
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.close()
            raise

    def fill(self, source: RawStream, most: int = PIPE_SIZE) -> bool:
        """Take what `source` holds, at most `most` bytes, without waiting, into the empty pipe. False at its clean end.

        OSError as splice(2) gives it.
        """
        try:
            self.held = os.splice(source.fileno(), self.write_end, most, flags=SPLICE)
        except BlockingIOError:
            return True
        return self.held > 0

    def drain(self, sink: RawStream) -> None:
        """Give `sink` what it takes, without waiting."""
        try:
            while self.held:
                self.held -= os.splice(self.read_end, sink.fileno(), self.held, flags=SPLICE)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Free the descriptors; bytes in it are gone."""
        os.close(self.read_end)
        os.close(self.write_end)


class PipePool:
    """Lends pipes, and the buffers for what must be copied. One pool serves a whole relay; `close` it at the end."""

    def __init__(self, *, splice: bool = sys.platform == "linux") -> None:
        self.buffers = BufferPool()
        self._splice = splice
        self._free: list[Pipe] = []
        self._lent = 0

    @property
    def lent(self) -> int:
        """How many pipes are out: tunnels at rest hold none."""
        return self._lent

    def borrow(self) -> Pipe | None:
        """Lend an empty pipe. None: copy instead, because splice is not there or no pipe is to be had."""
        if not self._splice or self._lent >= MAX_LENT:
            return None
        try:
            pipe = self._free.pop() if self._free else Pipe()
        except OSError:
            return None
        self._lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back. One that still holds bytes is closed: nobody else may ever read them."""
        self._lent -= 1
        if pipe.held or len(self._free) >= KEEP:
            pipe.close()
        else:
            self._free.append(pipe)

    def refuse(self) -> None:
        """Lend no pipes any more: the kernel refused to splice."""
        self._splice = False

    def close(self) -> None:
        """Close the free pipes."""
        while self._free:
            self._free.pop().close()


async def splice_both_ways(
    a: RawStream,
    b: RawStream,
    *,
    first_to_b: bytes = b"",
    first_to_a: bytes = b"",
    traffic: Traffic,
    pipes: PipePool,
    pace: Pace = FREE,
) -> PumpEnd:
    """Move bytes between `a` and `b` until both directions have ended; ends, resets, errors and counters as in `copy_both_ways`.

    `first_to_b` and `first_to_a` were read before the pipe began, and are written before anything else. All of them go at `pace`.
    """

    async def carry(direction: Direction[RawStream]) -> None:
        first = first_to_b if direction.sink is b else first_to_a
        if first:
            direction.begin_write()
            await pace.pay(len(first), direction.source)
            await direction.sink.send_all(first)
            direction.end_write(len(first))
        moving = _Moving(direction, pipes, pace)
        try:
            while (paused := await direction.source.on_readable(moving.step)) is not Step.ENDED:
                await (moving.finish() if paused is Step.BLOCKED else moving.wait())
        finally:
            moving.close()

    return await pump_both_ways(a, b, traffic, carry)


class _Moving:
    """What one direction moves, a pipe at a time, or copies where there is no pipe. As `Copying`."""

    __slots__ = ("_copying", "_direction", "_granted", "_pace", "_pipe", "_pipes", "_taken")

    def __init__(self, direction: Direction[RawStream], pipes: PipePool, pace: Pace) -> None:
        self._direction = direction
        self._pipes = pipes
        self._pace = pace
        self._granted = 0  # bytes that may be moved, after a wait for them
        self._copying = Copying(direction, pipes.buffers)
        self._pipe: Pipe | None = None
        self._taken = 0

    def step(self) -> Step | None:
        """Move what can be read and written now, one pipe at most, and no more than the pace allows: WAITING when that is nothing."""
        most = self._granted or self._pace.take(PIPE_SIZE)
        if not most:
            return Step.WAITING
        self._granted = 0
        pipe = self._pipe = self._pipes.borrow()
        if pipe is None:
            return self._copy(most)
        try:
            more = pipe.fill(self._direction.source, most)
            self._taken = pipe.held
            pipe.drain(self._direction.sink)
        except OSError as error:
            if error.errno not in REFUSED or pipe.held:
                raise
            self._pipes.refuse()
            self._give_back_pipe()
            return self._copy(most)
        self._pace.give_back(most - self._taken)
        if pipe.held:
            return Step.BLOCKED
        self._direction.count(self._taken)
        self._give_back_pipe()
        return None if more else Step.ENDED

    def _copy(self, most: int) -> Step | None:
        step = self._copying.step(most)
        self._pace.give_back(most - self._copying.taken)
        return step

    async def wait(self) -> None:
        """Wait for a turn, after WAITING. Meanwhile nobody reads the source: it is watched, as while a write waits."""
        self._direction.begin_write()
        self._granted = await self._pace.turn(PIPE_SIZE, self._direction.source)
        self._direction.end_write(0)

    async def finish(self) -> None:
        """Move the rest, after BLOCKED."""
        if self._pipe is None:
            await self._copying.finish()
            return
        self._direction.begin_write()
        while self._pipe.held:
            await self._direction.sink.wait_writable()
            self._pipe.drain(self._direction.sink)
        self._direction.end_write(self._taken)
        self._give_back_pipe()

    def close(self) -> None:
        """Give back what is borrowed."""
        self._copying.close()
        self._give_back_pipe()
        self._pace.give_back(self._granted)
        self._granted = 0

    def _give_back_pipe(self) -> None:
        if self._pipe is not None:
            self._pipes.give_back(self._pipe)
            self._pipe = None
