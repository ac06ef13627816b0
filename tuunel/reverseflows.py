"""A UDP tunnel at the agent: each flow is checked, gets a socket of its own, and ends without disturbing the others.

Source: docs/spec/records.md section 6 (flows), docs/spec/policy.md section 5 (limits).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel.address import HostPort
from tuunel.e2e.flows import AgentFlows, FlowData, FlowEnded, FlowRequested
from tuunel.e2e.wire import FLOW_RECORDS, RecordType
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.flowwriter import FlowWriter
from tuunel.ledger import Entry
from tuunel.targetflow import Rule, TargetFlow, flush_all
from tuunel.tunnel import Tunnel

MAX_FLOWS_PER_CLIENT: Final = 1024  #: each has a descriptor, of which one client must not take all, and datagrams that wait for its client
MAX_LOOKUPS_PER_CLIENT: Final = 64  #: names that may hang: one client must leave most of the agent's lookups to others


class FlowShare:
    """What one client's flows take up, over all of its UDP tunnels: the numbers in use there, and the names that are looked up."""

    def __init__(self) -> None:
        self.tunnels: list[AgentFlows] = []
        self.looking_up: set[_Carrier] = set()

    def check(self, *, by_name: bool) -> None:
        """Tell whether there is room for the flow whose number was just taken into use: Failure(LIMIT) when there is none."""
        if sum(map(len, self.tunnels)) > MAX_FLOWS_PER_CLIENT:
            raise Failure(Reason.LIMIT, Speaker.AGENT, f"{MAX_FLOWS_PER_CLIENT} flows of one client")
        if by_name and len(self.looking_up) >= MAX_LOOKUPS_PER_CLIENT:
            raise Failure(Reason.LIMIT, Speaker.AGENT, f"{MAX_LOOKUPS_PER_CLIENT} names looked up at a time for one client")


@dataclass(slots=True, eq=False)
class _Carrier:
    """One flow: its socket at the target, and its entry in the ledger."""

    flow: int
    entry: Entry
    target: TargetFlow = field(init=False)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: bool = False  #: its number may belong to another flow by now

    def send(self, payload: bytes) -> None:
        if self.target.send(payload):
            self.entry.traffic.up += len(payload)
        else:
            self.entry.traffic.lost += 1

    def lost_up(self, size: int) -> None:
        self.entry.traffic.up -= size
        self.entry.traffic.lost += 1

    def lost_down(self, size: int) -> None:
        self.entry.traffic.down -= size
        self.entry.traffic.lost += 1

    def end(self, reason: str, detail: str = "") -> None:
        self.over = True
        self.target.abandon()  # before the entry is told
        self.entry.end(reason, detail)
        self.scope.cancel()


class ReverseFlows:
    """Serves one tunnel that was asked for UDP, from behind CONNECTED to its end. Owns `tunnel`.

    `permit` is asked at every flow: it returns the rule for the target's addresses, or raises Failure. `announce` opens a flow's
    entry in the ledger. `carries` is told the number of flows at the start and whenever it changes.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        share: FlowShare,
        *,
        permit: Callable[[HostPort], Rule],
        announce: Callable[[HostPort], Entry],
        carries: Callable[[int], object],
    ) -> None:
        self._tunnel = tunnel
        self._share = share
        self._permit = permit
        self._announce = announce
        self._carries = carries
        self._flows = AgentFlows(self._count_lost)
        self._carriers: dict[int, _Carrier] = {}
        self._writer = FlowWriter(tunnel, self._flows.outbox)
        self._ended = False  # by FIN

    async def run(self) -> None:
        """Serve until the forward proxy ends the tunnel, which is then closed, or until it is cut or a rule is broken.

        In the latter cases the caller resets it. Raises OSError when closing fails.
        """
        self._share.tunnels.append(self._flows)
        try:
            self._carries(0)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write)
                await self._read(tasks)
                if self._ended:
                    self._writer.end()  # behind a whole record, so that FIN can follow
                else:
                    tasks.cancel_scope.cancel()
        finally:
            self._share.tunnels.remove(self._flows)
        if self._ended:
            await self._tunnel.write_eof()
            await self._tunnel.aclose()

    async def _read(self, tasks: TaskGroup) -> None:
        """Take records until FIN, or until the tunnel is cut. No flow is carried any more then, but for what was held for it before FIN."""
        detail = ""
        try:
            while not await self._tunnel.on_records(lambda: self._take(tasks)):
                pass
            self._ended = True
            await flush_all([carrier.target for carrier in self._carriers.values()])
        except (OSError, anyio.ClosedResourceError):
            detail = self._tunnel.cut_reason
        except RemoteProtocolError as breach:
            detail = str(breach)
        finally:
            self._flows.outbox.forget_all()  # so that it is counted
            for flow in list(self._carriers):
                self._take_out(flow).end("done" if self._ended else "reset", detail)

    def _take(self, tasks: TaskGroup) -> bool | None:
        """Handle the next record that is here. True at FIN, False when others should have their turn."""
        record = self._tunnel.take(*FLOW_RECORDS, RecordType.FIN)
        if record is None:
            return None
        if record[0] is RecordType.FIN:
            return True
        match self._flows.receive(*record):
            case FlowData(flow, payload):
                self._carriers[flow].send(payload)
            case FlowEnded(flow, reason):
                self._take_out(flow).end(str(reason or "done"))
                self._carries(len(self._carriers))
            case FlowRequested(flow, target):
                self._open(flow, target, tasks)
                self._writer.flush()
                return False  # asking the policy costs more than a burst of datagrams
        self._writer.flush()  # closes are answered
        return None

    async def _write(self) -> None:
        try:
            await self._writer.run()
        except (OSError, anyio.ClosedResourceError):
            self._tunnel.reset()  # which ends the reader, too

    def _open(self, flow: int, target: HostPort, tasks: TaskGroup) -> None:
        by_name = _is_name(target.host)
        try:
            self._share.check(by_name=by_name)  # before there is an entry: thousands that are refused must not fill a log
            entry = self._announce(target)
            with entry:
                rule = self._permit(target)
        except Failure as failure:
            self._flows.close(flow, failure.reason, failure.detail)
            return

        carrier = self._carriers[flow] = _Carrier(flow, entry)
        deliver = partial(self._deliver, carrier)
        carrier.target = TargetFlow(target, rule=rule, speaker=Speaker.AGENT, deliver=deliver, dropped=carrier.lost_up)
        entry.cut_by(partial(self._close, carrier, Reason.KILLED))
        self._carries(len(self._carriers))
        if by_name:
            self._share.looking_up.add(carrier)
        tasks.start_soon(self._carry, carrier)

    async def _carry(self, carrier: _Carrier) -> None:
        try:
            with carrier.scope, carrier.entry:
                await carrier.target.run(lambda bound: self._opened(carrier, bound))
            self._close(carrier)
        except Failure as failure:
            self._close(carrier, failure.reason, failure.detail)

    def _opened(self, carrier: _Carrier, bound: HostPort) -> None:
        self._share.looking_up.discard(carrier)
        if not carrier.over:
            carrier.entry.connected(self._tunnel.id)
            self._flows.opened(carrier.flow, bound)
            self._writer.flush()

    def _deliver(self, carrier: _Carrier, payloads: Sequence[bytes]) -> None:
        if carrier.over:
            return
        traffic = carrier.entry.traffic
        for payload in payloads:
            if self._flows.send(carrier.flow, payload):
                traffic.down += len(payload)
            else:
                traffic.lost += 1
        self._writer.flush()

    def _close(self, carrier: _Carrier, reason: Reason | None = None, detail: str = "") -> None:
        """End a flow from this side: idle, refused, or in fault."""
        if not carrier.over:
            self._take_out(carrier.flow).end("done")  # unless a failure has ended its entry
            self._flows.close(carrier.flow, reason, detail)
            self._writer.flush()
            if not self._ended:
                self._carries(len(self._carriers))

    def _take_out(self, flow: int) -> _Carrier:
        carrier = self._carriers.pop(flow)
        self._share.looking_up.discard(carrier)
        return carrier

    def _count_lost(self, flow: int, size: int) -> None:
        if carrier := self._carriers.get(flow):
            carrier.lost_down(size)


def _is_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return bool(host)
    return False
