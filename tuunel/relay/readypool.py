"""READY connections: an agent's connections that wait at the relay, each with an offer, until the relay pairs them.

Source: docs/spec/tunnel.md (READY).
"""

import os
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from tuunel.backoff import Backoff
from tuunel.devices import KnownRelay
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Alarm, Emit
from tuunel.identity import IdentityKey
from tuunel.rawstream import RawStream
from tuunel.relay.client import HopConnection, connect
from tuunel.relay.wire import HopError, Offer, PairedAgent, Params, Ping, Pong, Purpose, Switch

AT_START: Final = 2
LARGEST: Final = 64
AT_REST: Final = 1  #: kept after REST without a tunnel
REST: Final = 600.0  #: seconds
REFRESH: Final = 25.0  #: seconds between PINGs, so that no NAT forgets the connection
ALARM_INTERVAL: Final = 60.0  #: seconds between two alarms: many connections meet the same wrong relay
RENEWAL: Final = 12 * 3600.0  #: seconds after which a connection is replaced: its offer must not expire while it waits

Secrets = TypeVar("Secrets")


class ReadyPool(Generic[Secrets]):
    """Keeps READY connections at one relay while `run` runs, which belongs to one CONTROL connection.

    `make_offer` gives an OFFER's bytes and the secrets to keep with it. A connection that is paired goes to `serve`, with the bytes of
    the pipe that arrived already, in `tasks`: it may outlive this pool. `emit` hears of a relay that is not the one it must be.
    """

    def __init__(
        self,
        relay: KnownRelay,
        identity: IdentityKey,
        params: Params,
        *,
        make_offer: Callable[[], tuple[bytes, Secrets]],
        serve: Callable[[RawStream, bytes, PairedAgent, Secrets], Coroutine[Any, Any, None]],
        tasks: TaskGroup,
        emit: Emit,
    ) -> None:
        self._relay = relay
        self._identity = identity
        self._params = params
        self._make_offer = make_offer
        self._serve = serve
        self._tasks = tasks
        self._emit = emit
        self._alarmed = float("-inf")
        self._wanted = AT_START
        self._workers: list[anyio.CancelScope] = []
        self._changed = anyio.Event()
        self._used = time.monotonic()
        self.waiting = anyio.Event()  #: set once the first connection waits

    def __len__(self) -> int:
        """How many connections wait, or are on their way there."""
        return len(self._workers)

    async def run(self) -> None:
        """Keep connections waiting until cancelled."""
        async with anyio.create_task_group() as workers:
            while True:
                while len(self._workers) < self._wanted:
                    scope = anyio.CancelScope()
                    self._workers.append(scope)
                    workers.start_soon(self._work, scope)
                self._changed = anyio.Event()
                with anyio.move_on_after(REST / 10):
                    await self._changed.wait()
                if time.monotonic() - self._used > REST:
                    self._wanted = AT_REST
                    for scope in self._workers[AT_REST:]:
                        scope.cancel()

    def demand(self, want: int) -> None:
        """The relay says how many connections are wanted. None is closed when fewer are: those that are used are not replaced."""
        self._used = time.monotonic()
        self._wanted = max(AT_START, min(want, LARGEST))
        self._changed.set()

    async def _work(self, scope: anyio.CancelScope) -> None:
        backoff = Backoff(random.random, time.monotonic)
        try:
            with scope:
                while len(self._workers) <= self._wanted:
                    try:
                        await self._wait_once()
                        backoff.reset()
                    except Failure as failure:
                        if failure.reason is Reason.RELAY_UNTRUSTED:
                            self._alarm(str(failure))
                        await anyio.sleep(backoff.after(failure.retry_after))
        finally:
            self._workers.remove(scope)

    def _alarm(self, what: str) -> None:
        if time.monotonic() - self._alarmed >= ALARM_INTERVAL:
            self._alarmed = time.monotonic()
            self._emit(Alarm(f"{self._relay.address}: {what}"))

    async def _wait_once(self) -> None:
        offer, secrets = self._make_offer()
        connection = await connect(self._relay, self._identity, purpose=Purpose.READY, params=self._params, first=[Offer(offer)])
        try:
            self.waiting.set()
            with anyio.move_on_after(RENEWAL):
                paired = await self._paired(connection)
                with anyio.CancelScope(shield=True):
                    await connection.send(Switch())
                # The relay passes the forward proxy's bytes on without waiting for SWITCH: some may be here already.
                stream, first = connection.into_pipe()
                self._used = time.monotonic()
                self._tasks.start_soon(self._serve, stream, first, paired, secrets)
                return
        except BaseException:
            connection.close()
            raise
        connection.close()

    async def _paired(self, connection: HopConnection) -> PairedAgent:
        pinged = False
        while True:
            message = None
            with anyio.move_on_after(REFRESH):
                message = await connection.receive()
            if message is None and pinged:
                raise Failure(Reason.RELAY_UNREACHABLE, detail=f"the relay was silent for {2 * REFRESH:.0f} s")
            pinged = message is None
            match message:
                case PairedAgent():
                    return message
                case HopError(reason, retry_after, detail):
                    raise Failure(reason, Speaker.RELAY, detail, retry_after=retry_after)
                case Ping(nonce):
                    await connection.send(Pong(nonce))
                case None:
                    await connection.send(Ping(os.urandom(8)))
                case _:
                    pass
