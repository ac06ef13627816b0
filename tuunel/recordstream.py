"""Records over one connection, both ways: sent whole and in order, keys replaced in time, PINGs answered, and a cut told as a cut.

Source: docs/spec/records.md, docs/spec/tunnel.md section 8 (liveness).
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn, TypeVar

import anyio
import anyio.lowlevel

from tuunel.ackwatch import AckWatch
from tuunel.buffers import BufferPool
from tuunel.e2e.records import RecordOpener, RecordSealer
from tuunel.e2e.wire import FIN_BODY, FIN_RECYCLABLE, RecordType, Reset, is_recyclable
from tuunel.errors import Reason, RemoteProtocolError
from tuunel.rawsocket import Result
from tuunel.rawstream import LINGER_TIME, RawStream, Rest
from tuunel.recordwriter import RecordWriter, TunnelCut

QUIET: Final = 15.0  #: seconds without a record before a PING
DEAD: Final = 30.0  #: seconds without a record before the tunnel is lost
RTT_AGE: Final = 10.0  #: seconds after which a round trip is worth measuring anew
KEY_LIFETIME: Final = 3600.0  #: seconds before this end's keys are replaced
_RECORD_BURST: Final = 64  #: records taken in one go, before other connections have their turn
_CONTROL_BURST: Final = 64  #: records without app bytes handled in one go: a peer that sends nothing else must not starve other tunnels

Decoded = TypeVar("Decoded")


class RecordStream:
    """The records of one tunnel, through all of its uses. Owns `stream`.

    Nothing is handed on after a record that failed, came out of order or is missing: the connection is reset and whoever reads or
    writes gets TunnelCut. One task reads at a time; any number may write.
    """

    def __init__(self, stream: RawStream, sealer: RecordSealer, opener: RecordOpener, buffers: BufferPool) -> None:
        self.stream = stream
        self.rtt: float | None = None  #: the last round trip that was measured, in seconds
        self._measured = float("-inf")  # when
        self.cut_reason = ""  #: why the tunnel was cut, "" while it was not
        self.cut_for: Reason | None = None  #: the reason that the other end gave for it, if it gave one
        self.heard = self.opened = time.monotonic()  #: when the last record came; when the tunnel was opened
        self._writer = RecordWriter(stream, sealer, buffers, self._check_whole)
        self._opener = opener
        self._buffers = buffers
        self._recyclable = False  # by this end's FIN
        self._peer_recyclable = False  # by the peer's
        self._renewed = False  # this end has begun the next use, and the peer has not yet
        self._peer_renewed = False  # the other way round
        self._more = True  # a record may be here that no wait for the socket would tell of: it came with the handshake, or behind another
        self._reading_since: float | None = None
        self._paused = self.opened  # when the timers last stood still; what was heard is as old as ever
        self._keyed = time.monotonic()
        self._pinged: tuple[bytes, float] | None = None
        self._ponged = b""  # what the last PONG gave back
        self._acks = AckWatch()

    # reading

    @property
    def read_ended(self) -> bool:
        """Whether the peer has ended its direction of this use."""
        return (self._opener.fin_received or self._peer_renewed) and not self._renewed

    @property
    def has_more(self) -> bool:
        """Whether a record may be here already, so that `take` is worth a try."""
        return self._more

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

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        """Call `step` whenever `take_into` is worth a try, until it gives something else than None, as `RawSocket.on_readable` does."""
        outcome: Result | None = None

        def steps() -> bool | None:
            nonlocal outcome
            for _ in range(_RECORD_BURST):
                outcome = step()
                if outcome is not None or self._writer.queue:
                    return True
                if not (self._more or self.read_ended):
                    return None
            return True

        while outcome is None:
            if self._writer.queue:
                await self.flush()
            if self._more or self.read_ended:
                await anyio.lowlevel.checkpoint()
                steps()
            else:
                self._reading_since = time.monotonic()
                try:
                    await self.stream.on_readable(steps)
                finally:
                    self._reading_since = None
        return outcome

    async def receive(self, *wanted: RecordType) -> tuple[RecordType, bytes]:
        """Wait for a record of a wanted type; any other is dealt with. Raises TunnelCut."""
        return await self.on_readable(partial(self.take, *wanted))

    def take(self, *wanted: RecordType) -> tuple[RecordType, bytes] | None:
        """The next record of a wanted type that is here, and its body; None when there is none. Raises TunnelCut."""
        buffer = self._buffers.borrow()
        try:
            record = self.take_into(buffer, *wanted)
            return None if record is None else (record[0], bytes(buffer[1 : 1 + record[1]]))
        finally:
            self._buffers.give_back(buffer)

    async def ping(self) -> float:
        """Send a PING and wait for its PONG: the round trip now, in seconds. For a caller that reads and expects no other record.

        Raises TunnelCut, and as `send_data`. Cut the tunnel when this was cancelled: a record may be half sent.
        """
        nonce, sent = self._start_ping(), time.monotonic()
        await self._writer.send([(RecordType.PING, nonce)])
        while self._ponged != nonce:
            await self.wait()
            self.take()
        return self.heard - sent

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
            record = self._opener.open_into(buffer) if self._more else None
            while record is None:
                received = self.stream.receive_into(self._opener.room())
                self._opener.received(received or 0)
                if received == 0:
                    self._cut("the connection ended without an end")
                if received is None:
                    self._more = False
                    return None
                record = self._opener.open_into(buffer)
        except RemoteProtocolError as error:
            self._cut(str(error))
        except TunnelCut:
            raise
        except OSError as error:
            self._cut(error.strerror or str(error))
        self._more = self._opener.has_record
        self.heard = time.monotonic()
        if record[0] is RecordType.FIN:
            self._peer_recyclable = is_recyclable(buffer[1])
        elif ended and record[0] is RecordType.KEY_UPDATE:
            self._note_renewal()
        return record

    def _note_renewal(self) -> None:
        """The peer begins the next use: it must have seen both ends, and both must have offered it."""
        if self._writer.holds_fin:
            self._cut("the next use was begun before this end had ended")
        elif self._renewed:
            self._renewed = False
        elif self._writer.ended and self._recyclable and self._peer_recyclable:
            self._peer_renewed = True
        else:
            self._cut("the next use was begun before this one had ended")

    def _housekeep(self, kind: RecordType, body: bytes) -> None:
        match kind:
            case RecordType.PING:
                self._writer.queue[RecordType.PONG] = body
            case RecordType.PONG:
                self._ponged = body
                if self._pinged and body == self._pinged[0]:
                    self.note_rtt(self.heard - self._pinged[1])
                    self._pinged = None
            case RecordType.PAD | RecordType.KEY_UPDATE:
                pass
            case RecordType.RESET:
                reason = self.cut_for = self.decode(Reset.decode, body).reason
                self._cut(f"the other end reset it{f' ({reason})' if reason else ''}")
            case _:
                self._cut(f"{kind.name} came out of turn")

    # writing

    @property
    def chunk_limit(self) -> int:
        """The largest body worth sealing now; it grows while the socket takes whole records."""
        return self._writer.chunk_limit

    def send_data(self, buffer: memoryview, n: int) -> Rest | None:
        """Seal `buffer[1:1+n]` as one DATA record and send it, without waiting where that is possible; see `Conduit.write_now`.

        Raises OSError when the connection is gone, and so does the rest.
        """
        return self._writer.send_data(buffer, n)

    def send_last_data(self, buffer: memoryview, n: int, *, recyclable: bool) -> Rest | None:
        """As `send_data`, and `send_fin` in the same write where no other writer is in the way; `send_fin` must follow all the same."""
        rest = self._writer.send_data(buffer, n, fin=FIN_RECYCLABLE if recyclable else FIN_BODY)
        if self._writer.ended:
            self._recyclable = recyclable
        return rest

    async def send(self, kind: RecordType, body: bytes) -> None:
        """Send one small record. Raises as `send_data`."""
        await self._writer.send([(kind, body)])

    def send_now(self, records: Sequence[tuple[RecordType, bytes]]) -> Rest | None:
        """Seal small records, in order, and send them in one write, without waiting where that is possible; as `send_data`."""
        return self._writer.send_now(records)

    def ping_if_due(self) -> list[tuple[RecordType, bytes]]:
        """A PING to be sent now, if the round trip was not measured lately."""
        return [(RecordType.PING, self._start_ping())] if time.monotonic() - self._measured > RTT_AGE else []

    def note_rtt(self, seconds: float) -> None:
        """Take note of a round trip that was just measured."""
        self.rtt, self._measured = seconds, time.monotonic()

    def show_life(self) -> None:
        """Send a PAD with what is sent next, or when somebody begins to read."""
        self._writer.queue[RecordType.PAD] = b""

    async def send_fin(self, *, recyclable: bool, may_wait: bool = False) -> None:
        """End this direction of this use, once; `recyclable` offers another use. Raises as `send_data`.

        With `may_wait`, and where that ends a use behind which both would have another, the peer hears of it with the first record of the
        next use, or by `send_held_fin`; or by `flush`, for which `tick` asks within a second.
        """
        if self._writer.ended:
            return
        self._recyclable = recyclable
        body = FIN_RECYCLABLE if recyclable else FIN_BODY
        if may_wait and recyclable and self.read_ended and self._peer_recyclable and not self._writer.busy:
            self._writer.hold_fin(body)
        else:
            await self._writer.send_fin(body)

    async def send_held_fin(self) -> None:
        """Send a FIN that waits, and what is queued. Raises as `send_data`."""
        await self._writer.send_held_fin()

    async def flush(self) -> None:
        """Send what is queued, unless a writer is at work: it does so when it is done. Raises as `send_data`."""
        await self._writer.flush()

    # ends

    @property
    def finished(self) -> bool:
        """Whether both directions of this use have ended."""
        return self._writer.ended and self.read_ended

    @property
    def may_be_renewed(self) -> bool:
        """Whether both directions have ended, and both ends have offered another use."""
        return self.finished and self._recyclable and self._peer_recyclable

    def renew(self) -> None:
        """Begin the next use, where `may_be_renewed`: from here on all is as behind the handshake.

        The peer hears of it with the first record of that use, or by `flush`, for which `tick` asks within a second. Raises TunnelCut.
        """
        self._check_whole()
        self._writer.renew()
        self._keyed = time.monotonic()
        self._renewed = not self._peer_renewed
        self._recyclable = self._peer_recyclable = self._peer_renewed = False

    def reset(self, reason: Reason | None = None) -> None:
        """Cut the tunnel: RESET (with `reason`) if the connection takes it at once, and a TCP reset in any case. Idempotent."""
        if not (self.cut_reason or self.closed):
            self._writer.send_last(RecordType.RESET, Reset(reason).encode())
            self.cut_reason = f"cut at this end{f' ({reason})' if reason else ''}"
        self._end()

    async def aclose(self) -> None:
        """Close: cleanly when both directions have ended, by a reset otherwise."""
        if not self.finished:
            self.reset()
            return
        try:
            with suppress(OSError, anyio.ClosedResourceError), anyio.move_on_after(LINGER_TIME):  # as `stream.aclose`
                await self.send_held_fin()
            await self.stream.aclose()
        finally:
            self._end()

    def broken(self) -> bool:
        """Whether the peer or the relay has cut the tunnel, seen without taking app bytes, nor anything of the next use."""
        if self.finished or not self._opener.fin_received:
            return self.stream.broken()
        try:
            self.take()
        except (OSError, anyio.ClosedResourceError):
            return True
        return False

    # liveness

    @property
    def closed(self) -> bool:
        """Whether the tunnel is over, cleanly or not."""
        return self.stream.closed

    def tick(self, now: float) -> bool:
        """Once a second: queue a PING on a quiet tunnel, cut a dead one, replace old keys. True when `flush` has something to send.

        The timers stand still while this end is blocked on writing or does not read: a reader that pauses loses nothing. Then a dead
        relay is known by what its machine no longer acknowledges.
        """
        if now - self._keyed > KEY_LIFETIME and not self._writer.ended:
            self._keyed = now
            self._writer.queue[RecordType.KEY_UPDATE] = b""
        self._writer.start_small_after_a_pause(now)
        reading = self._reading_since is not None or self.read_ended
        if not reading or self._writer.busy:
            self._paused = now
            self._pinged = None
            if not (self._writer.busy or self._writer.waiting) and now - self._writer.written > QUIET:
                self._writer.queue[RecordType.PAD] = b""  # the peer, which may have sent all it had, must not take our pause for death
            if self._acks.unanswered(self.stream, now) > DEAD:
                with suppress(TunnelCut):
                    self._cut(f"nothing was acknowledged for {DEAD:.0f} s")
            return self._writer.waiting
        quiet = now - max(self.heard, self._paused, self._reading_since or 0)
        if quiet > DEAD:
            with suppress(TunnelCut):
                self._cut(f"nothing was heard for {DEAD:.0f} s")
        elif quiet > QUIET and self._pinged is None:
            self._writer.queue[RecordType.PING] = self._start_ping()
        return self._writer.waiting

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
        if self.stream.closed:
            raise anyio.ClosedResourceError

    def _cut(self, reason: str) -> NoReturn:
        self.cut_reason = self.cut_reason or reason
        self._end()
        raise TunnelCut(self.cut_reason)

    def _end(self) -> None:
        self.stream.reset()  # nothing more happens to a stream that was closed cleanly
        self._opener.close()
        self._writer.close()
