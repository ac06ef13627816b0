"""Clients and targets that speak UDP: what each was sent and has heard, and how flow numbers pass by on both ends of a tunnel."""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel

from tuunel.address import HostPort
from tuunel.association import Association
from tuunel.devices import Device
from tuunel.e2e.flows import AgentFlows, FlowData, ForwardFlows
from tuunel.e2e.wire import FLOW_NUMBER, RecordType
from tuunel.ledger import Ledger
from tuunel.policy import Address
from tuunel.pool import TunnelPool
from tuunel.rawsocket import Result
from tuunel.routing import ThroughDevice

FIRST_PORT = 30_000  #: each client asks each host at a port of its own: so every socket tells whose it is
Note = Callable[[bool, str], None]  #: takes what must hold, and what is wrong if it does not


class TargetSocket:
    """Stands for the agent's UDP socket to a target: what is sent arrives at once, and what the target says waits to be received."""

    def __init__(self, address: Address, on_send: Callable[[bytes], None]) -> None:
        self.address = address
        self.got: list[bytes] = []
        self.said: list[bytes] = []
        self.closed = False
        self.refuses = False  #: nobody listens there
        self._on_send = on_send
        self._waiting: deque[bytes] = deque()
        self._changed = anyio.Event()

    @property
    def local(self) -> HostPort:
        return HostPort("192.168.7.1", 40000)

    def say(self, payload: bytes) -> None:
        self.said.append(payload)
        self._waiting.append(payload)
        self._wake()

    def refuse(self) -> None:
        self.refuses = True
        self._wake()

    def send(self, payload: bytes) -> bool:
        self._check_open()
        if self.refuses:
            raise ConnectionRefusedError
        self._on_send(bytes(payload))
        self.got.append(bytes(payload))
        return True

    def receive(self) -> bytes | None:
        self._check_open()
        if self.refuses:
            raise ConnectionRefusedError
        return self._waiting.popleft() if self._waiting else None

    async def wait_readable(self) -> None:
        await anyio.lowlevel.checkpoint()
        while not (self.closed or self.refuses or self._waiting):
            self._changed = anyio.Event()
            await self._changed.wait()
        self._check_open()

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        result = None
        while result is None:
            await self.wait_readable()
            result = step()
        return result

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()

    def _check_open(self) -> None:
        if self.closed:
            raise anyio.ClosedResourceError


@dataclass(eq=False)
class Place:
    """A host that one client asks, at a port of its own; the agent may have several sockets to it, one after the other."""

    number: int
    client: "Client"
    host: str
    asked: list[bytes] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    sockets: list[TargetSocket] = field(default_factory=list)
    is_spoilt: bool = False  #: it was not allowed all the time, or has refused

    @property
    def name(self) -> HostPort:
        return HostPort(self.host or "home.tuunel", FIRST_PORT + self.number)

    def problems(self) -> list[str]:
        """What may never be: datagrams that nobody sent, sent elsewhere, or twice."""
        found = []
        got = [payload for socket in self.sockets for payload in socket.got]
        said = [payload for socket in self.sockets for payload in socket.said]
        if not set(got) <= set(self.asked):
            found.append("a target got what its client has not sent there")
        if len(set(got)) < len(got) and not self.is_spoilt:
            found.append("a target got a datagram twice")
        if not set(self.heard) <= set(said):
            found.append("a client heard what its target has not said")
        if len(set(self.heard)) < len(self.heard):
            found.append("a client heard a datagram twice")
        return found


class Client:
    """A program whose datagrams go through a forward proxy. `on_breach` is told what must not be."""

    def __init__(self, number: int, forward: str, on_breach: Callable[[str], None]) -> None:
        self.number = number
        self.forward = forward
        self.places: dict[HostPort, Place] = {}
        self.leaving = anyio.Event()
        self.over = False
        self._on_breach = on_breach
        self._device: Device
        self._association: Association | None = None

    async def run(self, pool: TunnelPool, device: Device) -> None:
        """What a front door does for it."""
        self._device = device
        try:
            async with self._associate(pool) as self._association:
                await self.leaving.wait()
        finally:
            self._association = None
            self.over = True

    def _associate(self, pool: TunnelPool) -> Association:
        return Association(pool, Ledger(lambda _: None), self._route, lambda _: None, door="socks5", deliver=self._deliver)

    async def ask(self, place: Place, payload: bytes) -> None:
        if self._association is not None:
            place.asked.append(payload)
            self._association.send(place.name, payload)

    def _route(self, target: HostPort) -> ThroughDevice:
        return ThroughDevice(self._device, self.places[target].host)

    def _deliver(self, name: Hashable, payload: bytes) -> bool:
        if self.over:
            self._on_breach("a client that has left was sent a datagram")
        if not isinstance(name, HostPort) or name not in self.places:
            self._on_breach("a client was sent a datagram from where it has asked nothing")
        else:
            self.places[name].heard.append(bytes(payload))
        return True


@dataclass
class _Number:
    """One flow number, as it has passed by."""

    opened: bool = False  #: the agent has said that it has a socket
    we_closed: bool = False
    they_closed: bool = False

    @property
    def free(self) -> bool:
        return self.we_closed and self.they_closed


class Numbers:
    """The rules of flow numbers, said a second time: at one end of one tunnel, for the records that leave and that are believed."""

    def __init__(self, note: Note, *, is_agent: bool) -> None:
        self._note = note
        self._is_agent = is_agent
        self._numbers: dict[int, _Number] = {}

    def leaves(self, kind: RecordType, body: bytes) -> None:
        self._passes(kind, int.from_bytes(body[:FLOW_NUMBER], "big"), ours=True)

    def believed(self, kind: RecordType, body: bytes, event: object) -> None:
        flow = int.from_bytes(body[:FLOW_NUMBER], "big")
        self._passes(kind, flow, ours=False)
        if isinstance(event, FlowData):
            self._note(not self._numbers[flow].we_closed, "a datagram was taken behind this end's close")

    def _passes(self, kind: RecordType, flow: int, *, ours: bool) -> None:
        number = self._numbers.get(flow)
        if kind is RecordType.FLOW_OPEN and ours is not self._is_agent:
            self._note(number is None or number.free, "a flow number was used again before both ends had closed it")
            self._numbers[flow] = _Number()
            return
        if number is None:
            self._note(False, f"{kind.name} of a flow that nobody has opened")
            return
        self._note(not (number.we_closed if ours else number.they_closed), f"{kind.name} behind a close of the same side")
        if kind is RecordType.FLOW_OPEN:
            self._note(not number.opened, "a flow was opened twice")
            number.opened = True
        elif kind is RecordType.DGRAM:
            self._note(number.opened or ours is not self._is_agent, "a datagram of the target before the agent has opened the flow")
        elif ours:
            number.we_closed = True
        else:
            number.they_closed = True


def watched(kind: type[AgentFlows] | type[ForwardFlows], note: Note) -> Callable[..., Any]:
    """Makes flows of that kind, beside which stand `Numbers`."""

    def make(dropped: Callable[[int, int], object]) -> AgentFlows | ForwardFlows:
        flows, numbers = kind(dropped), Numbers(note, is_agent=kind is AgentFlows)
        take, receive = flows.outbox.take, flows.receive

        def taking(*limit: int) -> list[tuple[RecordType, bytes]]:
            records = take(*limit)
            for record in records:
                numbers.leaves(*record)
            return records

        def receiving(kind: RecordType, body: bytes) -> object:
            event = receive(kind, body)
            numbers.believed(kind, body, event)
            return event

        flows.outbox.take = taking  # type: ignore[method-assign]
        flows.receive = receiving  # type: ignore[assignment, method-assign]
        return flows

    return make
