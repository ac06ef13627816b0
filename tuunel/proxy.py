"""The forward proxy's role: local front doors whose destinations go through tunnels, directly, or nowhere.

Source: docs/spec/front-doors.md, docs/spec/names.md.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from tuunel import control
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.descriptors import raise_limit
from tuunel.devices import Devices, KnownRelay
from tuunel.dial import dial
from tuunel.direct import direct_addresses
from tuunel.doors import FrontDoors
from tuunel.errors import Failure, Speaker
from tuunel.events import Emit, Notice, Ready
from tuunel.frontdoor import Credentials, Request
from tuunel.identity import IdentityKey
from tuunel.ledger import Entry, Ledger
from tuunel.listen import address_of, open_listeners, serve
from tuunel.listeners import Announcement
from tuunel.outbound import Outbound
from tuunel.pac import write_pac
from tuunel.pool import TunnelPool
from tuunel.rawstream import RawStream
from tuunel.relay.client import HopConnection
from tuunel.relay.presence import Presence
from tuunel.relay.wire import Demand, Message
from tuunel.relay.wire import Notice as RelayNotice
from tuunel.routing import Route, Routing, ThroughDevice
from tuunel.settings import Home

WARM: Final = 2  #: DIAL connections that wait at each relay
RELAY_RETRY: Final = 30.0  #: seconds until a relay that refused this machine for good is tried again
OUTCOME_TIMEOUT: Final = 5.0  #: seconds that `outcome` waits for a connection whose streams have just ended
LAST_QUESTION: Final = 0.5  #: seconds that a proxy which stops stays for `nc` to ask how its connection has ended
LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  #: how this machine's own browser reaches a listener on every address


class Proxy:
    """`tuunel proxy`. Constructing it reads and creates state (StateError, UsageError); `run` serves until `stop` or cancellation.

    `other` is "direct", "refuse" or "via:NAME"; `routes` are PATTERN=NAME or CIDR=NAME; `credentials` a user name and password.
    """

    def __init__(
        self, home: Home, *, listen: HostPort, other: str, routes: Sequence[str], credentials: tuple[str, str] | None, emit: Emit
    ) -> None:
        home.ensure()
        self._home = home
        self._listen = listen
        self._emit = emit
        self._identity = IdentityKey.load_or_create(home.identity_key)
        self._devices = Devices(home.devices_file)
        self._routing = Routing(self._devices, other, [Route.parse(text) for text in routes])
        self._buffers = BufferPool()
        self._ledger = Ledger(emit)
        self._tunnels = TunnelPool(self._identity, self._buffers, warm=WARM, emit=emit)
        self._own_ports = Announcement(home, "proxy")
        known = Credentials(*credentials) if credentials else None
        self._doors = FrontDoors(self._dial, pac=self._pac, buffers=self._buffers, credentials=known)
        self._own_doors = FrontDoors(self._dial, pac=self._pac, buffers=self._buffers)  # on a 0600 socket: its user is known
        self._addresses: list[HostPort] = []
        self._listening = anyio.CancelScope()
        self._presences: dict[bytes, Presence] = {}
        self._waiting_for_end: dict[int, anyio.Event] = {}

    async def run(self) -> None:
        """Serve. Raises ListenError when an address is taken or a proxy already runs here."""
        raise_limit()
        async with self._tunnels, anyio.create_task_group() as self._background:
            with self._own_ports:  # as long as there are clients: their UDP associations listen too
                async with anyio.create_task_group() as self._clients:
                    await self._background.start(self._serve_socket)
                    with self._listening:
                        await self._serve_doors(self._clients)
            self._background.cancel_scope.cancel()

    def stop(self) -> None:
        """Take no more clients; `run` returns when those that are connected have finished."""
        self._listening.cancel()

    async def _serve_doors(self, clients: TaskGroup) -> None:
        with ExitStack() as closing:
            listeners = await open_listeners(self._listen)
            for listener in listeners:
                closing.callback(listener.close)
            self._addresses = [address_of(listener) for listener in listeners]
            self._own_ports.add(*self._addresses)
            closing.callback(self._own_ports.remove, *self._addresses)
            for relay in self._devices.relays():
                if relay.enrolled:
                    self._be_present(relay)
            self._emit(Ready("proxy", str(HostPort(self._listen.host, self._addresses[0].port))))
            await serve(listeners, self._doors.serve_client, clients)

    async def _serve_own_client(self, stream: RawStream) -> None:
        """A client on our unix socket, which is served on while the last clients finish; it takes no new ones then."""
        if self._listening.cancel_called:
            stream.close()
            return
        over = anyio.Event()
        self._clients.start_soon(over.wait)
        try:
            await self._own_doors.serve_client(stream)
            await anyio.sleep(LAST_QUESTION)
        finally:
            over.set()

    # destinations

    async def _dial(self, request: Request) -> Outbound:
        try:
            decision = self._routing.decide(request.target.host)
        except Failure as failure:
            entry = self._ledger.open(str(request.target), device="", door=request.door, path="relay")
            entry.end(str(failure.reason), str(failure))
            raise
        if decision is None:
            return await self._dial_directly(request)
        return await self._dial_device(request, decision)

    async def _dial_device(self, request: Request, through: ThroughDevice) -> Outbound:
        entry = self._ledger.open(str(request.target), device=through.device.name, door=request.door, path="relay")
        for relay in through.device.relays:
            self._be_present(relay)
        with entry.failing():
            target = HostPort(through.host, request.target.port)
            tunnel, bound = await self._tunnels.connect(through.device, target, request.early)
        entry.traffic.rtt = tunnel.rtt
        entry.connected(tunnel.id)
        return Outbound(tunnel, entry.traffic, partial(self._end, entry), bound, entry.number)

    async def _dial_directly(self, request: Request) -> Outbound:
        entry = self._ledger.open(str(request.target), device="", door=request.door, path="direct")
        own_ports = [address.port for address in self._addresses]
        allow = partial(direct_addresses, port=request.target.port, own_ports=own_ports, client_is_local=request.local)
        with entry.failing():
            stream = await dial(request.target, allow=allow, speaker=Speaker.LOCAL)
            try:
                await stream.send_all(request.early)
            except BaseException:
                stream.reset()
                raise
        entry.connected()
        return Outbound(stream, entry.traffic, partial(self._end, entry), stream.local, entry.number)

    # relays

    def _be_present(self, relay: KnownRelay) -> None:
        if relay.id in self._presences:
            return
        dials = self._tunnels.dial_pool(relay)

        async def while_online(connection: HopConnection) -> None:
            dials.fill()
            try:
                await anyio.sleep_forever()
            finally:
                dials.drop()

        async def on_message(message: Message) -> None:
            if isinstance(message, Demand):
                dials.demand(message.want)
            elif isinstance(message, RelayNotice) and not message.tunnel_id:
                self._emit(Notice(f"{relay.address}: {message.reason} {message.detail}"))

        presence = Presence(
            relay, self._identity, self._tunnels.params, register=None, while_online=while_online, on_message=on_message, emit=self._emit
        )
        self._presences[relay.id] = presence
        self._background.start_soon(_stay, presence)

    # the browser's file, and the control socket

    def _pac(self) -> str:
        routes = self._routing.routes
        patterns = [route.pattern for route in routes if route.network is None]
        networks = [route.network for route in routes if route.network is not None]
        loopback = next((address for address in self._addresses if ":" not in address.host), self._addresses[0])
        return write_pac(HostPort(LOOPBACK_OF.get(loopback.host, loopback.host), loopback.port), patterns, networks)

    async def _serve_socket(self, *, task_status: TaskStatus[None]) -> None:
        handlers = {"outcome": self._outcome, "status": self._status}
        await control.serve(self._home.socket("proxy"), handlers, other=self._serve_own_client, task_status=task_status)

    async def _outcome(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How a connection of `nc` ended: its socket cannot tell a reset from an end."""
        number = int(request["connection"])
        if self._ledger.outcome(number) is None:
            over = self._waiting_for_end[number] = anyio.Event()
            with anyio.move_on_after(OUTCOME_TIMEOUT):
                await over.wait()
            self._waiting_for_end.pop(number, None)
        return {"reason": self._ledger.outcome(number)}

    def _end(self, entry: Entry, reason: str) -> None:
        entry.end(reason)
        if over := self._waiting_for_end.get(entry.number):
            over.set()

    async def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        relays = [
            {"relay": str(presence.relay.address), "online": presence.online, "rtt": presence.rtt} for presence in self._presences.values()
        ]
        return {
            "role": "proxy",
            "device_id": str(self._identity.device_id),
            "listen": [str(address) for address in self._addresses],
            "relays": relays,
            "connections": len(self._ledger),
        }


async def _stay(presence: Presence) -> None:
    """A relay that refuses this machine must not end the proxy: others may serve it, and the operator may change his mind."""
    while True:
        with suppress(Failure):
            await presence.run()
        await anyio.sleep(RELAY_RETRY)
