"""DIAL connections to one relay that wait, logged in, for the next OPEN: with one of them a tunnel costs a round trip less.

Source: docs/spec/tunnel.md (DIAL).
"""

import os
import time
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel.ackwatch import AckWatch
from tuunel.companions import Companions
from tuunel.devices import KnownRelay
from tuunel.errors import Failure, Reason
from tuunel.identity import IdentityKey
from tuunel.refill import Refill
from tuunel.relay.client import HopConnection, connect
from tuunel.relay.wire import Demand, HopError, Message, Open, PairedForward, Params, Ping, Pong, Purpose
from tuunel.shelf import Shelf

LARGEST: Final = 64  #: connections that wait at most, however great the demand
FORGET_DEMAND: Final = 60.0  #: seconds without a miss after which one connection less is kept
ANSWER_TIMEOUT: Final = 15.0  #: seconds for the answer to OPEN, by whatever way: the relay waits ten for an agent that has nothing ready
ACK_LOOK: Final = 1.0  #: seconds between looks whether the relay's machine still acknowledges what it was sent
ACK_DEAD: Final = 3.0  #: seconds without its acknowledgement after which a connection that has waited is given up
REFRESH: Final = 25.0  #: seconds between PINGs: NATs forget idle connections after 30 s at the earliest (RFC 5382 allows no less than 2 h)


class DialPool:
    """Keeps `smallest` connections waiting, more while they run out. With `smallest` 0 every connection is made when it is needed.

    `tasks` and `carers` must outlive the pool's use, and `drop` be called before they end.
    """

    def __init__(
        self, relay: KnownRelay, identity: IdentityKey, params: Params, tasks: TaskGroup, carers: Companions, *, smallest: int
    ) -> None:
        self.relay = relay
        self._identity = identity
        self._params = params
        self._smallest = self._wanted = smallest
        self._waiting = Shelf[HopConnection](carers, self._keep, HopConnection.close)
        self._asking: set[HopConnection] = set()  # that had waited, with an OPEN under way
        self._refill = Refill(tasks, lambda: self._wanted - len(self._waiting), self._make)
        self._missed_at = time.monotonic()

    def __len__(self) -> int:
        """How many connections wait."""
        return len(self._waiting)

    async def open(self, request: Open) -> tuple[HopConnection, PairedForward | HopError]:
        """Send OPEN on a waiting connection, or in the first flight of a new one: the connection and the relay's answer.

        Raises Failure: RELAY_UNREACHABLE, RELAY_UNTRUSTED, PROTOCOL, or the relay's refusal of this machine.
        """
        with anyio.move_on_after(ANSWER_TIMEOUT), self._refill.rush():
            return await self._open(request)
        raise Failure(Reason.RELAY_UNREACHABLE, detail="the relay does not answer")

    async def _open(self, request: Open) -> tuple[HopConnection, PairedForward | HopError]:
        waited = await self._take()
        if waited is None:
            self._note_miss()
        self.fill()
        if waited is not None:
            with suppress(Failure):  # it waited too long; a new connection tells what is wrong
                return waited, await self._ask(waited, request)
        connection = await self._connect(request)
        return connection, await self._answer(connection)

    async def _ask(self, connection: HopConnection, request: Open) -> PairedForward | HopError:
        self._asking.add(connection)
        try:
            await connection.send(request)
            return await self._answer(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            self._asking.discard(connection)

    @staticmethod
    async def _answer(connection: HopConnection) -> PairedForward | HopError:
        """What the relay answers to OPEN. The connection is closed when it raises."""
        acks = AckWatch()
        try:
            # A PONG may still be on its way, and a PING is left unanswered: from OPEN to its answer nothing is sent.
            while (message := await _receive_within(connection, ACK_LOOK)) is None or isinstance(message, Ping | Pong):
                if acks.unanswered(connection.stream, time.monotonic()) > ACK_DEAD:
                    raise Failure(Reason.RELAY_UNREACHABLE, detail="the relay's machine acknowledges nothing")
            if isinstance(message, PairedForward | HopError):
                return message
            raise Failure(Reason.PROTOCOL, detail=f"the relay answered OPEN with {type(message).__name__}")
        except BaseException:
            connection.close()
            raise

    def give_back(self, connection: HopConnection) -> None:
        """Take back a connection whose OPEN was answered with an error."""
        if len(self._waiting) < self._wanted:
            self._waiting.put(connection)
        else:
            connection.close()

    def add(self, connection: HopConnection) -> None:
        """Take over an idle connection that somebody else has made: the next OPEN goes over it."""
        self._waiting.put(connection)

    def demand(self, want: int) -> None:
        """The relay says how many connections are wanted."""
        self._wanted = max(self._smallest, min(want, LARGEST))
        self.fill()

    def drop(self) -> None:
        """Close everything that waits, or had waited before its OPEN: the relay is gone."""
        self._waiting.clear()
        for connection in list(self._asking):
            connection.close()

    def fill(self) -> None:
        """Begin to connect what is missing."""
        if self._wanted > 1 and self._wanted > self._smallest and time.monotonic() - self._missed_at > FORGET_DEMAND:
            self._missed_at = time.monotonic()
            self._wanted -= 1
        self._refill.begin()

    def _note_miss(self) -> None:
        self._missed_at = time.monotonic()
        if self._smallest and not self._refill.running:  # once in a refill: a burst is met by standby tunnels the next time
            self._wanted = min(self._wanted * 2, LARGEST)

    async def _take(self) -> HopConnection | None:
        while (connection := await self._waiting.take()) is not None:
            if not connection.stream.broken():
                return connection
            connection.close()
        return None

    async def _make(self) -> None:
        self._waiting.put(await self._connect())

    async def _connect(self, *first: Message) -> HopConnection:
        return await connect(self.relay, self._identity, purpose=Purpose.DIAL, params=self._params, first=first)

    async def _keep(self, connection: HopConnection) -> None:
        pinged = False
        while (message := await _receive_within(connection, REFRESH)) is not None or not pinged:
            pinged = message is None
            if message is None:
                await connection.send(Ping(os.urandom(8)))
            elif isinstance(message, Ping):
                await connection.send(Pong(message.nonce))
            elif isinstance(message, Demand):
                self.demand(message.want)


async def _receive_within(connection: HopConnection, seconds: float) -> Message | None:
    with anyio.move_on_after(seconds):
        return await connection.receive()
    return None
