"""The relay's matchmaking: who is here, which connections wait, who may open a tunnel to whom, and what an agent should keep ready.

Pure bookkeeping over opaque connection handles (`C`: anything hashable); the clock is injected and nothing here waits or
writes. Refusals are raised as `Failure` with `Speaker.RELAY` and change nothing. Source: docs/spec/relay.md.
"""

import sys
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from tuunel.errors import Failure, Reason, Speaker
from tuunel.identity import DeviceID
from tuunel.relay.gate import TokenBuckets
from tuunel.relay.waiting import WaitingOpens
from tuunel.relay.wire import Admission, Role

C = TypeVar("C", bound=Hashable)

#: Connections of all kinds, pipes included, that one device may hold: room for a thousand tunnels with their spares.
MAX_CONNECTIONS: Final = 4096
#: Control connections of one device: any number of forward instances may live side by side, within reason.
MAX_CONTROLS: Final = 64
#: What an agent may be asked to keep ready, and what it may park (its refills may cross a demand that shrank).
MAX_DEMAND: Final = 64
MAX_PARKED: Final = 2 * MAX_DEMAND
MIN_DEMAND: Final = 2
#: Entries of one agent's admission list; each costs about 100 bytes of memory.
MAX_ADMISSION: Final = 8192
#: Connections, and requests on CONTROL, of one device, per second and at once. What it opens is counted by `limiter`.
REQUEST_RATE: Final = 256.0
REQUEST_BURST: Final = 4096
#: A revoked device may open this seldom, so that the agent itself can tell it why.
REVOKED_INTERVAL: Final = 60.0
#: Seconds after which a device that met a full relay may try again.
FULL_RETRY: Final = 5
#: After this long without an open, demand starts again from `MIN_DEMAND`.
IDLE_AFTER: Final = 600.0
#: An agent whose pool is empty is reminded of the same demand at most this often.
REMIND_AFTER: Final = 1.0


@dataclass(frozen=True, slots=True)
class Departure(Generic[C]):
    """What ends with a control connection: the ready connections of its instance, and the opens that waited for them."""

    ready: tuple[C, ...] = ()
    waiting: tuple[C, ...] = ()


@dataclass(slots=True)
class _Admissions:
    enrolled: bool = False
    paired: set[DeviceID] = field(default_factory=set)
    invites: set[bytes] = field(default_factory=set)
    revoked: dict[DeviceID, float | None] = field(default_factory=dict)  # when it last came through

    def size(self) -> int:
        return len(self.paired) + len(self.invites) + len(self.revoked)


@dataclass(slots=True)
class _Agent(Generic[C]):
    control: C
    instance: bytes
    admissions: _Admissions = field(default_factory=_Admissions)
    arriving: _Admissions | None = None  # a list of which records are still to come
    parked: deque[C] = field(default_factory=deque)
    waiting: WaitingOpens[C] = field(default_factory=WaitingOpens)
    demand: int = MIN_DEMAND
    told: tuple[int, float] = (MIN_DEMAND, 0.0)  # the demand last told, and when
    last_open: float = 0.0


class Registry(Generic[C]):
    """Every proven connection of every device, by handle.

    A handle joins once, may then become a control connection, a parked ready connection or a waiting open, and leaves once.
    """

    #: Grows with every `cut`: who waited between looking a device up and `join` compares it, and looks again when it differs.
    cuts: int

    def __init__(self, clock: Callable[[], float], *, capacity: int = sys.maxsize) -> None:
        self.cuts = 0
        self.capacity = capacity  #: connections that all devices together may hold
        self._clock = clock
        self._requests = TokenBuckets(clock, rate=REQUEST_RATE, burst=REQUEST_BURST)
        self._connections: dict[DeviceID, set[C]] = {}
        self._device_of: dict[C, DeviceID] = {}
        self._controls: dict[tuple[DeviceID, bytes], C] = {}
        self._instance_of: dict[C, bytes] = {}
        self._present: Counter[DeviceID] = Counter()  # control connections of each device
        self._agents: dict[DeviceID, _Agent[C]] = {}
        self._waits_for: dict[C, DeviceID] = {}

    def charge(self, device: DeviceID) -> None:
        """Count one thing that a device asks of the relay. Raises RATE_LIMITED."""
        if not self._requests.take(device):
            raise Failure(Reason.RATE_LIMITED, Speaker.RELAY, retry_after=1)

    # -- connections ----------------------------------------------------------------------------------------------

    def join(self, connection: C, device: DeviceID) -> None:
        """Count a proven connection of `device`. Raises RATE_LIMITED or QUOTA."""
        self.charge(device)
        if len(self._device_of) >= self.capacity:
            raise Failure(Reason.QUOTA, Speaker.RELAY, "the relay is full", retry_after=FULL_RETRY)
        held = self._connections.setdefault(device, set())
        if len(held) >= MAX_CONNECTIONS:
            raise Failure(Reason.QUOTA, Speaker.RELAY, "too many connections of this device")
        held.add(connection)
        self._device_of[connection] = device

    def leave(self, connection: C) -> Departure[C]:
        """Forget a connection, whatever it was; returns what ends with it. Unknown handles are ignored."""
        device = self._device_of.pop(connection, None)
        if device is None:
            return Departure()
        self.withdraw(connection)
        self.unpark(connection, device)
        departure = self._remove_control(connection, device)
        held = self._connections[device]
        held.discard(connection)
        if not held:
            del self._connections[device]
        return departure

    def cut(self, device: DeviceID) -> list[C]:
        """Return every connection of `device`, which the caller must now close: it is banned or no longer enrolled."""
        self.cuts += 1
        return list(self._connections.get(device, ()))

    def connections(self) -> list[C]:
        """Every connection that has joined."""
        return list(self._device_of)

    def __len__(self) -> int:
        return len(self._device_of)

    # -- presence -------------------------------------------------------------------------------------------------

    def rival_of(self, device: DeviceID, instance: bytes) -> C | None:
        """Return the control connection of another agent instance of the same device: ask whether it lives before adding a second."""
        agent = self._agents.get(device)
        return agent.control if agent is not None and agent.instance != instance else None

    def predecessor_of(self, device: DeviceID, instance: bytes) -> C | None:
        """Return the control connection that this very instance still holds: it has been lost, close it before adding the new one."""
        return self._controls.get((device, instance))

    def add_control(self, connection: C, role: Role, instance: bytes) -> None:
        """Make a joined connection the control connection of its instance.

        An agent's must have neither rival nor predecessor left. Raises DUPLICATE_DEVICE or QUOTA.
        """
        device = self._device_of[connection]
        if role is Role.AGENT and device in self._agents:
            raise Failure(Reason.DUPLICATE_DEVICE, Speaker.RELAY)
        if (device, instance) in self._controls:
            raise Failure(Reason.DUPLICATE_DEVICE, Speaker.RELAY)
        if self._present[device] >= MAX_CONTROLS:
            raise Failure(Reason.QUOTA, Speaker.RELAY, "too many control connections of this device")
        self._controls[device, instance] = connection
        self._instance_of[connection] = instance
        self._present[device] += 1
        if role is Role.AGENT:
            self._agents[device] = _Agent(connection, instance)

    def control_of(self, device: DeviceID, instance: bytes) -> C | None:
        """Return the control connection of an instance, None when it holds none (one-shot commands never do)."""
        return self._controls.get((device, instance))

    def controls(self) -> list[C]:
        """Every control connection."""
        return list(self._instance_of)

    def online(self, device: DeviceID) -> bool:
        """Whether the device holds any connection."""
        return device in self._connections

    def present(self, device: DeviceID) -> bool:
        """Whether the device holds a control connection: something of it runs there."""
        return device in self._present

    def agent_online(self, device: DeviceID) -> bool:
        """Whether an agent of the device is here."""
        return device in self._agents

    def _remove_control(self, connection: C, device: DeviceID) -> Departure[C]:
        instance = self._instance_of.pop(connection, None)
        if instance is None:
            return Departure()
        del self._controls[device, instance]
        self._present[device] -= 1
        if not self._present[device]:
            del self._present[device]
        agent = self._agents.get(device)
        if agent is None or agent.control != connection:
            return Departure()
        del self._agents[device]
        for opener in agent.waiting:
            del self._waits_for[opener]
        return Departure(tuple(agent.parked), tuple(agent.waiting))

    # -- admission ------------------------------------------------------------------------------------------------

    def set_admission(self, control: C, record: Admission) -> None:
        """Take one record of an agent's admission list; the list replaces the old one when its last record is here.

        Raises PROTOCOL when no agent holds this control connection or the list has no first record, QUOTA when it is too long.
        """
        device = self._device_of.get(control)
        agent = None if device is None else self._agents.get(device)
        if agent is None or agent.control != control:
            raise Failure(Reason.PROTOCOL, Speaker.RELAY, "only an agent has an admission list")
        if record.first:
            agent.arriving = _Admissions(record.enrolled)
        arriving = agent.arriving
        if arriving is None:
            raise Failure(Reason.PROTOCOL, Speaker.RELAY, "an admission list without its first record")
        arriving.paired.update(record.paired)
        arriving.invites.update(record.invites)
        # a list sent anew must not let a revoked device through more often
        arriving.revoked.update((device, agent.admissions.revoked.get(device)) for device in record.revoked)
        if arriving.size() > MAX_ADMISSION:
            agent.arriving = None
            raise Failure(Reason.QUOTA, Speaker.RELAY, "the admission list is too long")
        if record.last:
            agent.admissions, agent.arriving = arriving, None

    def admit(self, source: DeviceID, target: DeviceID, invite_id: bytes | None) -> None:
        """Ask whether `source` may open a tunnel to `target`; raises PEER_UNAVAILABLE.

        Offline, unknown and not admitting are one and the same answer: a stranger learns nothing about presence.
        """
        agent = self._agents.get(target)
        if agent is None or not self._admitted(agent.admissions, source, invite_id):
            raise Failure(Reason.PEER_UNAVAILABLE, Speaker.RELAY)

    def _admitted(self, admissions: _Admissions, source: DeviceID, invite_id: bytes | None) -> bool:
        if source in admissions.paired or (invite_id is not None and invite_id in admissions.invites):
            return True
        if source in admissions.revoked:
            last = admissions.revoked[source]
            now = self._clock()
            if last is not None and now - last < REVOKED_INTERVAL:
                return False
            admissions.revoked[source] = now
            return True
        return admissions.enrolled

    def census(self) -> dict[str, int]:
        """How many devices and agents are online, ready connections wait, and opens wait for one."""
        agents = self._agents.values()
        return {
            "relay_devices_online": len(self._present),
            "relay_agents_online": len(self._agents),
            "relay_ready_parked": sum(len(agent.parked) for agent in agents),
            "relay_opens_waiting": len(self._waits_for),
        }

    # -- ready connections and opens ------------------------------------------------------------------------------

    def park(self, ready: C, instance: bytes) -> C | None:
        """Add a joined ready connection to its agent's pool; returns the waiting open that takes it at once, if one waits: in turns.

        Raises PROTOCOL when this instance's agent holds no control connection, QUOTA when the pool is full.
        """
        agent = self._agents.get(self._device_of[ready])
        if agent is None or agent.instance != instance:
            raise Failure(Reason.PROTOCOL, Speaker.RELAY, "no control connection of this agent instance")
        if agent.waiting:
            opener = agent.waiting.next()
            del self._waits_for[opener]
            return opener
        if len(agent.parked) >= MAX_PARKED:
            raise Failure(Reason.QUOTA, Speaker.RELAY, "too many ready connections")
        agent.parked.append(ready)
        return None

    def unpark(self, ready: C, device: DeviceID) -> None:
        """Take a ready connection out of the pool, if it is there: it was lost."""
        agent = self._agents.get(device)
        if agent is not None and ready in agent.parked:
            agent.parked.remove(ready)

    def take(self, opener: C, target: DeviceID) -> C | None:
        """Give an admitted open a ready connection, the one that waited longest; None: the opener now waits for the next `park`.

        Raises PEER_UNAVAILABLE when the agent has left, QUOTA when too many wait, or too many of one device.
        """
        agent = self._agents.get(target)
        if agent is None:
            raise Failure(Reason.PEER_UNAVAILABLE, Speaker.RELAY)
        now = self._clock()
        if now - agent.last_open > IDLE_AFTER:
            agent.demand = MIN_DEMAND
        agent.last_open = now
        ready = agent.parked.popleft() if agent.parked else None
        if ready is None:
            if not agent.waiting.add(opener, self._device_of.get(opener)):
                raise Failure(Reason.QUOTA, Speaker.RELAY, "too many opens wait for that device")
            self._waits_for[opener] = target
        if not agent.parked:
            agent.demand = min(MAX_DEMAND, max(agent.demand, len(agent.waiting)) + MIN_DEMAND)
        return ready

    def withdraw(self, opener: C) -> None:
        """Stop waiting, if this opener waits: it gave up or was lost."""
        target = self._waits_for.pop(opener, None)
        if target is not None:
            self._agents[target].waiting.remove(opener)

    def waits(self, opener: C) -> bool:
        """Whether this opener waits for a ready connection."""
        return opener in self._waits_for

    def demand(self, target: DeviceID) -> tuple[C, int] | None:
        """Return what must be told to an agent now: its control connection and how many ready connections to keep, or None."""
        agent = self._agents.get(target)
        if agent is None:
            return None
        told, when = agent.told
        now = self._clock()
        if agent.demand == told and not (agent.waiting and now - when >= REMIND_AFTER):
            return None
        agent.told = (agent.demand, now)
        return agent.control, agent.demand
