"""What the forward side's roles share: a way to every device that this machine knows, a presence at the relays in use, and the ledger.

Source: docs/spec/tunnel.md.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import anyio

from tuunel.address import HostPort
from tuunel.association import Association, Route
from tuunel.buffers import BufferPool
from tuunel.devices import Devices, KnownRelay
from tuunel.e2e.wire import Command
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, Reason
from tuunel.events import Emit
from tuunel.identity import IdentityKey
from tuunel.ledger import Entry, Ledger
from tuunel.outbound import Outbound
from tuunel.pool import TunnelPool
from tuunel.relay.client import HopConnection
from tuunel.relay.presence import Presence
from tuunel.relay.wire import Demand, Message
from tuunel.relay.wire import Notice as RelayNotice
from tuunel.routing import ThroughDevice
from tuunel.settings import Home
from tuunel.tunnel import Tunnel

WARM: Final = 2  #: DIAL connections that wait at each relay
RELAY_RETRY: Final = 30.0  #: seconds until a relay that refused this machine for good is tried again


class Reach:
    """Reaches devices for as long as its context lasts; leaving it cuts every tunnel.

    Constructing it reads and creates state (StateError).
    """

    def __init__(self, home: Home, emit: Emit) -> None:
        self.identity = IdentityKey.load_or_create(home.identity_key)
        self.devices = Devices(home.devices_file)
        self.devices.relays()  # a damaged file is told at the start, and not to some app later
        self.buffers = BufferPool()
        self.ledger = Ledger(emit)
        self.tunnels = TunnelPool(self.identity, self.buffers, warm=WARM, emit=emit)
        self._emit = emit
        self._presences: dict[bytes, Presence] = {}

    async def __aenter__(self) -> Self:
        """Begin."""
        await self.tunnels.__aenter__()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End everything."""
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)  # so that what the body raised comes out alone, and not in a group
        finally:
            await self.tunnels.__aexit__(kind, error, trace)

    async def dial(
        self, shown: str, through: ThroughDevice, port: int, *, door: str, early: EarlyBytes, command: Command = Command.TCP
    ) -> Outbound:
        """Connect a target behind a device, told in the ledger as `shown`. See `Dialer` for the promises."""
        entry = self.ledger.open(shown, device=through.device.name, door=door, path="relay")
        for relay in through.device.relays:
            self.be_present(relay)
        with entry, entry.killable():
            tunnel, bound = await self.tunnels.connect(through.device, HostPort(through.host, port), early, command)
        entry.traffic.rtt = tunnel.rtt
        entry.connected(tunnel.id)
        entry.cut_by(partial(tunnel.reset, Reason.KILLED))
        killed = partial(_is_killed, entry, tunnel)
        return Outbound(tunnel, entry.traffic, partial(_end, entry, tunnel), bound, entry.number, killed)

    def associate(self, route: Route, *, door: str, deliver: Callable[[Hashable, bytes], bool]) -> Association:
        """A way for one client's datagrams: `route` says where each target is, see `Association`."""
        return Association(self.tunnels, self.ledger, route, self.be_present, door=door, deliver=deliver)

    def be_present(self, relay: KnownRelay) -> None:
        """Keep this machine's standing connection to `relay` from now on, with connections that wait there for use."""
        if relay.id in self._presences:
            return
        dials = self.tunnels.dial_pool(relay)

        async def while_online(connection: HopConnection) -> None:
            self.tunnels.note_presence(relay, online=True)
            dials.fill()
            try:
                await anyio.sleep_forever()
            finally:
                dials.drop()
                self.tunnels.note_presence(relay, online=False)

        async def on_message(message: Message) -> None:
            if isinstance(message, Demand):
                dials.demand(message.want)
            elif isinstance(message, RelayNotice):
                self.ledger.explain(message.tunnel_id, message.reason)

        presence = Presence(
            relay, self.identity, self.tunnels.params, register=None, while_online=while_online, on_message=on_message, emit=self._emit
        )
        self._presences[relay.id] = presence
        self._tasks.start_soon(_stay, presence)

    def facts(self) -> dict[str, Any]:
        """What a role's `status` command says of this."""
        return {
            "device_id": str(self.identity.device_id),
            "relays": [presence.document() for presence in self._presences.values()],
            "devices": [
                {"name": device.name, "device_id": str(device.id), "tunnels": tunnels} for device, tunnels in self.tunnels.reached().items()
            ],
        }


def _is_killed(entry: Entry, tunnel: Tunnel) -> bool:
    return entry.killed or tunnel.cut_for is Reason.KILLED


def _end(entry: Entry, tunnel: Tunnel, reason: str) -> None:
    """End the entry as its front door says, and where the tunnel was cut as its other end says."""
    entry.end(str(tunnel.cut_for or reason) if reason == "reset" else reason, tunnel.cut_reason if reason != "done" else "")


async def _stay(presence: Presence) -> None:
    """A relay that refuses this machine must not end the role: others may serve it, and the operator may change his mind."""
    while True:
        with suppress(Failure):
            await presence.run()
        await anyio.sleep(RELAY_RETRY)
