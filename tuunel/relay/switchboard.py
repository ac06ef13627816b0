"""What every part of the relay's server shares: the books, and the few acts that change them and reach into connections.

Nothing here waits for a device: messages are posted, connections are cut. Source: docs/spec/relay.md.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import DeviceSeen, Emit
from tuunel.events import Notice as Sentence
from tuunel.identity import DeviceID
from tuunel.ledger import Entry, Ledger
from tuunel.relay.connection import ControlConnection, DeviceConnection, DialConnection, ReadyConnection
from tuunel.relay.limiter import Charge, Limiter
from tuunel.relay.limits import Allowances
from tuunel.relay.registry import Registry
from tuunel.relay.store import Store, StoredDevice
from tuunel.relay.wire import Demand, Notice


@dataclass(frozen=True, slots=True, eq=False)
class Pipe:
    """Two connections that the relay has joined."""

    tunnel: str
    forward: DialConnection
    agent: ReadyConnection
    entry: Entry
    charge: Charge


class Switchboard:
    """The relay's state while it runs."""

    def __init__(
        self,
        store: Store,
        emit: Emit,
        *,
        clock: Callable[[], float],
        capacity: int = sys.maxsize,
        allowances: Allowances = Allowances(),  # noqa: B008 - frozen
    ) -> None:
        self.registry: Registry[DeviceConnection] = Registry(clock, capacity=capacity)
        self.store = store
        self.emit = emit
        self.closing = False  #: no new tunnel, no new presence
        self.pipes: set[Pipe] = set()
        self.ledger = Ledger(emit)
        self.limiter = Limiter(clock, allowances, lambda text: emit(Sentence(text)))

    async def find_device(self, device: DeviceID) -> StoredDevice:
        """Look up a device that may be here. Raises DEVICE_UNKNOWN or DEVICE_BANNED."""
        stored = await self.store.device(device)
        if stored is None:
            raise Failure(Reason.DEVICE_UNKNOWN, Speaker.RELAY)
        if stored.banned:
            raise Failure(Reason.DEVICE_BANNED, Speaker.RELAY)
        return stored

    def leave(self, connection: DeviceConnection) -> None:
        """Forget a connection, and end what ends with it."""
        present = self.registry.present(connection.device)
        departure = self.registry.leave(connection)
        gone = Failure(Reason.PEER_UNAVAILABLE, Speaker.RELAY)
        for ready in departure.ready:
            ready.cut(gone)
        for opener in departure.waiting:
            if isinstance(opener, DialConnection):
                opener.answer(gone)
        if present and not self.registry.present(connection.device):
            self.emit(DeviceSeen(str(connection.device), "offline"))

    def cut_device(self, device: DeviceID, reason: Reason) -> int:
        """End everything that a device has open, because of `reason`; returns how many connections that were."""
        connections = self.registry.cut(device)
        for connection in connections:
            if isinstance(connection, ControlConnection):
                self.leave(connection)
                connection.dismiss(Failure(reason, Speaker.RELAY))
            else:
                connection.cut(Failure(reason, Speaker.RELAY))
        return len(connections)

    def shut_down(self) -> None:
        """Tell every device, and end everything but the pipes."""
        self.closing = True
        piped = {connection for pipe in self.pipes for connection in (pipe.forward, pipe.agent)}
        failure = Failure(Reason.SHUTDOWN, Speaker.RELAY, retry_after=1)
        for connection in self.registry.connections():
            if isinstance(connection, ControlConnection):
                connection.dismiss(failure)
            elif isinstance(connection, DialConnection) and self.registry.waits(connection):
                self.registry.withdraw(connection)
                connection.answer(failure)
            elif connection not in piped:
                connection.cut(failure)

    def tell_demand(self, target: DeviceID) -> None:
        """Tell an agent how many connections to keep ready, if that is news."""
        demand = self.registry.demand(target)
        if demand is not None:
            control, want = demand
            if isinstance(control, ControlConnection):
                control.post(Demand(want))

    def new_pipe(self, tunnel: str, forward: DialConnection, agent: ReadyConnection, charge: Charge) -> Pipe:
        """Enter a pipe into the books."""
        entry = self.ledger.open(str(agent.device), device=str(forward.device), door="relay", path="relay")
        pipe = Pipe(tunnel, forward, agent, entry, charge)
        self.pipes.add(pipe)
        entry.connected(tunnel)
        entry.cut_by(partial(self._cut_pipe, pipe))
        return pipe

    @staticmethod
    def _cut_pipe(pipe: Pipe) -> None:
        """End a pipe because a person wants it: both ends are told so."""
        for connection in (pipe.forward, pipe.agent):
            connection.cut(Failure(Reason.KILLED, Speaker.RELAY))

    def end_pipe(self, pipe: Pipe, end: str) -> None:
        """Strike a pipe out, and where the relay itself ended it, tell both ends why on their control connections.

        The partner of a device that was cut off learns only that it is gone.
        """
        self.pipes.discard(pipe)
        failure = pipe.forward.cut_for or pipe.agent.cut_for
        if failure is not None:
            end = failure.reason.value
            for connection in (pipe.forward, pipe.agent):
                self._tell_end(connection, pipe.tunnel)
        pipe.entry.end(end, failure.detail if failure else "")

    def _tell_end(self, connection: DeviceConnection, tunnel: str) -> None:
        control = self.registry.control_of(connection.device, connection.instance)
        if isinstance(control, ControlConnection):
            failure = connection.cut_for or Failure(Reason.PEER_UNAVAILABLE, Speaker.RELAY)
            control.post(Notice(failure.reason, tunnel, failure.detail))
