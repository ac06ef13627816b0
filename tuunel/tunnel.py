"""A tunnel: the end-to-end encrypted stream between a forward proxy and an agent, over one connection that is a pipe at the relay.

`establish` shakes hands and returns a `Tunnel`, a Conduit that the pump copies to and from. When both ends agree, a tunnel that has
ended cleanly is used again: its next use is a new `Tunnel` over the same records.
Source: docs/spec/tunnel.md (opening, recycling), docs/spec/records.md (records).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio
import anyio.lowlevel

from tuunel.address import HostPort
from tuunel.e2e.wire import MAX_EARLY_BODY, Connected, Error, RecordType, Target
from tuunel.errors import Failure, Reason, Speaker
from tuunel.rawsocket import Result
from tuunel.rawstream import RawStream, Rest
from tuunel.recordstream import RecordStream
from tuunel.recordwriter import TunnelCut

__all__ = ["Tunnel", "TunnelCut"]

ANSWER_TIMEOUT: Final = 20.0  #: seconds from CONNECT to CONNECTED or ERROR: the agent's own dial gives up after ten
EARLY_RECORDS: Final = 8  #: with app bytes that are taken in one go with a request; a forward proxy sends a few
EARLY_LIMIT: Final = 64 * 1024  #: bytes that an agent holds while it dials, and then reads no more
MAX_USES: Final = 1000  #: of one tunnel: a new one has new keys from scratch, and may have found a better way
MAX_AGE: Final = 3600.0  #: seconds after which a tunnel is not used again


class Tunnel:
    """One use of an authenticated tunnel. A Conduit; owns `records` until it is closed or cut.

    Bytes of the app are never handed on after a record that failed, came out of order or is missing: the tunnel is reset and
    whoever reads or writes it gets TunnelCut. `keep`, set before this end is written, takes over the next use, if there is one:
    `aclose` calls it with a new Tunnel, and this one is then of no use any more.
    """

    def __init__(self, records: RecordStream, tunnel_id: str, use: int = 0) -> None:
        self.records = records
        self.peer_label = ""  #: what the agent's machine calls itself, at the forward side; untrusted text
        self.peer_commands: frozenset[int] = frozenset()  #: what the agent takes besides TCP, UDP and UNIX; known in the first use only
        self.keep: Callable[[Tunnel], None] | None = None
        self.may_end_late = False  #: this end, if it comes last, may wait for the next use, which is this side's to begin, or for `rest`
        self.wanted: Callable[[], bool] = lambda: True  #: asked at the end of this use whether another one is: once it has begun, only
        # a reset can end it, which would destroy what is still on its way
        self._base_id = tunnel_id
        self._use = use
        self._over = False
        self._early = bytearray()
        self._asked = 0.0

    @property
    def id(self) -> str:
        """The name that all three parties log, with the number of the use where it is not the first."""
        return f"{self._base_id}.{self._use}" if self._use else self._base_id

    @property
    def rtt(self) -> float | None:
        """The last round-trip time in seconds."""
        return self.records.rtt

    @property
    def cut_reason(self) -> str:
        """Why the tunnel was cut, "" while it was not."""
        return self.records.cut_reason

    @property
    def cut_for(self) -> Reason | None:
        """The reason that the other end gave for cutting it, if it did."""
        return self.records.cut_for

    @property
    def stream(self) -> RawStream:
        """The connection to the relay."""
        return self.records.stream

    @property
    def closed(self) -> bool:
        """Whether this use is over, cleanly or not."""
        return self._over or self.records.closed

    # Conduit

    @property
    def chunk_limit(self) -> int:
        """The largest body worth sealing now; it grows while the socket takes whole records."""
        return self.records.chunk_limit

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        """See `Conduit`."""
        self._check_open()
        while self._early:
            await anyio.lowlevel.checkpoint()
            if (result := step()) is not None:
                return result
        return await self.records.on_readable(step)

    def read_into(self, buffer: memoryview, limit: int) -> int | None:
        """Read one DATA record's body into `buffer[1:]`; 0 after FIN, None when nothing is there. Raises TunnelCut."""
        self._check_open()
        if self._early:
            n = min(len(self._early), limit)
            buffer[1 : 1 + n] = self._early[:n]
            del self._early[:n]
            return n
        if self.records.read_ended:
            return 0
        record = self.records.take_into(buffer, RecordType.DATA, RecordType.FIN)
        if record is None:
            return None
        return record[1] if record[0] is RecordType.DATA else 0

    @property
    def at_end(self) -> bool:
        """Whether FIN has come, and all before it was read."""
        return self.records.read_ended and not self._early

    def write_now(self, buffer: memoryview, n: int, *, last: bool = False) -> Rest | None:
        """Seal `buffer[1:1+n]` as one record and send it, with FIN behind it where it is the `last`.

        It or its rest raises OSError when the connection is gone.
        """
        self._check_open()
        return self.records.send_last_data(buffer, n, recyclable=self._recyclable) if last else self.records.send_data(buffer, n)

    async def write_eof(self) -> None:
        """Send FIN; the other direction goes on."""
        self._check_open()
        await self.records.send_fin(recyclable=self._recyclable, may_wait=self.may_end_late)

    @property
    def _recyclable(self) -> bool:
        """Whether this end would use the tunnel again."""
        young = self._use + 1 < MAX_USES and time.monotonic() - self.records.opened < MAX_AGE
        return self.keep is not None and young

    def reset(self, reason: Reason | None = None) -> None:
        """Cut the tunnel: RESET (with `reason`) if the connection takes it at once, and a TCP reset in any case. Idempotent."""
        self._early.clear()
        if not self._over:
            self.records.reset(reason)

    async def aclose(self) -> None:
        """Close: cleanly when both directions have ended, and then for the next use if both ends want one; by a reset otherwise."""
        if self._over:
            return
        if self.keep is None or not self.records.may_be_renewed or not self.wanted():
            await self.records.aclose()
            return
        self.records.renew()
        self._over = True
        self.keep(Tunnel(self.records, self._base_id, self._use + 1))

    def broken(self) -> bool:
        """Whether the peer or the relay has cut the tunnel, seen without taking app bytes."""
        return self._over or self.records.broken()

    def _check_open(self) -> None:
        if self._over:
            raise anyio.ClosedResourceError

    # opening

    async def request(self, target: Target) -> None:
        """As `request_now`, to its end."""
        if rest := self.request_now(target):
            await rest()

    def request_now(self, target: Target, early: bytes = b"") -> Rest | None:
        """Ask the agent for `target` on a tunnel that waited as a standby, with a PING where the round trip was not measured lately.

        `early` are app bytes that travel with it. It is sent now, or when the rest is awaited. Raises OSError or
        anyio.ClosedResourceError when the tunnel is gone, and Failure for a host that no name can be.
        """
        chunks = [early[start : start + MAX_EARLY_BODY] for start in range(0, len(early), MAX_EARLY_BODY)]
        connect = RecordType.CONNECT, target.encode()
        self._asked = time.monotonic()
        return self.records.send_now([connect, *self.records.ping_if_due(), *((RecordType.DATA, chunk) for chunk in chunks)])

    async def answer(self, sign_of_life_within: float) -> HostPort:
        """Wait for the answer to CONNECT: the address that the agent's socket to the target is bound to.

        Raises Failure: what the agent answered, or TUNNEL_LOST when nothing was heard within `sign_of_life_within` seconds of
        `request` (ACCEPT is the sign of life of a tunnel that was opened for its CONNECT) or no answer came within ANSWER_TIMEOUT.
        """
        try:
            with anyio.move_on_after(sign_of_life_within):
                return await self._connected()
            if self.records.heard > self._asked:
                with anyio.move_on_after(max(ANSWER_TIMEOUT - sign_of_life_within, 0)):
                    return await self._connected()
        except (OSError, anyio.ClosedResourceError) as error:
            raise Failure(Reason.TUNNEL_LOST, detail=self.cut_reason or str(error)) from error
        raise Failure(Reason.TUNNEL_LOST, detail="the agent does not answer")

    async def _connected(self) -> HostPort:
        kind, body = await self.records.receive(RecordType.CONNECTED, RecordType.ERROR)
        if kind is RecordType.ERROR:
            error = self.records.decode(Error.decode, body)
            raise Failure(error.reason, Speaker.AGENT, error.detail)
        return self.records.decode(Connected.decode, body).bound

    async def requested(self) -> Target:
        """The agent's side: wait, as long as it takes, for what the forward proxy asks for. Raises TunnelCut."""
        _, body = await self.records.receive(RecordType.CONNECT)
        return self.records.decode(Target.decode, body)

    def show_life(self) -> None:
        """The agent's side: the answer takes a wait; say so with the next record, or when `collect_early` begins."""
        self.records.show_life()

    async def answer_connected(self, bound: HostPort) -> None:
        """The agent's side: the target is connected."""
        await self.records.send(RecordType.CONNECTED, Connected(bound).encode())

    async def answer_error(self, reason: Reason, detail: str) -> None:
        """The agent's side: the target is not connected, and why. The tunnel ends with it."""
        await self.records.send(RecordType.ERROR, Error(reason, detail).encode())

    def take_early(self) -> None:
        """The agent's side: take what came with the request, without waiting. The answer to a PING then goes with the one to the request.

        As `collect_early`, and raises TunnelCut, too.
        """
        for _ in range(EARLY_RECORDS):
            if len(self._early) >= EARLY_LIMIT or not self.records.has_more or self._take_early():
                return

    async def collect_early(self) -> None:
        """The agent's side, while it dials: read app bytes and hold them for `read_into`. Runs until cancelled; raises TunnelCut.

        So a forward proxy that gives up is noticed, and its PING is answered. Nothing more is read once EARLY_LIMIT bytes are held.
        """
        await self.records.on_readable(self._take_early)
        await anyio.sleep_forever()

    def _take_early(self) -> bool | None:
        record = self.records.take(RecordType.DATA, RecordType.FIN)
        if record is not None and record[0] is RecordType.DATA:
            self._early += record[1]
        return len(self._early) >= EARLY_LIMIT or self.records.read_ended or None

    async def rest(self) -> None:
        """Answer PINGs on a tunnel that waits for its use, and first send a FIN of the last one that waits, too.

        Runs until cancelled; raises TunnelCut when it is of no use any more.
        """
        with suppress(OSError):  # whoever reads is told why
            await self.records.send_held_fin()
        await self.records.receive()

    # flows

    async def on_records(self, step: Callable[[], Result | None]) -> Result:
        """Call `step` whenever `take` is worth a try, until it gives something else than None, as `RawSocket.on_readable` does."""
        self._check_open()
        return await self.records.on_readable(step)

    def take(self, *wanted: RecordType) -> tuple[RecordType, bytes] | None:
        """The next record of a wanted type that is here, and its body; None when there is none. Raises TunnelCut."""
        self._check_open()
        return self.records.take(*wanted)

    def send_now(self, records: Sequence[tuple[RecordType, bytes]]) -> Rest | None:
        """Seal small records, in order, and send them in one write: now, or when the rest is awaited. Raises as `write_now`."""
        self._check_open()
        return self.records.send_now(records)
