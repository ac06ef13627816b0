"""Records over one connection, both ways: sent whole and in order, keys replaced in time, PINGs answered, and a cut told as a cut.

Source: docs/spec/records.md, docs/spec/tunnel.md section 8 (liveness).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn, TypeVar

import anyio
import anyio.lowlevel

from tuunel.buffers import BufferPool
from tuunel.e2e.records import RecordOpener, RecordSealer
from tuunel.e2e.wire import FIN_BODY, FIN_RECYCLABLE, RecordType, Reset, is_recyclable
from tuunel.errors import Reason, RemoteProtocolError
from tuunel.rawstream import Bytes, RawStream

QUIET: Final = 15.0  #: seconds without a record before a PING
DEAD: Final = 30.0  #: seconds without a record before the tunnel is lost
KEY_LIFETIME: Final = 3600.0  #: seconds before this end's keys are replaced
SMALL_AGAIN: Final = 1.0  #: seconds without a record after which records start small again
_CONTROL_BURST: Final = 64  #: records without app bytes handled in one go: a peer that sends nothing else must not starve other tunnels

Decoded = TypeVar("Decoded")


class TunnelCut(ConnectionResetError):
    """The tunnel ended before its end: the text says how. An OSError, because the app behind this end must see a reset."""


class RecordStream:
    """The records of one tunnel, through all of its uses. Owns `stream`.

    Nothing is handed on after a record that failed, came out of order or is missing: the connection is reset and whoever reads or
    writes gets TunnelCut. One task reads at a time; any number may write.
    """

    def __init__(self, stream: RawStream, sealer: RecordSealer, opener: RecordOpener, buffers: BufferPool) -> None:
        self.stream = stream
        self.rtt: float | None = None
        self.cut_reason = ""  #: why the tunnel was cut, "" while it was not
        self.heard = self.opened = time.monotonic()  #: when the last record came; when the tunnel was opened
        self._sealer = sealer
        self._opener = opener
        self._buffers = buffers
        self._sending = anyio.Lock(fast_acquire=True)
        # What to send when the writer is free, one record of a type and the newest at that: a peer that floods us with PINGs and
        # takes no answer must not fill our memory.
        self._queue: dict[RecordType, bytes] = {}
        self._torn = False  # a record was sent in part: nothing behind it would mean anything
        self._fin_sent = False
        self._recyclable = False  # by this end's FIN
        self._peer_recyclable = False  # by the peer's
        self._renewed = False  # this end has begun the next use, and the peer has not yet
        self._peer_renewed = False  # the other way round
        self._more = True  # records may have come with the handshake
        self._reading_since: float | None = None
        self._keyed = self._written = time.monotonic()
        self._pinged: tuple[bytes, float] | None = None

    # reading

    @property
    def read_ended(self) -> bool:
        """Whether the peer has ended its direction of this use."""
        return (self._opener.fin_received or self._peer_renewed) and not self._renewed

    async def wait(self) -> None:
        """Wait until `take` is worth a try; what is queued for the peer is sent first. Always yields to other tasks."""
        await self.flush()
        if self._more or self.read_ended:
            await anyio.lowlevel.checkpoint()
            return
        self._reading_since = time.monotonic()
        try:
            await self.stream.wait_readable()
        finally:
            self._reading_since = None

    async def receive(self, *wanted: RecordType) -> tuple[RecordType, bytes]:
        """Wait for a record of a wanted type; any other is dealt with. Raises TunnelCut."""
        while True:
            await self.wait()
            if (record := self.take(*wanted)) is not None:
                return record

    def take(self, *wanted: RecordType) -> tuple[RecordType, bytes] | None:
        """The next record of a wanted type that is here, and its body; None when there is none. Raises TunnelCut."""
        with self.borrowed() as buffer:
            record = self.take_into(buffer, *wanted)
            return None if record is None else (record[0], bytes(buffer[1 : 1 + record[1]]))

    @contextmanager
    def borrowed(self) -> Iterator[memoryview]:
        """A buffer for one record, while the block runs."""
        buffer = self._buffers.borrow()
        try:
            yield buffer
        finally:
            self._buffers.give_back(buffer)

    def take_into(self, buffer: memoryview, *wanted: RecordType) -> tuple[RecordType, int] | None:
        """The next record of a wanted type that is here, as `RecordOpener.open_into`; those before it are dealt with, a burst at most."""
        for _ in range(_CONTROL_BURST):
            record = self._next_record(buffer)
            if record is None or record[0] in wanted:
                return record
            self._housekeep(record[0], bytes(buffer[1 : 1 + record[1]]))
        return None

    def _next_record(self, buffer: memoryview) -> tuple[RecordType, int] | None:
        self._check_whole()
        ended = self._opener.fin_received
        try:
            while (record := self._opener.open_into(buffer)) is None:
                received = self.stream.receive_into(self._opener.room())
                self._opener.received(received or 0)
                if received == 0:
                    self._cut("the connection ended without an end")
                if received is None:
                    self._more = False
                    return None
        except RemoteProtocolError as error:
            self._cut(str(error))
        except TunnelCut:
            raise
        except OSError as error:
            self._cut(error.strerror or str(error))
        self._more = True
        self.heard = time.monotonic()
        if record[0] is RecordType.FIN:
            self._peer_recyclable = is_recyclable(buffer[1])
        elif ended and record[0] is RecordType.KEY_UPDATE:
            self._note_renewal()
        return record

    def _note_renewal(self) -> None:
        """The peer begins the next use: it must have seen both ends, and both must have offered it."""
        if self._renewed:
            self._renewed = False
        elif self._fin_sent and self._recyclable and self._peer_recyclable:
            self._peer_renewed = True
        else:
            self._cut("the next use was begun before this one had ended")

    def _housekeep(self, kind: RecordType, body: bytes) -> None:
        match kind:
            case RecordType.PING:
                self._queue[RecordType.PONG] = body
            case RecordType.PONG:
                if self._pinged and body == self._pinged[0]:
                    self.rtt = self.heard - self._pinged[1]
                    self._pinged = None
            case RecordType.PAD | RecordType.KEY_UPDATE:
                pass
            case RecordType.RESET:
                reason = self.decode(Reset.decode, body).reason
                self._cut(f"the other end reset it{f' ({reason})' if reason else ''}")
            case _:
                self._cut(f"{kind.name} came out of turn")

    # writing

    @property
    def chunk_limit(self) -> int:
        """The largest body worth sealing now; it grows while the socket takes whole records."""
        return self._sealer.chunk_limit

    async def send_data(self, buffer: memoryview, n: int) -> None:
        """Seal `buffer[1:1+n]` as one DATA record and send it. Raises OSError when the connection is gone."""
        async with self._sending:
            self._check_sendable()
            await self._renew_key()
            out = self._buffers.borrow()
            try:
                length = self._sealer.seal_into(buffer, n, RecordType.DATA, out)
                self._sealer.whole_writes(await self._transmit(out[:length]))
            finally:
                self._buffers.give_back(out)
            await self._send_queue()

    async def send(self, kind: RecordType, body: bytes) -> None:
        """Send one small record. Raises as `send_data`."""
        await self.send_records([(kind, body)])

    async def send_records(self, records: Iterable[tuple[RecordType, bytes]]) -> None:
        """Seal small records, in order, and send them in one write. Raises as `send_data`."""
        async with self._sending:
            self._check_sendable()
            await self._renew_key()
            await self._transmit(b"".join(self._sealer.seal(kind, body) for kind, body in records))
            await self._send_queue()

    async def send_with_ping(self, kind: RecordType, body: bytes) -> None:
        """Send one small record and a PING behind it, whose answer shows that the peer lives. Raises as `send_data`."""
        async with self._sending:
            self._check_sendable()
            nonce = self._start_ping()
            await self._transmit(self._sealer.seal(kind, body) + self._sealer.seal(RecordType.PING, nonce))

    async def send_fin(self, *, recyclable: bool) -> None:
        """End this direction of this use, once; `recyclable` offers another use. Raises as `send_data`."""
        if self._fin_sent:
            return
        self._fin_sent = True
        self._recyclable = recyclable
        async with self._sending:
            self._check_sendable()
            self._queue.pop(RecordType.KEY_UPDATE, None)  # behind FIN it would begin the next use
            await self._transmit(self._sealer.seal(RecordType.FIN, FIN_RECYCLABLE if recyclable else FIN_BODY))
            await self._send_queue()

    async def flush(self) -> None:
        """Send what is queued, unless a writer is at work: it does so when it is done. Raises as `send_data`."""
        if self._queue and not self._sending.locked():
            async with self._sending:
                self._check_sendable()
                await self._send_queue()

    async def _send_queue(self) -> None:
        while self._queue:
            await self._renew_key()
            kind = next(iter(self._queue))
            await self._transmit(self._sealer.seal(kind, self._queue.pop(kind)))

    async def _renew_key(self) -> None:
        if self._sealer.needs_key_update and not self._fin_sent:
            await self._transmit(self._sealer.key_update())

    async def _transmit(self, data: Bytes) -> bool:
        """Send whole records; the caller holds the lock. True when the socket took them at once."""
        self._torn = True
        whole = await self.stream.send_all(data)
        self._torn = False
        self._written = time.monotonic()
        return whole

    # ends

    @property
    def finished(self) -> bool:
        """Whether both directions of this use have ended."""
        return self._fin_sent and self.read_ended

    @property
    def may_be_renewed(self) -> bool:
        """Whether both directions have ended, and both ends have offered another use."""
        return self.finished and self._recyclable and self._peer_recyclable

    async def renew(self) -> None:
        """Begin the next use, where `may_be_renewed`: from here on all is as behind the handshake. Raises as `send_data`."""
        async with self._sending:
            self._check_sendable()
            await self._transmit(self._sealer.key_update())
        self._sealer.restart_growth()
        self._keyed = time.monotonic()
        self._renewed = not self._peer_renewed
        self._fin_sent = self._recyclable = self._peer_recyclable = self._peer_renewed = False

    def reset(self, reason: Reason | None = None) -> None:
        """Cut the tunnel: RESET (with `reason`) if the connection takes it at once, and a TCP reset in any case. Idempotent."""
        if not (self.cut_reason or self.closed):
            if not (self._sending.locked() or self._torn):
                with suppress(OSError):
                    self.stream.send_now(self._sealer.seal(RecordType.RESET, Reset(reason).encode()))
            self.cut_reason = f"cut at this end{f' ({reason})' if reason else ''}"
        self._end()

    async def aclose(self) -> None:
        """Close: cleanly when both directions have ended, by a reset otherwise."""
        if not self.finished:
            self.reset()
            return
        try:
            await self.stream.aclose()
        finally:
            self._end()

    def broken(self) -> bool:
        """Whether the peer or the relay has cut the tunnel, seen without taking app bytes, nor anything of the next use."""
        if self.finished or not self._opener.fin_received:
            return self.stream.broken()
        try:
            with self.borrowed() as buffer:
                self.take_into(buffer)
        except (OSError, anyio.ClosedResourceError):
            return True
        return False

    # liveness

    @property
    def closed(self) -> bool:
        """Whether the tunnel is over, cleanly or not."""
        return self.stream.fileno() < 0

    def tick(self, now: float) -> bool:
        """Once a second: queue a PING on a quiet tunnel, cut a dead one, replace old keys. True when `flush` has something to send.

        The timers stand still while this end is blocked on writing or does not read: a reader that pauses loses nothing.
        """
        if now - self._keyed > KEY_LIFETIME and not self._fin_sent:
            self._keyed = now
            self._queue[RecordType.KEY_UPDATE] = b""
        if now - self._written > SMALL_AGAIN:
            self._sealer.restart_growth()
        reading = self._reading_since is not None or self.read_ended
        if not reading or self._sending.locked():
            self.heard = now
            self._pinged = None
            return bool(self._queue)
        quiet = now - max(self.heard, self._reading_since or 0)
        if quiet > DEAD:
            with suppress(TunnelCut):
                self._cut(f"nothing was heard for {DEAD:.0f} s")
        elif quiet > QUIET and self._pinged is None:
            self._queue[RecordType.PING] = self._start_ping()
        return bool(self._queue)

    def _start_ping(self) -> bytes:
        nonce = os.urandom(8)
        self._pinged = nonce, time.monotonic()
        return nonce

    # faults

    def decode(self, decode: Callable[[bytes], Decoded], body: bytes) -> Decoded:
        """`decode(body)`; a body that means nothing cuts the tunnel."""
        try:
            return decode(body)
        except RemoteProtocolError as error:
            self._cut(str(error))

    def _check_whole(self) -> None:
        if self.cut_reason:
            raise TunnelCut(self.cut_reason)
        if self.closed:
            raise anyio.ClosedResourceError

    def _check_sendable(self) -> None:
        self._check_whole()
        if self._torn:
            raise TunnelCut("a record could not be sent whole")

    def _cut(self, reason: str) -> NoReturn:
        self.cut_reason = self.cut_reason or reason
        self._end()
        raise TunnelCut(self.cut_reason)

    def _end(self) -> None:
        self.stream.reset()  # nothing more happens to a stream that was closed cleanly
        self._opener.close()
        self._sealer.close()
        self._queue.clear()
