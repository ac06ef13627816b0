"""One client's datagrams on their ways: each target's go through a device or directly, as a flow of their own that the ledger tells of.

Source: docs/spec/records.md section 6, docs/spec/front-doors.md section 3.1.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeAlias

import anyio

from tuunel.address import HostPort
from tuunel.deviceflows import DeviceFlows, Flow
from tuunel.devices import KnownRelay
from tuunel.errors import Failure, Reason, Speaker
from tuunel.identity import DeviceID
from tuunel.ledger import Entry, Ledger
from tuunel.pool import TunnelPool
from tuunel.routing import ThroughDevice
from tuunel.targetflow import Rule, TargetFlow, flush_all
from tuunel.tunnel import Tunnel

MAX_FLOWS: Final = 1024  #: of one client at a time, those that were just refused included
RETRY: Final = 1.0  #: seconds in which a flow that failed is not tried again: its client may send a thousand datagrams in them

#: Says where a host is: behind a device, or to be dialled from here at the addresses that the answer allows. Raises Failure.
Route: TypeAlias = Callable[[HostPort], ThroughDevice | Rule]


class Association:
    """Implements `tuunel.outbound.Datagrams`; an async context manager, whose end ends every flow and tells the agents."""

    def __init__(
        self,
        tunnels: TunnelPool,
        ledger: Ledger,
        route: Route,
        be_present: Callable[[KnownRelay], None],
        *,
        door: str,
        deliver: Callable[[Hashable, bytes], bool],
    ) -> None:
        self._tunnels = tunnels
        self._ledger = ledger
        self._route = route
        self._be_present = be_present
        self._door = door
        self._deliver = deliver
        self._flows: dict[Hashable, _Flow] = {}
        self._devices: dict[DeviceID, DeviceFlows] = {}
        self._full_since = float("-inf")

    async def __aenter__(self) -> Self:
        """Begin."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End every flow, behind what has been sent."""
        try:
            async with anyio.create_task_group() as farewells:
                farewells.start_soon(flush_all, [flow.way for flow in self._flows.values() if isinstance(flow.way, TargetFlow)])
                for device in self._devices.values():
                    farewells.start_soon(device.aclose)
        finally:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            for flow in list(self._flows.values()):
                flow.ended(None)

    def send(self, target: HostPort, payload: bytes, key: Hashable = None) -> None:
        """See `tuunel.outbound.Datagrams`."""
        name = target if key is None else key
        flow = self._flows.get(name)
        if flow is None or flow.may_be_tried_again():
            flow = self._begin(name, target)
        if flow is not None:
            flow.send(payload)

    def flush(self) -> None:
        """See `tuunel.outbound.Datagrams`."""
        for device in self._devices.values():
            device.flush()

    def _begin(self, name: Hashable, target: HostPort) -> "_Flow | None":
        if name not in self._flows and not self._has_room(target):
            return None
        flow = self._flows[name] = _Flow(partial(self._deliver, name), partial(self._flows.pop, name, None))
        shown = f"{target}/udp"
        try:
            way = self._route(target)
        except Failure as failure:
            flow.begin(self._ledger.open(shown, device="", door=self._door, path="relay"))
            flow.ended(failure)
            return flow
        if isinstance(way, ThroughDevice):
            flow.begin(self._ledger.open(shown, device=way.device.name, door=self._door, path="relay"))
            self._go_through(way, target, flow)
        else:
            flow.begin(self._ledger.open(shown, device="", door=self._door, path="direct"))
            self._go_directly(target, way, flow)
        return flow

    def _go_through(self, way: ThroughDevice, target: HostPort, flow: "_Flow") -> None:
        device = way.device
        for relay in device.relays:
            self._be_present(relay)
        if device.id not in self._devices:
            self._devices[device.id] = DeviceFlows(self._tunnels, device, self._tasks)
        try:
            flow.way = self._devices[device.id].open(HostPort(way.host, target.port), flow)
        except Failure as failure:
            flow.ended(failure)

    def _go_directly(self, target: HostPort, rule: Rule, flow: "_Flow") -> None:
        flow.way = TargetFlow(target, rule=rule, speaker=Speaker.LOCAL, deliver=flow.deliver_all, dropped=flow.dropped)
        self._tasks.start_soon(flow.run_directly, flow.way)

    def _has_room(self, target: HostPort) -> bool:
        """Whether one more flow may begin. A client that wants too many is told so once a second, and keeps those that it has."""
        if len(self._flows) < MAX_FLOWS:
            return True
        now = time.monotonic()
        if now < self._full_since + RETRY:
            return False
        self._full_since = now
        for name in [name for name, flow in self._flows.items() if flow.may_be_tried_again()]:
            del self._flows[name]
        if len(self._flows) < MAX_FLOWS:
            return True
        entry = self._ledger.open(f"{target}/udp", device="", door=self._door, path="relay")
        entry.end(str(Reason.LIMIT), f"{MAX_FLOWS} flows of one client, and no more")
        return False


class _Flow:
    """One target's datagrams, counted: the user of a flow through a device, or of a direct one."""

    way: Flow | TargetFlow | None = None

    def __init__(self, deliver: Callable[[bytes], bool], forget: Callable[[], object]) -> None:
        self._deliver = deliver
        self._forget = forget
        self._over_since: float | None = None
        self._direct = anyio.CancelScope()

    def begin(self, entry: Entry) -> None:
        """Take the entry that tells of this flow."""
        self.entry = entry
        entry.cut_by(self.kill)

    def send(self, payload: bytes) -> None:
        if self._over_since is None and self.way is not None and self.way.send(payload):
            self.entry.traffic.up += len(payload)
        else:
            self.entry.traffic.lost += 1

    def may_be_tried_again(self) -> bool:
        return self._over_since is not None and time.monotonic() >= self._over_since + RETRY

    async def run_directly(self, way: TargetFlow) -> None:
        failure = None
        try:
            with self._direct:
                await way.run(lambda _: self.entry.connected())
        except Failure as error:
            failure = error
        self.ended(failure)

    # what the flow says

    def opened(self, tunnel: Tunnel) -> None:
        self.entry.traffic.rtt = tunnel.rtt
        self.entry.connected(tunnel.id)

    def deliver_all(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self.deliver(payload)

    def deliver(self, payload: bytes) -> None:
        if self._deliver(payload):
            self.entry.traffic.down += len(payload)
        else:
            self.entry.traffic.lost += 1

    def dropped(self, size: int) -> None:
        self.entry.traffic.up -= size
        self.entry.traffic.lost += 1

    def ended(self, failure: Failure | None) -> None:
        if self._over_since is not None:
            return
        self._over_since = time.monotonic()
        if failure is None:
            self._forget()
            self.entry.end("done")
        else:
            self.entry.end(str(failure.reason), f"{failure.speaker}: {failure}")

    # what a person says

    def kill(self) -> None:
        self.ended(Failure(Reason.KILLED))
        if isinstance(self.way, Flow):
            self.way.close(Reason.KILLED)
        self._direct.cancel()
