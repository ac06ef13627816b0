"""DIAL connections to one relay that wait, logged in, for the next OPEN: with one of them a tunnel costs a round trip less.

Source: docs/spec/tunnel.md (DIAL).
"""

import os
import time
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel.devices import KnownRelay
from tuunel.errors import Failure
from tuunel.identity import IdentityKey
from tuunel.relay.client import HopConnection, connect
from tuunel.relay.wire import Demand, Message, Open, Params, Ping, Pong, Purpose
from tuunel.shelf import Shelf

LARGEST: Final = 64  #: connections that wait at most, however great the demand
FORGET_DEMAND: Final = 60.0  #: seconds without a miss after which one connection less is kept
REFRESH: Final = 25.0  #: seconds between PINGs: NATs forget idle connections after 30 s at the earliest (RFC 5382 allows no less than 2 h)


class DialPool:
    """Keeps `smallest` connections waiting, more while they run out. With `smallest` 0 every connection is made when it is needed.

    `tasks` must outlive the pool's use; its cancellation closes everything that waits.
    """

    def __init__(self, relay: KnownRelay, identity: IdentityKey, params: Params, tasks: TaskGroup, *, smallest: int) -> None:
        self.relay = relay
        self._identity = identity
        self._params = params
        self._tasks = tasks
        self._smallest = self._wanted = smallest
        self._waiting = Shelf[HopConnection](tasks, self._keep, HopConnection.close)
        self._filling = False
        self._missed_at = time.monotonic()

    async def open(self, request: Open) -> tuple[HopConnection, Message]:
        """Send OPEN on a waiting connection, or in the first flight of a new one: the connection and the relay's answer.

        Raises Failure: RELAY_UNREACHABLE, RELAY_UNTRUSTED, or the relay's refusal of this machine.
        """
        connection = await self._take()
        if connection is not None:
            self.fill()
            try:
                await connection.send(request)
                return connection, await connection.receive()
            except Failure:
                connection.close()  # it waited too long; a new connection tells what is wrong
            except BaseException:
                connection.close()
                raise
        else:
            self._note_miss()
            self.fill()
        connection = await self._connect(request)
        try:
            return connection, await connection.receive()
        except BaseException:
            connection.close()
            raise

    def give_back(self, connection: HopConnection) -> None:
        """Take back a connection whose OPEN was answered with an error."""
        if len(self._waiting) < self._wanted:
            self._waiting.put(connection)
        else:
            connection.close()

    def demand(self, want: int) -> None:
        """The relay says how many connections are wanted."""
        self._wanted = max(self._smallest, min(want, LARGEST))
        self.fill()

    def drop(self) -> None:
        """Close everything that waits: the relay is gone."""
        self._waiting.clear()

    def fill(self) -> None:
        """Begin to connect what is missing."""
        if self._wanted > 1 and self._wanted > self._smallest and time.monotonic() - self._missed_at > FORGET_DEMAND:
            self._missed_at = time.monotonic()
            self._wanted -= 1
        if not self._filling and len(self._waiting) < self._wanted:
            self._filling = True
            self._tasks.start_soon(self._fill)

    def _note_miss(self) -> None:
        self._missed_at = time.monotonic()
        if self._smallest:
            self._wanted = min(self._wanted * 2, LARGEST)

    async def _take(self) -> HopConnection | None:
        while (connection := await self._waiting.take()) is not None:
            if not connection.stream.broken():
                return connection
            connection.close()
        return None

    async def _fill(self) -> None:
        try:
            while len(self._waiting) < self._wanted:
                self._waiting.put(await self._connect())
        except Failure:
            pass  # the next OPEN tells whoever needs it what is wrong
        finally:
            self._filling = False

    async def _connect(self, *first: Message) -> HopConnection:
        return await connect(self.relay, self._identity, purpose=Purpose.DIAL, params=self._params, first=first)

    async def _keep(self, connection: HopConnection) -> None:
        while True:
            message: Message | None = None
            with anyio.move_on_after(REFRESH):
                message = await connection.receive()
            with anyio.CancelScope(shield=True):  # a record must be sent whole
                if message is None:
                    await connection.send(Ping(os.urandom(8)))
                elif isinstance(message, Ping):
                    await connection.send(Pong(message.nonce))
                elif isinstance(message, Demand):
                    self.demand(message.want)
