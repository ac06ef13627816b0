"""The forward side's UDP flows to one device: all of them over one tunnel, opened with the first and kept a while after the last.

Source: docs/spec/records.md section 6.
"""

import time
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup

from tuunel.address import HostPort
from tuunel.devices import Device
from tuunel.e2e.flows import FlowData, FlowEnded, FlowReady, ForwardFlows
from tuunel.e2e.wire import Command, RecordType
from tuunel.errors import Failure, Reason, Speaker
from tuunel.flowwriter import FlowWriter
from tuunel.pool import TunnelPool
from tuunel.pump import BROKEN
from tuunel.tunnel import Tunnel

SPARE: Final = 10.0  #: seconds that a tunnel without flows is kept: the next question to the same name server comes soon
RETRY: Final = (
    1.0  #: seconds after a tunnel was lost or not to be had in which no new one is tried: a client may send a thousand times in them
)
FAREWELL: Final = 2.0  #: seconds to wait for the agent's end of a tunnel that is not needed any more
_ANSWERS: Final = (RecordType.FIN, RecordType.FLOW_OPEN, RecordType.FLOW_CLOSE, RecordType.DGRAM)


class FlowUser(Protocol):
    """Whoever has a flow, and hears of it. No method may wait or raise."""

    def opened(self, tunnel: Tunnel) -> None:
        """The agent has a socket to the target."""

    def deliver(self, payload: bytes) -> None:
        """Take one datagram of the target."""

    def dropped(self, size: int) -> None:
        """A datagram of `size` bytes that `send` had taken was dropped before it left."""

    def ended(self, failure: Failure | None) -> None:
        """The flow is over, said once: why, or None when it was idle or closed from this side."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One UDP flow behind a device."""

    _carrier: "_Carrier"
    _number: int

    def send(self, payload: bytes) -> bool:
        """Send a datagram to the target with the next `DeviceFlows.flush`, without waiting. False: it is lost."""
        return self._carrier.send(self._number, payload)

    def close(self, reason: Reason) -> None:
        """End the flow, and tell the agent why; its user hears no more of it."""
        self._carrier.close(self._number, reason)


class DeviceFlows:
    """Opens flows behind `device`; its tunnels live in `tasks`."""

    def __init__(self, tunnels: TunnelPool, device: Device, tasks: TaskGroup) -> None:
        self._tunnels = tunnels
        self._device = device
        self._tasks = tasks
        self._carrier: _Carrier | None = None

    def open(self, target: HostPort, user: FlowUser) -> Flow:
        """Begin a flow to `target`, which the agent looks up and checks; datagrams may be sent at once, and `user` hears the rest.

        Raises Failure when no flow can begin: LIMIT, a host that no name can be, or why there was no tunnel just now.
        """
        if self._carrier is None or (self._carrier.over and self._carrier.may_be_replaced()):
            self._carrier = _Carrier()
            self._tasks.start_soon(self._carrier.run, self._tunnels, self._device)
        return self._carrier.open(target, user)

    def flush(self) -> None:
        """Let go what the flows were given to send."""
        if self._carrier is not None:
            self._carrier.flush()

    async def aclose(self) -> None:
        """End all flows behind what they have to send, and the tunnel cleanly if the agent is there; it takes FAREWELL at most."""
        if self._carrier is not None:
            await self._carrier.aclose()


class _Carrier:
    """One tunnel with its flows, from the first attempt to open it to its end."""

    def __init__(self) -> None:
        self.over = False
        self._core = ForwardFlows(self._drop)
        self._users: dict[int, FlowUser] = {}
        self._writer: FlowWriter | None = None
        self._leaving = anyio.Event()
        self._gone = anyio.Event()
        self._last_use = time.monotonic()
        self._failure: Failure | None = None

    def may_be_replaced(self) -> bool:
        """Whether a new carrier may follow this one, which is over."""
        return self._failure is None or time.monotonic() >= self._last_use + RETRY

    def open(self, target: HostPort, user: FlowUser) -> Flow:
        if self._failure is not None:
            raise self._failure
        number = self._core.open(target)
        self._users[number] = user
        self.flush()
        return Flow(self, number)

    def send(self, number: int, payload: bytes) -> bool:
        return not self.over and self._core.send(number, payload)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self, number: int, reason: Reason) -> None:
        if self._users.pop(number, None) is not None:
            self._last_use = time.monotonic()
            self._core.close(number, reason)
            self.flush()

    def _drop(self, number: int, size: int) -> None:
        if number in self._users:
            self._users[number].dropped(size)

    async def aclose(self) -> None:
        self._leaving.set()
        with anyio.move_on_after(FAREWELL, shield=True):
            await self._gone.wait()

    async def run(self, tunnels: TunnelPool, device: Device) -> None:
        """Open the tunnel and carry the flows. Raises nothing but cancellation."""
        try:
            tunnel, _ = await tunnels.connect(device, HostPort("", 0), command=Command.UDP)
            try:
                await self._carry(tunnel)
            finally:
                tunnel.reset()
        except Failure as failure:
            self._failure = failure
        except BROKEN as error:
            self._failure = Failure(Reason.TUNNEL_LOST, detail=str(error))
        finally:
            self.over = True
            self._last_use = time.monotonic()
            self._gone.set()
            self._core.outbox.forget_all()
            users, self._users = list(self._users.values()), {}
            for user in users:
                user.ended(self._failure)

    async def _carry(self, tunnel: Tunnel) -> None:
        lost: list[Exception] = []
        async with anyio.create_task_group() as tasks:
            writer = self._writer = FlowWriter(tunnel, self._core.outbox)
            tasks.start_soon(self._write, writer, tunnel)
            tasks.start_soon(self._leave_when_unused, writer, tunnel)
            try:
                await self._receive(tunnel)
            except BROKEN as error:  # raised below: a lone error, and not a group of one
                lost.append(error)
            tasks.cancel_scope.cancel()
        if lost:
            raise lost[0]
        self.over = True
        await tunnel.write_eof()
        await tunnel.aclose()

    async def _write(self, writer: FlowWriter, tunnel: Tunnel) -> None:
        try:
            await writer.run()
            await tunnel.write_eof()
        except BROKEN:
            pass  # the receiver meets the same end, and tells it

    async def _receive(self, tunnel: Tunnel) -> None:
        def step() -> bool | None:
            record = tunnel.take(*_ANSWERS)
            if record is None:
                return None
            if record[0] is RecordType.FIN:
                return True
            self._handle(*record, tunnel)
            return None

        await tunnel.on_records(step)

    def _handle(self, kind: RecordType, body: bytes, tunnel: Tunnel) -> None:
        event = self._core.receive(kind, body)
        match event:
            case FlowData(number, payload) if number in self._users:
                self._users[number].deliver(payload)
            case FlowReady(number, _) if number in self._users:
                self._users[number].opened(tunnel)
            case FlowEnded(number, reason, detail) if number in self._users:
                self._last_use = time.monotonic()
                self._users.pop(number).ended(None if reason is None else Failure(reason, Speaker.AGENT, detail))
        self.flush()  # the agent's FLOW_CLOSE is answered

    async def _leave_when_unused(self, writer: FlowWriter, tunnel: Tunnel) -> None:
        while not self._leaving.is_set() and (self._users or time.monotonic() < self._last_use + SPARE):
            with anyio.move_on_after(SPARE):
                await self._leaving.wait()
        self.over = True
        writer.end()
        await anyio.sleep(FAREWELL)
        tunnel.reset()
