"""The forward proxy's role: local front doors whose destinations go through tunnels, directly, or nowhere.

Source: docs/spec/front-doors.md, docs/spec/names.md.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from tuunel import control
from tuunel.address import HostPort
from tuunel.association import Association
from tuunel.descriptors import raise_limit
from tuunel.dial import Allow, dial
from tuunel.direct import Address, direct_addresses
from tuunel.doors import FrontDoors
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Emit, Measures, Notice, Ready
from tuunel.frontdoor import Credentials, Request
from tuunel.listen import address_of, drop_waiting, open_listeners, serve
from tuunel.listeners import Announcement
from tuunel.outbound import Outbound
from tuunel.oversight import Oversight
from tuunel.pac import write_pac
from tuunel.rawstream import RawStream
from tuunel.reach import Reach
from tuunel.routing import Route, Routing, ThroughDevice
from tuunel.settings import Home
from tuunel.targetflow import Rule
from tuunel.udpdoor import UdpDoor
from tuunel.userguard import UserGuard

OUTCOME_TIMEOUT: Final = 5.0  #: seconds that `outcome` waits for a connection whose streams have just ended
LAST_QUESTION: Final = 0.5  #: seconds that a proxy which stops stays for `nc` to ask how its connection has ended
LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  #: how this machine's own browser reaches a listener on every address


class Proxy:
    """`tuunel proxy`. Constructing it reads and creates state (StateError, UsageError); `run` serves until `stop` or cancellation.

    `other` is "direct", "refuse" or "via:NAME"; `routes` are PATTERN=NAME or CIDR=NAME; `credentials` a user name and password.
    Without them programs of other users of this machine are refused, unless `all_users`.
    """

    def __init__(
        self,
        home: Home,
        *,
        listen: HostPort,
        other: str,
        routes: Sequence[str],
        credentials: tuple[str, str] | None,
        emit: Emit,
        all_users: bool = False,
    ) -> None:
        home.ensure()
        self._home = home
        self._listen = listen
        self._emit = emit
        self._reach = Reach(home, emit)
        self._routing = Routing(self._reach.devices, other, [Route.parse(text) for text in routes])
        self._own_ports = Announcement(home, "proxy")
        known = Credentials(*credentials) if credentials else None
        self._user = credentials[0] if credentials else None
        self._udp = UdpDoor(self._associate, self._own_ports)
        doors = partial(FrontDoors, self._dial, udp=self._udp, pac=self._pac, buffers=self._reach.buffers)
        self._doors = doors(credentials=known)
        self._own_doors = doors()  # on a 0600 socket: its user is known
        self._guard = None if credentials or all_users else UserGuard(emit)
        refused = UdpDoor(_refuse_association, self._own_ports)
        self._closed_doors = FrontDoors(_refuse, udp=refused, pac=self._pac, buffers=self._reach.buffers)
        self._addresses: list[HostPort] = []
        self._listening = anyio.CancelScope()

    async def run(self) -> None:
        """Serve. Raises ListenError when an address is taken or a proxy already runs here."""
        raise_limit()
        async with self._reach, anyio.create_task_group() as self._background:
            with self._own_ports:  # as long as there are clients: their UDP associations listen too
                async with anyio.create_task_group() as self._clients:
                    await self._background.start(self._serve_socket)
                    with self._listening:
                        await self._serve_doors(self._clients)
            self._background.cancel_scope.cancel()

    def stop(self) -> None:
        """Take no more clients; `run` returns when those that are connected have finished."""
        self._listening.cancel()

    async def measures(self) -> Measures:
        """What it counts."""
        return {
            **self._reach.tunnels.census(),
            "proxy_associations": len(self._udp),
            "proxy_door_datagrams_dropped_total": self._udp.dropped,
        }

    async def reload(self, *, other: str, routes: Sequence[str]) -> None:
        """Decide by these from now on; what is connected stays. UsageError: nothing has changed. StateError: the names are unusable."""
        self._routing = Routing(self._reach.devices, other, [Route.parse(text) for text in routes])
        self._reach.devices.devices()
        for sentence in self._routing.unusable():
            self._emit(Notice(sentence))

    def kill(self, number: int) -> None:
        """End a connection because a person wants it. UsageError when there is none of this number."""
        self._reach.ledger.kill(number)

    async def _serve_doors(self, clients: TaskGroup) -> None:
        with ExitStack() as closing:
            listeners = await open_listeners(self._listen)
            for listener in listeners:
                closing.callback(listener.close)
            self._addresses = [address_of(listener) for listener in listeners]
            self._own_ports.add(*self._addresses)
            drop_waiting(listeners)  # nobody has been told of the port yet, but a guest of the agent may have guessed it
            closing.callback(self._own_ports.remove, *self._addresses)
            for relay in self._reach.devices.relays():
                if relay.enrolled:
                    self._reach.be_present(relay)
            self._emit(Ready("proxy", str(HostPort(self._listen.host, self._addresses[0].port)), user=self._user))
            for sentence in self._routing.unusable():
                self._emit(Notice(sentence))
            if self._guard and not self._guard.works:
                self._emit(Notice("this system does not say whose a connection is: every user of this machine can use the proxy"))
            await serve(listeners, self._serve_client, clients)

    async def _serve_client(self, stream: RawStream) -> None:
        admitted = self._guard is None or self._guard.admits(stream)
        await (self._doors if admitted else self._closed_doors).serve_client(stream)

    async def _serve_own_client(self, stream: RawStream) -> None:
        """A client on our unix socket, which is served on while the last clients finish; it takes no new ones then.

        It is `tuunel nc`, which ends its side before it goes: one that does not was killed, and its target must not take that for the end.
        """
        if self._listening.cancel_called:
            stream.close()
            return
        stream.expect_shutdown()
        over = anyio.Event()
        self._clients.start_soon(over.wait)
        try:
            await self._own_doors.serve_client(stream)
            await anyio.sleep(LAST_QUESTION)
        finally:
            over.set()

    # destinations

    async def _dial(self, request: Request, early: EarlyBytes) -> Outbound:
        shown, door = str(request.target), request.door
        try:
            through = self._routing.decide(request.target.host)
        except Failure as failure:
            self._reach.ledger.open(shown, device="", door=door, path="relay").end(str(failure.reason), str(failure))
            raise
        if through is not None:
            return await self._reach.dial(shown, through, request.target.port, door=door, early=early)
        return await self._dial_directly(request, early)

    async def _dial_directly(self, request: Request, early: EarlyBytes) -> Outbound:
        entry = self._reach.ledger.open(str(request.target), device="", door=request.door, path="direct")
        with entry, entry.killable():
            stream = await dial(request.target, allow=self._allow(request.target, local=request.local), speaker=Speaker.LOCAL)
            try:
                await stream.send_all(early.take())
            except BaseException:
                stream.reset()
                raise
        entry.connected()
        entry.cut_by(stream.reset)
        return Outbound(stream, entry.traffic, entry.end, stream.local, entry.number, lambda: entry.killed)

    def _associate(self, *, door: str, local: bool, deliver: Callable[[Hashable, bytes], bool]) -> Association:
        def route(target: HostPort) -> ThroughDevice | Rule:
            return self._routing.decide(target.host) or Rule(self._allow(target, local=local), lambda: self._own_ports.addresses)

        return self._reach.associate(route, door=door, deliver=deliver)

    def _allow(self, target: HostPort, *, local: bool) -> Allow:
        def allow(addresses: list[Address]) -> list[Address]:
            own_ports = [own.port for own in self._own_ports.addresses]  # those of the moment
            return direct_addresses(addresses, target.port, own_ports=own_ports, client_is_local=local)

        return allow

    # the browser's file, and the control socket

    def _pac(self) -> str:
        routes = self._routing.routes
        patterns = [route.pattern for route in routes if route.network is None]
        networks = [route.network for route in routes if route.network is not None]
        loopback = next((address for address in self._addresses if ":" not in address.host), self._addresses[0])
        return write_pac(HostPort(LOOPBACK_OF.get(loopback.host, loopback.host), loopback.port), patterns, networks)

    async def _serve_socket(self, *, task_status: TaskStatus[None]) -> None:
        handlers = {"outcome": self._outcome, "route": self._route, **Oversight("proxy", self._reach.ledger, self._facts).handlers}
        await control.serve(self._home.socket("proxy"), handlers, other=self._serve_own_client, task_status=task_status)

    async def _outcome(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How a connection of `nc` ended: its socket cannot tell a reset from an end."""
        number = int(request["connection"])
        with anyio.move_on_after(OUTCOME_TIMEOUT):
            await self._reach.ledger.until_ended(number)
        return {"reason": self._reach.ledger.outcome(number)}

    async def _route(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Which way a host would go, and what decides that. Nothing is connected."""
        host = str(request["host"])
        through = self._routing.decide(host)
        route = self._routing.route_of(host.lower().rstrip("."))
        if through is None:
            return {"way": "direct"}
        device = {"name": through.device.name, "device_id": str(through.device.id), "host": through.host}
        return {"way": "device", **device, "route": str(route) if route else None}

    def _facts(self) -> dict[str, Any]:
        listen = [str(address) for address in self._addresses]
        return {"listen": listen, "associations": len(self._udp), "dropped": self._udp.dropped, **self._reach.facts()}


async def _refuse(request: Request, early: EarlyBytes) -> Outbound:
    raise Failure(Reason.FORBIDDEN_USER)


def _refuse_association(*, door: str, local: bool, deliver: Callable[[Hashable, bytes], bool]) -> Association:
    raise Failure(Reason.FORBIDDEN_USER)
