"""A tunnel: the end-to-end encrypted stream between a forward proxy and an agent, over one connection that is a pipe at the relay.

`initiate` and `respond` shake hands; what they return is a `Tunnel`, a Conduit that the pump copies to and from.
Source: docs/spec/tunnel.md (opening, liveness), docs/spec/end-to-end.md (handshake), docs/spec/records.md (records).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn, TypeVar

import anyio

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.records import RecordOpener, RecordSealer
from tuunel.e2e.wire import FIN_BODY, Connected, Error, RecordType, Reset, Target
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.rawstream import RawStream

QUIET: Final = 15.0  #: seconds without a record before a PING
DEAD: Final = 30.0  #: seconds without a record before the tunnel is lost
IDLE: Final = 1.0  #: seconds without a write after which records are small again, so that a thin line shows the first bytes soon
KEY_LIFETIME: Final = 3600.0  #: seconds before this end's keys are replaced
ANSWER_TIMEOUT: Final = 20.0  #: seconds from CONNECT to CONNECTED or ERROR: the agent's own dial gives up after ten
EARLY_LIMIT: Final = 64 * 1024  #: bytes that an agent holds while it dials
_CONTROL_BURST: Final = 64  #: records without app bytes handled in one go: a peer that sends nothing else must not starve other tunnels


Body = TypeVar("Body", Target, Connected, Error, Reset)


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
        self._sending = anyio.Lock()
        self._queue: list[Callable[[], bytes]] = []  # records to send when the writer is free; sealed then, in the order of the wire
        self._fin_sent = False
        self._more = True  # records may have come with the handshake
        self._reading_since: float | None = None
        self._heard = self._keyed = self._wrote = time.monotonic()
        self._pinged: tuple[bytes, float] | None = None

    # Conduit

    @property
    def chunk_limit(self) -> int:
        """The largest body worth sealing now; it grows while the socket takes whole records."""
        return self._sealer.chunk_limit

    async def wait_readable(self) -> None:
        """Wait until `read_into` is worth a try."""
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
        if self._opener.fin_received:
            return 0
        for _ in range(_CONTROL_BURST):
            record = self._next_record(buffer)
            if record is None:
                return None
            kind, n = record
            if kind is RecordType.DATA:
                return n
            if kind is RecordType.FIN:
                return 0
            self._housekeep(kind, bytes(buffer[1 : 1 + n]))
        return None

    async def write_from(self, buffer: memoryview, n: int) -> None:
        """Seal `buffer[1:1+n]` as one record and send it. Raises OSError when the connection is gone."""
        async with self._sending:
            self._check_whole()
            if (now := time.monotonic()) - self._wrote > IDLE:
                self._sealer.restart_growth()
            self._wrote = now
            if self._sealer.needs_key_update:
                await self.stream.send_all(self._sealer.key_update())
            out = self._buffers.borrow()
            try:
                length = self._sealer.seal_into(buffer, n, RecordType.DATA, out)
                self._sealer.whole_writes(await self.stream.send_all(out[:length]))
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
        if not (self._sending.locked() or self.cut_reason or self.closed):
            with suppress(OSError, anyio.ClosedResourceError):
                self.stream.send_now(self._sealer.seal(RecordType.RESET, Reset(reason).encode()))
        self.cut_reason = self.cut_reason or "cut at this end"
        self.stream.reset()
        self._forget()

    async def aclose(self) -> None:
        """Close: cleanly when both directions have ended, by a reset otherwise."""
        if self._fin_sent and self._opener.fin_received and not self.cut_reason:
            self.cut_reason = "closed"
            self._forget()
            await self.stream.aclose()
        else:
            self.reset()

    def broken(self) -> bool:
        """Whether the peer or the relay has cut the tunnel, seen without taking app bytes."""
        if not self._opener.fin_received:
            return self.stream.broken()
        try:
            with self._borrowed() as buffer:
                while (record := self._next_record(buffer)) is not None:
                    self._housekeep(record[0], bytes(buffer[1 : 1 + record[1]]))
        except (OSError, anyio.ClosedResourceError):
            return True
        return False

    # opening

    async def request(self, target: Target) -> None:
        """Ask the agent for `target` on a tunnel that waited as a standby, with a PING: its answer shows that the agent lives."""
        nonce = self._start_ping()
        async with self._sending:
            seal = self._sealer.seal
            await self.stream.send_all(seal(RecordType.CONNECT, target.encode()) + seal(RecordType.PING, nonce))

    async def answer(self, sign_of_life_within: float) -> HostPort:
        """Wait for the answer to CONNECT: the address that the agent's socket to the target is bound to.

        Raises Failure: what the agent answered, or TUNNEL_LOST when nothing was heard within `sign_of_life_within` seconds or
        no answer came within ANSWER_TIMEOUT.
        """
        asked = time.monotonic()
        try:
            with anyio.move_on_after(sign_of_life_within):
                return await self._connected()
            if self._heard > asked:
                with anyio.move_on_after(ANSWER_TIMEOUT - sign_of_life_within):
                    return await self._connected()
        except OSError as error:
            raise Failure(Reason.TUNNEL_LOST, detail=str(error)) from error
        raise Failure(Reason.TUNNEL_LOST, detail="the agent does not answer")

    async def _connected(self) -> HostPort:
        kind, body = await self._receive(RecordType.CONNECTED, RecordType.ERROR)
        if kind is RecordType.ERROR:
            error = self._decode(Error, body)
            raise Failure(error.reason, Speaker.AGENT, error.detail)
        return self._decode(Connected, body).bound

    async def requested(self) -> Target:
        """The agent's side: wait, as long as it takes, for what the forward proxy asks for. Raises TunnelCut."""
        _, body = await self._receive(RecordType.CONNECT)
        return self._decode(Target, body)

    async def answer_connected(self, bound: HostPort) -> None:
        """The agent's side: the target is connected."""
        await self._send(RecordType.CONNECTED, Connected(bound).encode())

    async def answer_error(self, reason: Reason, detail: str) -> None:
        """The agent's side: the target is not connected, and why. The tunnel ends with it."""
        await self._send(RecordType.ERROR, Error(reason, detail).encode())

    async def collect_early(self, early: bytearray) -> None:
        """The agent's side, while it dials: read app bytes into `early`, up to EARLY_LIMIT. Runs until cancelled; raises TunnelCut.

        So a forward proxy that gives up is noticed, and its PING is answered.
        """
        while len(early) < EARLY_LIMIT:
            await self.wait_readable()
            with self._borrowed() as buffer:
                n = self.read_into(buffer, EARLY_LIMIT)
                early += buffer[1 : 1 + (n or 0)]
            if n == 0:
                break
        await anyio.sleep_forever()

    async def rest(self) -> None:
        """Answer PINGs on a tunnel that waits for its use. Runs until cancelled; raises TunnelCut when it is of no use any more."""
        await self._receive()

    async def _receive(self, *wanted: RecordType) -> tuple[RecordType, bytes]:
        while True:
            await self.wait_readable()
            with self._borrowed() as buffer:
                while (record := self._next_record(buffer)) is not None:
                    kind, body = record[0], bytes(buffer[1 : 1 + record[1]])
                    if kind in wanted:
                        return kind, body
                    self._housekeep(kind, body)

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
            self._queue.append(self._sealer.key_update)
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
            nonce = self._start_ping()
            self._queue.append(lambda: self._sealer.seal(RecordType.PING, nonce))
        return bool(self._queue)

    async def flush(self) -> None:
        """Send what is queued, unless a writer is at work: it does so when it is done."""
        if self._queue and not (self._sending.locked() or self.cut_reason):
            async with self._sending:
                await self._send_queue()

    def _start_ping(self) -> bytes:
        nonce = os.urandom(8)
        self._pinged = nonce, time.monotonic()
        return nonce

    # records

    async def _send(self, kind: RecordType, body: bytes) -> None:
        async with self._sending:
            self._check_whole()
            await self.stream.send_all(self._sealer.seal(kind, body))
            await self._send_queue()

    async def _send_queue(self) -> None:
        while self._queue:
            await self.stream.send_all(self._queue.pop(0)())

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
        self._more = True
        self._heard = time.monotonic()
        return record

    def _housekeep(self, kind: RecordType, body: bytes) -> None:
        match kind:
            case RecordType.PING:
                self._queue.append(lambda: self._sealer.seal(RecordType.PONG, body))
            case RecordType.PONG:
                if self._pinged and body == self._pinged[0]:
                    self.rtt = self._heard - self._pinged[1]
                    self._pinged = None
            case RecordType.PAD | RecordType.KEY_UPDATE:
                pass
            case RecordType.RESET:
                reason = self._decode(Reset, body).reason
                self._cut(f"the other end reset it{f' ({reason})' if reason else ''}")
            case _:
                self._cut(f"{kind.name} came out of turn")

    def _decode(self, message: type[Body], body: bytes) -> Body:
        try:
            return message.decode(body)
        except RemoteProtocolError as error:
            self._cut(str(error))

    def _forget(self) -> None:
        self._queue.clear()
        self._sealer.close()
        self._opener.close()

    def _check_whole(self) -> None:
        if self.cut_reason:
            raise TunnelCut(self.cut_reason)

    def _cut(self, reason: str) -> NoReturn:
        self.cut_reason = self.cut_reason or reason
        self.stream.reset()
        self._forget()
        raise TunnelCut(self.cut_reason)
