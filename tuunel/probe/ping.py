"""`tuunel ping`: how long a round trip takes over each part of the way to a device, once a second."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import anyio

from tuunel.buffers import BufferPool
from tuunel.devices import Device
from tuunel.e2e.service import Service
from tuunel.e2e.wire import RecordType
from tuunel.errors import Failure, Reason
from tuunel.identity import IdentityKey
from tuunel.pool import RELAY_REASONS, TunnelPool
from tuunel.probe.way import RELAY, ask_relay_rtt, ask_service, by_each_relay, faults_told
from tuunel.relay.client import HopConnection, connect
from tuunel.relay.wire import Params, Purpose, Role
from tuunel.settings import Home
from tuunel.tunnel import Tunnel

INTERVAL: Final = 1.0  #: seconds between the starts of two rounds
PARTING: Final = 0.5  #: seconds that the agent has to end its side
PATIENCE: Final = 5.0  #: seconds for all answers of one round

#: What may be better a second later. Everything else ends the command: asking again would change nothing, or hide an attack.
PASSING: Final = frozenset({
    Reason.RELAY_UNREACHABLE, Reason.PEER_UNAVAILABLE, Reason.OPEN_TIMEOUT, Reason.TUNNEL_LOST, Reason.RATE_LIMITED, Reason.LIMIT,
    Reason.SHUTDOWN, Reason.QUOTA, Reason.INTERNAL,
})  # fmt: skip


@dataclass(slots=True)
class Round:
    """One round of questions, and the round trips that were answered, in seconds. `failure` says why the others were not."""

    number: int
    path: str = RELAY
    relay: str = ""
    proxy_relay: float | None = None
    relay_agent: float | None = None  #: None also when the agent cannot tell
    end_to_end: float | None = None
    failure: Failure | None = None


@dataclass(slots=True)
class _Way:
    """What is open while answers come. `tells` is whether the agent tells its own part."""

    relay: str
    hop: HopConnection
    tunnel: Tunnel
    tells: bool


class Ping:
    """Asks `device` again and again; `tell` hears of each round when it is over, and `rounds` keeps them.

    `note` is "" or says why the agent's own part is not known.
    """

    def __init__(self, home: Home, device: Device, tell: Callable[[Round], None]) -> None:
        self.rounds: list[Round] = []
        self.note = ""
        self.device = device
        self._tell = tell
        self._identity = IdentityKey.load_or_create(home.identity_key)
        self._buffers = BufferPool()
        self._way: _Way | None = None

    async def run(self, count: int | None) -> None:
        """Do `count` rounds; None: until cancelled. Ends early when a failure is not `PASSING`: it is the last round's."""
        async with TunnelPool(self._identity, self._buffers, warm=0) as tunnels:
            try:
                while True:
                    started = time.monotonic()
                    last = await self._round(tunnels)
                    final = last.failure is not None and last.failure.reason not in PASSING
                    if final or len(self.rounds) == count:
                        return
                    wait = last.failure.retry_after if last.failure else 0
                    await anyio.sleep(max(started + INTERVAL - time.monotonic(), wait, 0))
            finally:
                await self._part()

    async def _round(self, tunnels: TunnelPool) -> Round:
        asked = Round(len(self.rounds) + 1)
        try:
            if self._way is None:
                await self._open(tunnels, asked)
            else:
                await self._ask(self._way, asked)
        except Failure as failure:
            asked.failure = failure
            self._drop()
        self.rounds.append(asked)
        self._tell(asked)
        return asked

    async def _open(self, tunnels: TunnelPool, asked: Round) -> None:
        """Open the way by the first relay that has one, and ask over it."""
        ways = by_each_relay(self.device)
        for device in ways:
            try:
                return await self._open_by(tunnels, device, asked)
            except Failure as failure:
                self._drop()
                if failure.reason not in RELAY_REASONS or device is ways[-1]:
                    raise
        raise Failure(Reason.NOT_PAIRED)

    async def _open_by(self, tunnels: TunnelPool, device: Device, asked: Round) -> None:
        (relay,) = device.relays
        asked.relay, asked.proxy_relay = str(relay.address), None
        hop = await connect(relay, self._identity, purpose=Purpose.DIAL, params=Params(Role.FORWARD, os.urandom(16)))
        try:
            await self._ask_relay(hop, asked)
            tunnel = await tunnels.open(device)
        except BaseException:
            hop.close()
            raise
        self._way = _Way(str(relay.address), hop, tunnel, tells=True)
        try:
            await ask_service(tunnel, Service.RELAY_RTT)
        except Failure as failure:
            if failure.reason is not Reason.UNSUPPORTED:
                raise
            self._way.tells = False
            self.note = f"{failure.reason}: {failure.detail}"
        await self._ask_agent(self._way, asked)

    async def _ask(self, way: _Way, asked: Round) -> None:
        asked.relay = way.relay
        await self._ask_relay(way.hop, asked)
        await self._ask_agent(way, asked)

    async def _ask_relay(self, hop: HopConnection, asked: Round) -> None:
        with anyio.move_on_after(PATIENCE):
            asked.proxy_relay = await hop.ping()
            return
        raise Failure(Reason.RELAY_UNREACHABLE, detail=f"the relay did not answer within {PATIENCE:.0f} s")

    async def _ask_agent(self, way: _Way, asked: Round) -> None:
        with anyio.move_on_after(PATIENCE), faults_told(way.tunnel):
            asked.end_to_end = await way.tunnel.records.ping()
            if way.tells:
                asked.relay_agent = await ask_relay_rtt(way.tunnel, self._buffers)
            return
        if asked.end_to_end is None:
            raise Failure(Reason.TUNNEL_LOST, detail=f"the agent did not answer within {PATIENCE:.0f} s")

    async def _part(self) -> None:
        """End what is open cleanly, also when this was cancelled: nobody need see a reset."""
        if self._way is not None and self._way.tells:
            with anyio.CancelScope(shield=True), anyio.move_on_after(PARTING), suppress(OSError, anyio.ClosedResourceError):
                await self._way.tunnel.write_eof()
                await self._way.tunnel.records.receive(RecordType.FIN)
                await self._way.tunnel.aclose()
        self._drop()

    def _drop(self) -> None:
        """Close what is open: the next round opens it anew."""
        if self._way is not None:
            self._way.hop.close()
            self._way.tunnel.reset()
            self._way = None
