"""Keeps this machine present at a relay: its CONTROL connection, re-made whenever it is lost, with backoff.

When the machine has slept, or goes to the relay another way, it asks whether the connection still lives, and waits for no backoff.

Source: docs/spec/tunnel.md (CONTROL, liveness).
"""

import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import anyio

from tuunel.backoff import Backoff
from tuunel.devices import KnownRelay
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Alarm, Emit, Notice, RelayCondition, RelayStateChanged
from tuunel.identity import IdentityKey
from tuunel.networkwatch import NetworkWatch
from tuunel.relay.client import HopConnection, connect
from tuunel.relay.handshake import Register
from tuunel.relay.wire import HopError, Message, Params, Ping, Pong, Purpose
from tuunel.relay.wire import Notice as RelayNotice

SILENCE: Final = 5.0  #: seconds without a message before a PING, at most
SPREAD: Final = 0.2  #: the part of it that chance takes off: what has made thousands wait for a busy relay must not make them ping as one
DEAD: Final = 12.0  #: seconds without a message before the connection counts as lost
DOUBT: Final = 3.0  #: the same, from when there is reason to think that it is lost: a round trip on any usable link
STEADY: Final = 10.0  #: seconds that a connection must last for the next to be made at once: a relay that ends each must wait, too
NOTICE_INTERVAL: Final = 60.0  #: seconds between two of a relay's notices that people see: its flood must not fill a screen or a log
MEASURED: Final = 0.5  #: seconds for which a measured round trip is told again: whoever asks must not make this machine flood the relay

#: An authenticated relay said that trying again cannot help.
FINAL: Final = frozenset({Reason.DEVICE_UNKNOWN, Reason.DEVICE_BANNED, Reason.ENROLMENT_REQUIRED, Reason.DUPLICATE_DEVICE})
#: Whoever answers at the relay's address is not (yet) a relay that this machine can use. Final only at the very first try:
#: later somebody on the path could otherwise stop a running agent for good.
FINAL_AT_FIRST: Final = FINAL | {Reason.RELAY_UNTRUSTED, Reason.AUTH_FAILED, Reason.VERSION, Reason.PROTOCOL}


class Presence:
    """One device's standing connection to one relay.

    `while_online(connection)` runs beside each CONTROL connection and is cancelled with it; `on_message` gets every message
    that is neither liveness nor a notice. `emit` hears of each change of state, and once a minute what the relay has to say of this device.
    """

    def __init__(
        self,
        relay: KnownRelay,
        identity: IdentityKey,
        params: Params,
        *,
        register: Register | None,
        while_online: Callable[[HopConnection], Awaitable[None]],
        on_message: Callable[[Message], Awaitable[None]],
        emit: Emit,
    ) -> None:
        self.relay = relay
        self.online = False
        self.rtt: float | None = None
        self._told: tuple[RelayCondition, str] = ("connecting", "")
        self._identity = identity
        self._params = params
        self._register = register
        self._while_online = while_online
        self._on_message = on_message
        self._emit = emit
        self._backoff = Backoff(random.random, time.monotonic)
        self._network = NetworkWatch()
        self._patience = anyio.CancelScope()  # of what is waited for now, until the network changes
        self._doubted = False
        self._noticed = float("-inf")
        self._unnoticed = 0
        self._connection: HopConnection | None = None
        self._pongs: dict[bytes, anyio.Event] = {}
        self._measuring = anyio.Lock()
        self._measured: tuple[float, float] | None = None  # when, and what

    async def run(self) -> None:
        """Stay present until cancelled. Raises Failure when trying again cannot help (`FINAL`, `FINAL_AT_FIRST`)."""
        await _beside(self._watch_network, self._stay)

    async def _watch_network(self) -> None:
        while True:
            await self._network.changed()
            self._backoff.reset()
            self._doubted = True
            self._patience.cancel()

    async def _stay(self) -> None:
        final = FINAL_AT_FIRST
        while True:
            self._tell("connecting")
            try:
                await self._be_online()
            except Failure as failure:
                if self.online:
                    final = FINAL
                    self.online = False
                self._tell("offline", str(failure))
                if failure.reason is Reason.RELAY_UNTRUSTED:
                    self._emit(Alarm(f"{self.relay.address}: {failure}"))
                if failure.reason in final:
                    raise
                with anyio.move_on_after(self._backoff.after(failure.retry_after)) as self._patience:
                    await anyio.sleep_forever()

    async def measure(self) -> float:
        """The round trip to the relay now, in seconds, or what it was less than `MEASURED` ago.

        Any number of tasks may ask; one PING is under way for all of them. Failure(RELAY_UNREACHABLE) when there is no connection, or
        no answer in `SILENCE` seconds.
        """
        async with self._measuring:
            if self._measured is None or time.monotonic() - self._measured[0] > MEASURED:
                self._measured = time.monotonic(), await self._round_trip()
            return self._measured[1]

    async def settle(self) -> None:
        """Return when the relay has acted on all that was sent to it before: it answers a PING in its turn. Raises as `measure`."""
        await self._round_trip()

    async def _round_trip(self) -> float:
        if self._connection is None:
            raise Failure(Reason.RELAY_UNREACHABLE, detail="offline")
        nonce, answered = os.urandom(8), anyio.Event()
        self._pongs[nonce] = answered
        started = time.monotonic()
        try:
            with anyio.CancelScope(shield=True):  # a record must be sent whole
                await self._connection.send(Ping(nonce))
            with anyio.fail_after(SILENCE):
                await answered.wait()
        except TimeoutError as error:
            raise Failure(Reason.RELAY_UNREACHABLE, detail="the relay does not answer") from error
        finally:
            del self._pongs[nonce]
        return time.monotonic() - started

    async def _be_online(self) -> None:
        connection = None
        with anyio.CancelScope() as self._patience:
            connection = await connect(self.relay, self._identity, purpose=Purpose.CONTROL, params=self._params, register=self._register)
        if connection is None:
            return  # tried by a way that is no more
        self._register = None
        with suppress(OSError):  # lost again
            self._network.aim(connection.stream.peer)
        self._doubted = False
        self.online = True
        self._connection = connection
        self._tell("online")
        since = time.monotonic()
        try:
            await _beside(lambda: self._accompany(connection), lambda: self._converse(connection))
        finally:
            self._connection = None
            connection.close()
            if time.monotonic() - since >= STEADY:
                self._backoff.reset()

    async def _accompany(self, connection: HopConnection) -> None:
        # a connection lost while it sends is told by the conversation, which reads from it
        with suppress(Failure):
            await self._while_online(connection)

    async def _converse(self, connection: HopConnection) -> None:
        heard, dead = time.monotonic(), DEAD
        pinged: tuple[bytes, float] | None = await self._ping(connection)
        while True:
            message = await self._receive_until(connection, heard + (dead if pinged else self._silence()))
            if message is None and pinged and not self._doubted:
                raise Failure(Reason.RELAY_UNREACHABLE, detail=f"the relay was silent for {dead:.0f} s")
            if message is None:
                pinged = await self._ping(connection)
                if self._doubted:
                    self._doubted, heard, dead = False, pinged[1], DOUBT
                continue
            heard, dead = time.monotonic(), DEAD
            match message:
                case Ping(nonce):
                    await connection.send(Pong(nonce))
                case Pong(nonce) if pinged and nonce == pinged[0]:
                    self.rtt = heard - pinged[1]
                    pinged = None
                    self._tell("online")
                case Pong(nonce):
                    if nonce in self._pongs:
                        self._pongs[nonce].set()
                case HopError(reason, retry_after, detail):
                    raise Failure(reason, Speaker.RELAY, detail, retry_after=retry_after)
                case RelayNotice() if not message.tunnel_id:
                    self._note(message)
                case _:
                    await self._on_message(message)

    @staticmethod
    def _silence() -> float:
        return SILENCE * (1 - SPREAD * random.random())  # noqa: S311  no secret

    async def _receive_until(self, connection: HopConnection, deadline: float) -> Message | None:
        with anyio.move_on_after(max(deadline - time.monotonic(), 0)) as self._patience:
            return await connection.receive()
        return None

    @staticmethod
    async def _ping(connection: HopConnection) -> tuple[bytes, float]:
        nonce = os.urandom(8)
        await connection.send(Ping(nonce))
        return nonce, time.monotonic()

    def _note(self, notice: RelayNotice) -> None:
        now = time.monotonic()
        if now - self._noticed < NOTICE_INTERVAL:
            self._unnoticed += 1
            return
        before = f" ({self._unnoticed} notices before this one are not shown)" if self._unnoticed else ""
        self._noticed, self._unnoticed = now, 0
        self._emit(Notice(f"{self.relay.address}: {notice.reason} {notice.detail}{before}"))

    def document(self) -> dict[str, Any]:
        """How this machine stands with the relay, as the control socket shows it."""
        state, detail = self._told
        return {"relay": str(self.relay.address), "state": state, "detail": detail, "rtt": self.rtt if state == "online" else None}

    def _tell(self, state: RelayCondition, detail: str = "") -> None:
        self._told = state, detail
        self._emit(RelayStateChanged(str(self.relay.address), state, detail, self.rtt if state == "online" else None))


async def _beside(company: Callable[[], Coroutine[Any, Any, None]], work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, and `company` until it ends. What `work` raises comes out alone, and not as a group of one."""
    failure: Failure | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(company)
        try:
            await work()
        except Failure as caught:
            failure = caught
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
