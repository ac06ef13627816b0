"""A connection that a front door was given for a request: how it is asked for, watched while it is made, and ended.

Source: docs/spec/front-doors.md section 6.
"""

from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import anyio

from tuunel.address import HostPort
from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.companions import companions
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, Reason
from tuunel.events import Traffic
from tuunel.frontdoor import EARLY_LIMIT, Request
from tuunel.pump import BROKEN, WATCH_INTERVAL, PumpEnd, copy_both_ways
from tuunel.rawstream import LINGER_TIME, Conduit, RawStream, receive_chunk, send_bytes

PROMPT: Final = 0.05  #: seconds in which most dials are done: who goes away meanwhile is noticed behind them
HALF_CLOSED_PATIENCE: Final = 2.0  # seconds that a dial goes on for a client that has ended its side: it may have gone, or may still read


@dataclass(frozen=True, slots=True)
class Outbound:
    """A connection to a target that has been made: the bytes' way there, its counters, and who wants to know when it is over.

    The door owns it from here on: it counts all bytes but the early ones in `traffic`, closes or resets `conduit`, and calls
    `ended` once with "done", "reset" or the name of a Reason. `bound` is the address the target sees, if known; `connection` the number
    that the proxy's events use; `killed` tells whether a person has ended it, at this end or the other one.
    """

    conduit: Conduit
    traffic: Traffic
    ended: Callable[[str], None]
    bound: HostPort | None = None
    connection: int = 0
    killed: Callable[[], bool] = lambda: False

    async def send(self, buffers: BufferPool, data: bytes) -> None:
        """Write and count bytes of the client."""
        await send_bytes(self.conduit, buffers, data)
        self.traffic.up += len(data)

    async def receive(self, buffers: BufferPool) -> bytes:
        """Wait for and count bytes of the target; b"" is its clean end."""
        data = await receive_chunk(self.conduit, buffers, MAX_BODY)
        self.traffic.down += len(data)
        return data

    def reset(self, reason: str = "reset") -> None:
        """Abort both directions, and say why."""
        self.conduit.reset()
        self.ended(reason)

    async def close(self, buffers: BufferPool) -> None:
        """End both directions: cleanly if the target ends its own within LINGER_TIME, else by a reset."""
        self.ended("done")
        try:
            with anyio.move_on_after(LINGER_TIME):
                await self.conduit.write_eof()
                while await receive_chunk(self.conduit, buffers):
                    pass
                await self.conduit.aclose()
        except BROKEN:
            pass
        finally:
            self.conduit.reset()


class Dialer(Protocol):
    """Connects a request's target.

    Returns only after the far dial has succeeded. `early` begins with `request.early`, which it has handed to the target by then; they are
    sent from there and nowhere else. Raises Failure with the true reason. It may be cancelled at any time, and then leaves nothing open.
    """

    async def __call__(self, request: Request, early: EarlyBytes) -> Outbound:
        """Connect `request.target`."""


class Datagrams(Protocol):
    """Carries one client's datagrams to any number of targets, each target's as a flow of its own."""

    def send(self, target: HostPort, payload: bytes, key: Hashable = None) -> None:
        """Send one datagram with the next `flush`, without waiting; what cannot be sent is lost and counted.

        `key` (default: the target) names the flow, and what the flow's target answers is delivered with it.
        """

    def flush(self) -> None:
        """Let go what was sent: to be called behind each burst of datagrams, which then shares its writes."""


class Associate(Protocol):
    """Opens the way for one client's datagrams; leaving the context ends all its flows.

    `door` and `local` are those of a `Request`. `deliver(key, payload)` is called with each answer, must not wait, and returns False for
    one that is lost.
    """

    def __call__(self, *, door: str, local: bool, deliver: Callable[[Hashable, bytes], bool]) -> AbstractAsyncContextManager[Datagrams]:
        """Make the context."""


async def dial_for_client(dial: Dialer, request: Request, client: RawStream, *, verbatim: bool = False) -> tuple[Outbound, bytes]:
    """Dial while the client stays: the connection, and bytes that the client has sent meanwhile (at most EARLY_LIMIT).

    `verbatim`: all that the client sends is the target's as it is, so what comes before the request leaves travels with it, and is not
    among those bytes. Without it, somebody has to read them first.

    ConnectionResetError when the client has gone; the dial is cancelled then, unless it is done within PROMPT. A client that has ended
    its side may still read: the dial then has HALF_CLOSED_PATIENCE left. Raises Failure otherwise.
    """
    watch = _ClientWatch(client, EARLY_LIMIT - len(request.early))
    early = EarlyBytes(request.early, watch.take) if verbatim else EarlyBytes(request.early)
    outcome: Outbound | Failure | None = None
    try:
        async with companions() as beside:
            with anyio.CancelScope() as dialling:
                beside.start_later(PROMPT, watch.run, dialling)
                try:
                    outcome = await dial(request, early)
                except Failure as failure:
                    outcome = failure
                except BROKEN as error:
                    outcome = Failure(Reason.TUNNEL_LOST, detail=str(error))
            beside.cancel()
    except BaseException:
        if isinstance(outcome, Outbound):
            outcome.reset()
        raise
    if isinstance(outcome, Outbound):
        outcome.traffic.up += early.taken
        return outcome, watch.held
    if outcome is not None:
        raise outcome
    if watch.impatient:
        raise Failure(Reason.CONNECT_TIMEOUT, detail="the client has ended its side, so nothing waits longer for the target")
    raise ConnectionResetError("the client has gone")


class _ClientWatch:
    """Reads ahead of a client that waits for its target, and ends the dial when nobody waits any more."""

    def __init__(self, client: RawStream, room: int) -> None:
        self.held = b""  #: what was read, and not taken
        self.impatient = False
        self._client = client
        self._room = room

    async def run(self, dial: anyio.CancelScope) -> None:
        """Watch until the client has gone, then cancel `dial`."""
        try:
            if await self._client.on_readable(self._read):
                with anyio.move_on_after(HALF_CLOSED_PATIENCE) as patience:
                    await until_broken(self._client)
                self.impatient = patience.cancelled_caught
            else:
                await until_broken(self._client)
        except BROKEN:
            pass
        dial.cancel()

    def take(self) -> bytes:
        """Take what was read, and what is there by now. Whether the client has gone is for `run` to tell, or for who reads it next."""
        with suppress(*BROKEN):
            self._read()
        taken, self.held = self.held, b""
        return taken

    def _read(self) -> bool | None:
        """Read what the client has sent. Whether it has ended its side, once it has or there is no room for more."""
        if self._room <= 0:  # `take` may have used it up while `run` waits: to read nothing would look like the end
            return False
        try:
            data = self._client.receive_now(self._room)
        except OSError:
            # The kernel tells it once, and who waits for this may be cancelled before he hears: so the client stays broken.
            self._client.reset()
            raise
        if data is None:
            return None
        self.held += data
        self._room -= len(data)
        if not data:
            return True
        return None if self._room > 0 else False


async def pipe(client: Conduit, outbound: Outbound, buffers: BufferPool) -> None:
    """Copy both ways until both have ended, close both, and say how it ended. Half-close is kept, and a reset stays a reset."""
    reason = "reset"
    try:
        reason = await copy_both_ways(client, outbound.conduit, outbound.traffic, buffers)
    except Failure as failure:
        reason = failure.reason
    finally:
        outbound.ended(str(reason))
    if reason == PumpEnd.DONE:
        await client.aclose()
        await outbound.conduit.aclose()


async def until_broken(stream: RawStream) -> None:
    """Wait until a reset has arrived on a stream that nobody reads."""
    while not stream.broken():  # noqa: ASYNC110  a reset wakes only those who read
        await anyio.sleep(WATCH_INTERVAL)
