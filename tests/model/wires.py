"""Connections without a network: bytes lie on a wire until somebody delivers, spoils, loses or doubles them."""

from collections.abc import Callable
from itertools import count

import anyio
import anyio.lowlevel

from tuunel.address import HostPort
from tuunel.buffers import MAX_BODY
from tuunel.rawsocket import Result
from tuunel.rawstream import FIRST_READS, Bytes, RawStream

CAPACITY = 128 * 1024  #: bytes on the wire and unread together: behind them a writer waits

_numbers = count(1)


class Lane:
    """One direction of a wire."""

    def __init__(self, *, immediate: bool) -> None:
        self.moving = bytearray()
        self.arrived = bytearray()
        self.ended = False  # the sender has said its end, or ...
        self.torn = False  # ... reset the connection
        self.end_arrived = False
        self.tear_arrived = False
        self.deaf = False  # nobody will ever read what arrives
        self.on_unheard: Callable[[], None] = lambda: None
        self.on_tear: Callable[[], None] = lambda: None
        self._immediate = immediate
        self._changed: list[anyio.Event] = []

    @property
    def room(self) -> int:
        return max(CAPACITY - len(self.moving) - len(self.arrived), 0)

    @property
    def news(self) -> bool:
        """Whether something is under way: bytes, an end or a reset."""
        return bool(self.moving or (self.ended and not self.end_arrived) or (self.torn and not self.tear_arrived))

    @property
    def readable(self) -> bool:
        return bool(self.arrived) or self.end_arrived or self.tear_arrived

    def put(self, data: Bytes) -> None:
        self.moving += data
        self.sent()

    def sent(self) -> None:
        if self._immediate:
            self.deliver(len(self.moving))

    def deliver(self, many: int) -> None:
        """Let so many bytes arrive, and what follows the last one."""
        part = self.moving[:many]
        del self.moving[:many]
        if self.deaf:
            if part:
                self.on_unheard()
        else:
            self.arrived += part
        if not self.moving:
            self.end_arrived = self.end_arrived or self.ended
            if self.torn:
                self.tear_arrived = True
                self.arrived.clear()  # as a kernel does
                self.on_tear()
        self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, []
        for event in changed:
            event.set()

    async def change(self) -> None:
        event = anyio.Event()
        self._changed.append(event)
        await event.wait()


class Wire:
    """A connection between `opener` and `acceptor`, whose ends are `near` (the opener's) and `far`."""

    def __init__(self, opener: str, acceptor: str, *, immediate: bool = False) -> None:
        self.parties = (opener, acceptor)
        self.forth, self.back = Lane(immediate=immediate), Lane(immediate=immediate)
        self.near = WireStream(self.forth, self.back)
        self.far = WireStream(self.back, self.forth)

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return self.forth, self.back

    @property
    def over(self) -> bool:
        """Whether both ends are closed."""
        return self.near.closed and self.far.closed

    def cut(self) -> None:
        """The network loses the connection: what is under way is gone, and both ends are told."""
        for lane in self.lanes:
            lane.moving.clear()
            lane.torn = True
            lane.deliver(0)

    def deliver_all(self) -> bool:
        """Let everything arrive; whether there was anything."""
        news = [lane for lane in self.lanes if lane.news]
        for lane in news:
            lane.deliver(len(lane.moving))
        return bool(news)


class WireStream(RawStream):
    """One end of a wire, for everybody who works with raw streams."""

    def __init__(self, out: Lane, into: Lane) -> None:
        self._out, self._into = out, into
        self._eof_read = self._eof_written = self.closed = False
        self._first_reads = FIRST_READS
        self._number = next(_numbers)
        into.on_unheard = self._answer_unheard
        into.on_tear = out.wake

    @property
    def chunk_limit(self) -> int:
        return MAX_BODY

    @property
    def is_unix(self) -> bool:
        return False

    @property
    def local(self) -> HostPort:
        return HostPort("192.168.7.1", 40000)

    @property
    def peer(self) -> HostPort:
        return HostPort("203.0.113.7", 7443)

    def fileno(self) -> int:
        return -1 if self.closed else self._number

    async def wait_readable(self) -> None:
        self._check_open()
        await anyio.lowlevel.checkpoint()
        while not (self.closed or self._into.readable):
            await self._into.change()
        self._check_open()

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        result = None
        while result is None:
            await self.wait_readable()
            result = step()
        return result

    async def wait_writable(self) -> None:
        self._check_open()
        await anyio.lowlevel.checkpoint()
        while not (self.closed or self._out.room or self._into.tear_arrived):
            await self._out.change()
        self._check_open()

    def receive_into(self, view: memoryview) -> int | None:
        self._check_open()
        if self._into.tear_arrived:
            raise ConnectionResetError("reset by the peer")
        if not self._into.arrived:
            self._eof_read = self._into.end_arrived
            return 0 if self._eof_read else None
        n = min(len(view), len(self._into.arrived))
        view[:n] = self._into.arrived[:n]
        del self._into.arrived[:n]
        self._into.wake()
        return n

    async def receive(self, limit: int = 65536) -> bytes:
        buffer = bytearray(limit)
        while True:
            await self.wait_readable()
            n = self.receive_into(memoryview(buffer))
            if n is not None:
                return bytes(buffer[:n])

    def send_now(self, data: Bytes) -> int:
        self._check_open()
        if self._into.tear_arrived:
            raise ConnectionResetError("reset by the peer")
        if self._eof_written:
            raise BrokenPipeError
        n = min(len(data), self._out.room)
        self._out.put(data[:n])
        return n

    async def write_eof(self) -> None:
        self._check_open()
        self._eof_written = True
        self._out.ended = True
        self._out.sent()

    def unacknowledged(self) -> float | None:
        return None  # the network of this world loses connections, and not bytes of them

    def broken(self) -> bool:
        return self.closed or self._into.tear_arrived

    def reset(self) -> None:
        if not self.closed:
            self._out.torn = True
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._into.arrived:
            self._out.torn = True  # as a kernel does: somebody wrote what nobody will read
        self._out.ended = True
        self._into.deaf = True
        self._into.arrived.clear()
        self._out.sent()
        self._into.wake()
        self._out.wake()

    def _answer_unheard(self) -> None:
        self._out.torn = True
        self._out.sent()

    def _check_open(self) -> None:
        if self.closed:
            raise anyio.ClosedResourceError
