"""A tunnel: the end-to-end encrypted stream between a forward proxy and an agent, over one connection that is a pipe at the relay.

`initiate` and `respond` shake hands; what they return is a `Tunnel`, a Conduit that the pump copies to and from.
Source: docs/spec/tunnel.md (opening, liveness), docs/spec/end-to-end.md (handshake), docs/spec/records.md (records).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn, TypeVar

import anyio
import anyio.lowlevel

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.records import RecordOpener, RecordSealer
from tuunel.e2e.wire import FIN_BODY, Connected, Error, RecordType, Reset, Target
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.rawstream import Bytes, RawStream

QUIET: Final = 15.0  #: seconds without a record before a PING
DEAD: Final = 30.0  #: seconds without a record before the tunnel is lost
KEY_LIFETIME: Final = 3600.0  #: seconds before this end's keys are replaced
ANSWER_TIMEOUT: Final = 20.0  #: seconds from CONNECT to CONNECTED or ERROR: the agent's own dial gives up after ten
EARLY_LIMIT: Final = 64 * 1024  #: bytes that an agent holds while it dials, and then reads no more
SMALL_AGAIN: Final = 1.0  #: seconds without a record after which records start small again
_CONTROL_BURST: Final = 64  #: records without app bytes handled in one go: a peer that sends nothing else must not starve other tunnels

Decoded = TypeVar("Decoded")


class TunnelCut(ConnectionResetError):
    """The tunnel ended before its end: the text says how. An OSError, because the app behind this end must see a reset."""


class Tunnel:
    """One authenticated tunnel. A Conduit; owns `stream`.

    Bytes of the app are never handed on after a record that failed, came out of order or is missing: the tunnel is reset and
    whoever reads or writes it gets TunnelCut.
    """

    def __init__(self, stream: RawStream, sealer: RecordSealer, opener: RecordOpener, buffers: BufferPool, tunnel_id: str) -> None:
        self.stream = stream
        self.id = tunnel_id
        self.rtt: float | None = None
        self.peer_label = ""  #: what the agent's machine calls itself, at the forward side; untrusted text
        self.cut_reason = ""  #: why the tunnel was cut, "" while it was not
        self._sealer = sealer
        self._opener = opener
        self._buffers = buffers
        self._sending = anyio.Lock(fast_acquire=True)
        # What to send when the writer is free, one record of a type and the newest at that: a peer that floods us with PINGs and
        # takes no answer must not fill our memory.
        self._queue: dict[RecordType, bytes] = {}
        self._torn = False  # a record was sent in part: nothing behind it would mean anything
        self._fin_sent = False
        self._early = bytearray()
        self._more = True  # records may have come with the handshake
        self._reading_since: float | None = None
        self._heard = self._keyed = self._written = time.monotonic()
        self._asked = 0.0
        self._pinged: tuple[bytes, float] | None = None

    # Conduit

    @property
    def chunk_limit(self) -> int:
        """The largest body worth sealing now; it grows while the socket takes whole records."""
        return self._sealer.chunk_limit

    async def wait_readable(self) -> None:
        """Wait until `read_into` is worth a try."""
        if self._early:
            await anyio.lowlevel.checkpoint()
        else:
            await self.wait_for_records()

    async def wait_for_records(self) -> None:
        """Wait until `take` or `read_into` is worth a try; what is queued for the peer is sent first. Always yields to other tasks."""
        await self.flush()
        if self._more or self._opener.fin_received:
            await anyio.lowlevel.checkpoint()
            return
        self._reading_since = time.monotonic()
        try:
            await self.stream.wait_readable()
        finally:
            self._reading_since = None

    def read_into(self, buffer: memoryview, limit: int) -> int | None:
        """Read one DATA record's body into `buffer[1:]`; 0 after FIN, None when nothing is there. Raises TunnelCut."""
        if self._early:
            n = min(len(self._early), limit)
            buffer[1 : 1 + n] = self._early[:n]
            del self._early[:n]
            return n
        if self._opener.fin_received:
            return 0
        record = self._take_into(buffer, RecordType.DATA, RecordType.FIN)
        if record is None:
            return None
        return record[1] if record[0] is RecordType.DATA else 0

    async def write_from(self, buffer: memoryview, n: int) -> None:
        """Seal `buffer[1:1+n]` as one record and send it. Raises OSError when the connection is gone."""
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

    async def write_eof(self) -> None:
        """Send FIN; the other direction goes on."""
        if not self._fin_sent:
            self._fin_sent = True
            await self._send(RecordType.FIN, FIN_BODY)

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
        if not (self._fin_sent and self._opener.fin_received):
            self.reset()
            return
        try:
            await self.stream.aclose()
        finally:
            self._end()

    def broken(self) -> bool:
        """Whether the peer or the relay has cut the tunnel, seen without taking app bytes."""
        if not self._opener.fin_received:
            return self.stream.broken()
        try:
            with self._borrowed() as buffer:
                self._take_into(buffer)
        except (OSError, anyio.ClosedResourceError):
            return True
        return False

    # opening

    async def request(self, target: Target) -> None:
        """Ask the agent for `target` on a tunnel that waited as a standby, with a PING: its answer shows that the agent lives.

        Raises OSError or anyio.ClosedResourceError when the tunnel is gone, and Failure for a host that no name can be.
        """
        body = target.encode()
        async with self._sending:
            self._check_sendable()
            nonce = self._start_ping()
            self._asked = time.monotonic()
            seal = self._sealer.seal
            await self._transmit(seal(RecordType.CONNECT, body) + seal(RecordType.PING, nonce))

    async def answer(self, sign_of_life_within: float) -> HostPort:
        """Wait for the answer to CONNECT: the address that the agent's socket to the target is bound to.

        Raises Failure: what the agent answered, or TUNNEL_LOST when nothing was heard within `sign_of_life_within` seconds of
        `request` (ACCEPT is the sign of life of a tunnel that was opened for its CONNECT) or no answer came within ANSWER_TIMEOUT.
        """
        try:
            with anyio.move_on_after(sign_of_life_within):
                return await self._connected()
            if self._heard > self._asked:
                with anyio.move_on_after(max(ANSWER_TIMEOUT - sign_of_life_within, 0)):
                    return await self._connected()
        except (OSError, anyio.ClosedResourceError) as error:
            raise Failure(Reason.TUNNEL_LOST, detail=self.cut_reason or str(error)) from error
        raise Failure(Reason.TUNNEL_LOST, detail="the agent does not answer")

    async def _connected(self) -> HostPort:
        kind, body = await self._receive(RecordType.CONNECTED, RecordType.ERROR)
        if kind is RecordType.ERROR:
            error = self._decode(Error.decode, body)
            raise Failure(error.reason, Speaker.AGENT, error.detail)
        return self._decode(Connected.decode, body).bound

    async def requested(self) -> Target:
        """The agent's side: wait, as long as it takes, for what the forward proxy asks for. Raises TunnelCut."""
        _, body = await self._receive(RecordType.CONNECT)
        return self._decode(Target.decode, body)

    async def answer_connected(self, bound: HostPort) -> None:
        """The agent's side: the target is connected."""
        await self._send(RecordType.CONNECTED, Connected(bound).encode())

    async def answer_error(self, reason: Reason, detail: str) -> None:
        """The agent's side: the target is not connected, and why. The tunnel ends with it."""
        await self._send(RecordType.ERROR, Error(reason, detail).encode())

    async def collect_early(self) -> None:
        """The agent's side, while it dials: read app bytes and hold them for `read_into`. Runs until cancelled; raises TunnelCut.

        So a forward proxy that gives up is noticed, and its PING is answered. Nothing more is read once EARLY_LIMIT bytes are held.
        """
        while len(self._early) < EARLY_LIMIT and not self._opener.fin_received:
            await self.wait_for_records()
            with self._borrowed() as buffer:
                record = self._take_into(buffer, RecordType.DATA, RecordType.FIN)
                if record is not None and record[0] is RecordType.DATA:
                    self._early += buffer[1 : 1 + record[1]]
        await anyio.sleep_forever()

    async def rest(self) -> None:
        """Answer PINGs on a tunnel that waits for its use. Runs until cancelled; raises TunnelCut when it is of no use any more."""
        await self._receive()

    async def _receive(self, *wanted: RecordType) -> tuple[RecordType, bytes]:
        while True:
            await self.wait_for_records()
            if (record := self.take(*wanted)) is not None:
                return record

    def take(self, *wanted: RecordType) -> tuple[RecordType, bytes] | None:
        """The next record of a wanted type that is here, and its body; None when there is none. Raises TunnelCut."""
        with self._borrowed() as buffer:
            record = self._take_into(buffer, *wanted)
            return None if record is None else (record[0], bytes(buffer[1 : 1 + record[1]]))

    @contextmanager
    def _borrowed(self) -> Iterator[memoryview]:
        buffer = self._buffers.borrow()
        try:
            yield buffer
        finally:
            self._buffers.give_back(buffer)

    # liveness

    @property
    def closed(self) -> bool:
        """Whether the tunnel is over, cleanly or not."""
        return self.stream.fileno() < 0

    def tick(self, now: float) -> bool:
        """Once a second: queue a PING on a quiet tunnel, cut a dead one, replace old keys. True when `flush` has something to send.

        The timers stand still while this end is blocked on writing or does not read: a reader that pauses loses nothing.
        """
        if now - self._keyed > KEY_LIFETIME:
            self._keyed = now
            self._queue[RecordType.KEY_UPDATE] = b""
        if now - self._written > SMALL_AGAIN:
            self._sealer.restart_growth()
        reading = self._reading_since is not None or self._opener.fin_received
        if not reading or self._sending.locked():
            self._heard = now
            self._pinged = None
            return bool(self._queue)
        quiet = now - max(self._heard, self._reading_since or 0)
        if quiet > DEAD:
            with suppress(TunnelCut):
                self._cut(f"nothing was heard for {DEAD:.0f} s")
        elif quiet > QUIET and self._pinged is None:
            self._queue[RecordType.PING] = self._start_ping()
        return bool(self._queue)

    async def flush(self) -> None:
        """Send what is queued, unless a writer is at work: it does so when it is done. Raises as `write_from`."""
        if self._queue and not self._sending.locked():
            async with self._sending:
                self._check_sendable()
                await self._send_queue()

    def _start_ping(self) -> bytes:
        nonce = os.urandom(8)
        self._pinged = nonce, time.monotonic()
        return nonce

    # records

    async def _send(self, kind: RecordType, body: bytes) -> None:
        await self.send_records([(kind, body)])

    async def send_records(self, records: Iterable[tuple[RecordType, bytes]]) -> None:
        """Seal small records, in order, and send them in one write. Raises as `write_from`."""
        async with self._sending:
            self._check_sendable()
            await self._renew_key()
            await self._transmit(b"".join(self._sealer.seal(kind, body) for kind, body in records))
            await self._send_queue()

    async def _send_queue(self) -> None:
        while self._queue:
            await self._renew_key()
            kind = next(iter(self._queue))
            await self._transmit(self._sealer.seal(kind, self._queue.pop(kind)))

    async def _renew_key(self) -> None:
        if self._sealer.needs_key_update:
            await self._transmit(self._sealer.key_update())

    async def _transmit(self, data: Bytes) -> bool:
        """Send whole records; the caller holds the lock. True when the socket took them at once."""
        self._torn = True
        whole = await self.stream.send_all(data)
        self._torn = False
        self._written = time.monotonic()
        return whole

    def _take_into(self, buffer: memoryview, *wanted: RecordType) -> tuple[RecordType, int] | None:
        """The next record of a wanted type that is here, as `RecordOpener.open_into`; those before it are dealt with, a burst at most."""
        for _ in range(_CONTROL_BURST):
            record = self._next_record(buffer)
            if record is None or record[0] in wanted:
                return record
            self._housekeep(record[0], bytes(buffer[1 : 1 + record[1]]))
        return None

    def _next_record(self, buffer: memoryview) -> tuple[RecordType, int] | None:
        self._check_whole()
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
        self._heard = time.monotonic()
        return record

    def _housekeep(self, kind: RecordType, body: bytes) -> None:
        match kind:
            case RecordType.PING:
                self._queue[RecordType.PONG] = body
            case RecordType.PONG:
                if self._pinged and body == self._pinged[0]:
                    self.rtt = self._heard - self._pinged[1]
                    self._pinged = None
            case RecordType.PAD | RecordType.KEY_UPDATE:
                pass
            case RecordType.RESET:
                reason = self._decode(Reset.decode, body).reason
                self._cut(f"the other end reset it{f' ({reason})' if reason else ''}")
            case _:
                self._cut(f"{kind.name} came out of turn")

    def _decode(self, decode: Callable[[bytes], Decoded], body: bytes) -> Decoded:
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
        self._early.clear()
