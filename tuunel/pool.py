"""The forward side's tunnels: opened on demand, with standbys kept ready for devices in use.

Source: docs/spec/tunnel.md (opening a tunnel, standby).
"""

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self
from weakref import WeakKeyDictionary

import anyio
from anyio.abc import TaskGroup

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.companions import Companions, companions
from tuunel.devices import Device, KnownRelay
from tuunel.e2e.handshake import Initiator
from tuunel.e2e.wire import Command, Target
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.establish import initiate
from tuunel.events import Alarm, Emit
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import Invite
from tuunel.liveness import watch_tunnels
from tuunel.rawstream import RawStream, send_bytes
from tuunel.recordstream import RecordStream
from tuunel.refill import Refill
from tuunel.relay.client import HopConnection, device_label, fresh_key
from tuunel.relay.dialpool import DialPool
from tuunel.relay.wire import HopError, Open, PairedForward, Params, Role
from tuunel.shelf import Shelf
from tuunel.tunnel import Tunnel

ATTEMPTS: Final = 3  #: tunnels tried for one request, while nothing of the app has been sent
STANDBY: Final = 2  #: tunnels kept ready for a device in use
LARGEST_STANDBY: Final = 64  #: tunnels made ready for a device, at most: a browser's burst; an agent allows many more
MOST_KEPT: Final = 128  #: tunnels of a device that wait, at most: fifty connections that come and go use nearly twice as many
SHORT_USE: Final = 1.0  #: seconds in which most connections are over, and a tunnel in use is taken for one that will be back
#: Seconds that a tunnel waits before it is read, and a last FIN is sent by itself: whoever takes it looks whether it is broken, and reads.
UNATTENDED: Final = 0.05
STANDBY_LIFETIME: Final = 60.0  #: seconds after a device's last use until its standbys are dropped
SPARE_LIFETIME: Final = 600.0  #: seconds until a tunnel that nobody needed is dropped, though the device is in use
FRESH: Final = 3.0  #: seconds after a sign of life of a standby in which it is trusted with app bytes: they cannot be taken back
PAIRING_PATIENCE: Final = 10.0  #: seconds to wait for the answer to an invite: an agent writes to its disk, and waits for its relay
LEAST_PATIENCE: Final = 3.0  #: seconds to wait for a tunnel's first sign of life, at least; four round trips where those are longer

#: What another relay of the same device may do better.
RELAY_REASONS: Final = frozenset({
    Reason.RELAY_UNREACHABLE, Reason.RELAY_UNTRUSTED, Reason.PEER_UNAVAILABLE, Reason.OPEN_TIMEOUT, Reason.DEVICE_UNKNOWN,
    Reason.DEVICE_BANNED, Reason.QUOTA, Reason.RATE_LIMITED, Reason.SHUTDOWN, Reason.VERSION,
})  # fmt: skip

#: Signs of an attack, told as an Alarm wherever they come up: also while tunnels are made ready that nobody waits for.
_ALARMS: Final = frozenset({Reason.PEER_MISMATCH, Reason.RELAY_UNTRUSTED})


def _ignore(event: object) -> None:
    """For commands, which tell of their one failure themselves."""


class _Standbys:
    """The standbys of one device; `make` makes one and puts it there."""

    def __init__(self, device: Device, tasks: TaskGroup, carers: Companions, make: Callable[[Self], Awaitable[None]]) -> None:
        self.device = device
        self.waiting = Shelf(carers, Tunnel.rest, Tunnel.reset, unattended=UNATTENDED)
        self.wanted = STANDBY
        self.used = time.monotonic()
        self.refill = Refill(tasks, self._lacking, lambda: make(self))
        self._lent: dict[RecordStream, float] = {}  # since when, the longest first; they may have ended in other ways

    def lend(self, tunnel: Tunnel) -> None:
        """`tunnel` is used from now on."""
        self.used = time.monotonic()
        self._lent[tunnel.records] = self.used

    def take_back(self, tunnel: Tunnel) -> None:
        """`tunnel` waits, for the first time or again."""
        self._lent.pop(tunnel.records, None)
        self.waiting.put(tunnel)

    def refill_if_scarce(self) -> None:
        """Begin to make more where half are lacking, or none waits: those that are used for long come back some time, too."""
        if not self.waiting or self._lacking() > self.wanted / 2:
            self.refill.begin()

    def _lacking(self) -> int:
        self._forget_long_uses()
        return max(self.wanted - len(self.waiting) - len(self._lent), STANDBY - len(self.waiting))

    def _forget_long_uses(self) -> None:
        """What is left in `_lent` will soon be back, most of it."""
        young = time.monotonic() - SHORT_USE
        while self._lent and next(iter(self._lent.values())) < young:
            del self._lent[next(iter(self._lent))]

    def age(self, now: float) -> None:
        """Drop what was not needed, and what is not likely to be."""
        self._forget_long_uses()
        if now - self.used > STANDBY_LIFETIME:
            self.wanted = STANDBY
            self.waiting.clear()
        elif self.waiting.thin(now - SPARE_LIFETIME, STANDBY):
            self.wanted = min(self.wanted, max(len(self.waiting) + len(self._lent), STANDBY))


class TunnelPool:
    """Opens tunnels from this machine to devices. An async context manager: leaving it cuts every tunnel and connection.

    `warm` is how many DIAL connections wait at each relay in use; with 0 (one-shot commands) nothing is kept ready at all.
    """

    def __init__(self, identity: IdentityKey, buffers: BufferPool, *, warm: int, emit: Emit = _ignore) -> None:
        self._emit = emit
        self._identity = identity
        self._buffers = buffers
        self._warm = warm
        self._params = Params(Role.FORWARD, os.urandom(16))
        self._dials: dict[bytes, DialPool] = {}
        self._standbys: dict[DeviceID, _Standbys] = {}
        self._rtt: dict[DeviceID, float] = {}
        self._live: set[RecordStream] = set()
        self._leads_to: WeakKeyDictionary[RecordStream, Device] = WeakKeyDictionary()
        self._away: set[bytes] = set()  # relays at which this machine is not present at the moment, though it ought to be
        self._over = False

    @property
    def params(self) -> Params:
        """What this process's connections to relays say of themselves."""
        return self._params

    async def __aenter__(self) -> Self:
        """Begin."""
        self._carers = await companions().__aenter__()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(watch_tunnels, self._live, self._tasks)
        self._tasks.start_soon(self._age_standbys)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Cut everything."""
        self._over = True
        self._tasks.cancel_scope.cancel()
        for tunnel in list(self._live):
            tunnel.reset()
        try:
            await self._tasks.__aexit__(None, None, None)  # so that what the body raised comes out alone, and not in a group
        finally:
            for dials in self._dials.values():  # only now: until then a refill that was just done may put another one there
                dials.drop()
            for standbys in self._standbys.values():
                standbys.waiting.clear()
            await self._carers.__aexit__(None, None, None)

    def census(self) -> dict[str, int]:
        """How many tunnels live, how many of them wait for a use, and how many connections wait at relays."""
        return {
            "proxy_tunnels": len(self._live),
            "proxy_standby_tunnels": sum(len(standbys.waiting) for standbys in self._standbys.values()),
            "proxy_dial_connections": sum(len(dials) for dials in self._dials.values()),
        }

    def reached(self) -> Counter[Device]:
        """The devices that have proved to be there, and how many tunnels lead to each, those that wait for use included."""
        return Counter(self._leads_to[tunnel] for tunnel in self._live if not tunnel.closed)

    def dial_pool(self, relay: KnownRelay) -> DialPool:
        """The connections that wait at `relay`; made at the first call, filled by use or `fill`."""
        if relay.id not in self._dials:
            self._dials[relay.id] = DialPool(relay, self._identity, self._params, self._tasks, self._carers, smallest=self._warm)
        return self._dials[relay.id]

    async def connect(
        self, device: Device, target: HostPort, early: EarlyBytes | None = None, command: Command = Command.TCP
    ) -> tuple[Tunnel, HostPort]:
        """A tunnel to `device` whose agent has connected `target`, and the address that the agent's socket there is bound to.

        With the command UDP no target is asked for yet: the tunnel carries flows, each with its own.

        `early` may travel with the request: it does so on a new tunnel, and on one whose agent was heard less than FRESH seconds ago. An
        attempt that carried any is not repeated. Its first bytes have been handed over when this returns, on any tunnel. The caller owns
        the tunnel and closes it. Raises Failure.
        """
        request = Target(command, target.host, target.port)
        request.encode()  # a host that no name can be costs no tunnel
        early = early or EarlyBytes()
        for attempt in range(1, ATTEMPTS + 1):
            standby = await self._take_standby(device.id)
            fresh = standby is None or time.monotonic() - standby.records.heard < FRESH
            try:
                tunnel, bound = await self._try(standby, device, request, early if fresh else EarlyBytes())
            except Failure as failure:
                if standby is not None and failure.reason is Reason.TUNNEL_LOST:
                    self._standbys[device.id].waiting.clear()  # they share its fate, and its way to the agent
                if failure.reason is not Reason.TUNNEL_LOST or early.taken or attempt == ATTEMPTS:
                    raise
            else:
                if not fresh:
                    with _owned_until_it_fails(tunnel):
                        await send_bytes(tunnel, self._buffers, early.take())
                if self._warm:
                    self._note_use(device, tunnel)
                    tunnel.keep = partial(self._keep, device)
                    tunnel.wanted = partial(self._has_room, device)
                    tunnel.may_end_late = True
                return tunnel, bound
        raise AssertionError  # the loop returns or raises

    async def _try(self, standby: Tunnel | None, device: Device, request: Target, early: EarlyBytes) -> tuple[Tunnel, HostPort]:
        tunnel = standby or await self._open(device, request, early)
        with _owned_until_it_fails(tunnel):
            if standby is not None and (rest := standby.request_now(request, early.take())):
                with anyio.fail_after(self._patience(device.id, early)):  # a tunnel that takes no more must not be waited for
                    await rest()
            return tunnel, await tunnel.answer(self._patience(device.id, early))

    async def prove(self, device: Device, invite: Invite) -> str:
        """Use up `invite` at the agent: it grants this machine access. Returns what the agent's machine calls itself. Raises Failure."""
        tunnel = await self._open_by(device, device.relays[0], None, EarlyBytes(), invite)
        tunnel.reset()
        return tunnel.peer_label

    async def open(self, device: Device) -> Tunnel:
        """A tunnel to `device` that waits for its `request`: both ends have proven themselves, and no target was asked for.

        The caller owns it and cuts or closes it. Raises Failure.
        """
        return await self._open(device, None, EarlyBytes())

    async def _open(self, device: Device, request: Target | None, early: EarlyBytes) -> Tunnel:
        with self._standbys_of(device).refill.rush():
            return await self._open_somewhere(device, request, early)

    async def _open_somewhere(self, device: Device, request: Target | None, early: EarlyBytes) -> Tunnel:
        for relay in device.relays:
            try:
                return await self._open_by(device, relay, request, early)
            except Failure as failure:
                if failure.reason in _ALARMS:
                    self._emit(Alarm(f"{device.name}: {failure}"))
                if failure.reason not in RELAY_REASONS or early.taken or relay is device.relays[-1]:
                    raise
        raise Failure(Reason.NOT_PAIRED)

    async def _open_by(
        self, device: Device, relay: KnownRelay, request: Target | None, early: EarlyBytes, invite: Invite | None = None
    ) -> Tunnel:
        initiator = self._initiator(device, relay, invite)
        dials = self.dial_pool(relay)
        connection, answer = await dials.open(Open(initiator.open_message()))
        if isinstance(answer, HopError):
            dials.give_back(connection)
            raise Failure(answer.reason, Speaker.RELAY, answer.detail, retry_after=answer.retry_after)
        try:
            stream = _pipe(connection, answer, initiator)
        except BaseException:
            connection.stream.reset()
            raise
        words = early.take()
        patience = self._patience(device.id, early) if invite is None else PAIRING_PATIENCE
        tunnel = await initiate(stream, initiator, self._buffers, target=request, early=words, answer_within=patience)
        self._live.add(tunnel.records)
        self._leads_to[tunnel.records] = device
        if tunnel.rtt is not None:
            self._rtt[device.id] = tunnel.rtt
        return tunnel

    def _initiator(self, device: Device, relay: KnownRelay, invite: Invite | None = None) -> Initiator:
        return Initiator(
            self._identity,
            device.id,
            relay.id,
            int(time.time()),
            ephemeral=fresh_key(),
            buffers=self._buffers,
            invite=invite,
            label=device_label(),
        )

    def _patience(self, device: DeviceID, early: EarlyBytes) -> float:
        """Seconds for a sign of life: an attempt that is the only one, because it carried early bytes, has the time of all."""
        patience = max(LEAST_PATIENCE, 4 * self._rtt.get(device, 0.0))
        return patience * ATTEMPTS if early.taken else patience

    # standbys

    def note_presence(self, relay: KnownRelay, *, online: bool) -> None:
        """Say whether this machine is present at `relay`. While it is not, no standby is kept: those that waited are cut.

        They would be found out by a wait, and a relay that stops would wait for them.
        """
        if online:
            self._away.discard(relay.id)
            return
        self._away.add(relay.id)
        for standbys in self._standbys.values():
            if relay.id in {each.id for each in standbys.device.relays}:
                standbys.waiting.clear()

    def _note_use(self, device: Device, tunnel: Tunnel) -> None:
        standbys = self._standbys_of(device)
        standbys.device = device
        standbys.lend(tunnel)
        standbys.refill_if_scarce()

    def _standbys_of(self, device: Device) -> _Standbys:
        if device.id not in self._standbys:
            self._standbys[device.id] = _Standbys(device, self._tasks, self._carers, self._make_standby)
        return self._standbys[device.id]

    def _has_room(self, device: Device) -> bool:
        here = not self._over and not any(relay.id in self._away for relay in device.relays)
        return here and len(self._standbys[device.id].waiting) < MOST_KEPT

    def _keep(self, device: Device, tunnel: Tunnel) -> None:
        """Take a new tunnel, or back one whose connection has ended cleanly at both ends: the next connection needs no handshake."""
        if self._has_room(device):
            self._standbys[device.id].take_back(tunnel)
        else:
            tunnel.reset()

    async def _take_standby(self, device: DeviceID) -> Tunnel | None:
        standbys = self._standbys.get(device)
        if standbys is None:
            return None
        while (tunnel := await standbys.waiting.take()) is not None:
            if not tunnel.broken():
                return tunnel
            tunnel.reset()
        standbys.wanted = min(standbys.wanted + STANDBY, LARGEST_STANDBY)  # so that twice as many wait as were missing
        return None

    async def _make_standby(self, standbys: _Standbys) -> None:
        try:
            self._keep(standbys.device, await self._open_somewhere(standbys.device, None, EarlyBytes()))
        except Failure:
            standbys.wanted = STANDBY
            raise

    async def _age_standbys(self) -> None:
        while True:
            await anyio.sleep(STANDBY_LIFETIME / 10)
            for standbys in self._standbys.values():
                standbys.age(time.monotonic())


@contextmanager
def _owned_until_it_fails(tunnel: Tunnel) -> Iterator[None]:
    try:
        yield
    except (OSError, anyio.ClosedResourceError) as error:
        tunnel.reset()
        raise Failure(Reason.TUNNEL_LOST, detail=str(error)) from error
    except BaseException:
        tunnel.reset()
        raise


def _pipe(connection: HopConnection, answer: PairedForward, initiator: Initiator) -> RawStream:
    stream, surplus = connection.into_pipe()
    if surplus:
        raise Failure(Reason.PROTOCOL, detail="the agent spoke before it was spoken to")
    try:
        initiator.receive_offer(answer.offer)
    except RemoteProtocolError as error:
        raise Failure(Reason.TUNNEL_LOST, detail=f"the agent's offer is worthless ({error})") from error
    return stream
