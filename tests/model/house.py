"""A relay, an agent and two forward proxies, all of them real, on wires and a clock that stand still until they are told."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from tests.model.clock import Clock, SteppedLoop
from tests.model.datagrams import TargetSocket, watched
from tests.model.wires import Wire, WireStream
from tests.model.witness import Witness
from tests.relay.hops import CREDENTIALS
from tuunel import control, deviceflows, dial, reverseflows
from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.buffers import BufferPool
from tuunel.devices import Device, KnownRelay
from tuunel.e2e.flows import AgentFlows, ForwardFlows
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Alarm, Event
from tuunel.grants import Grant, Grants
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import RelayLink
from tuunel.networkwatch import NetworkWatch
from tuunel.policy import Address
from tuunel.pool import TunnelPool
from tuunel.relay import presence, readypool
from tuunel.relay import tunnels as relay_tunnels
from tuunel.relay.attendance import Attendance
from tuunel.relay.reception import Reception
from tuunel.relay.server import RelayServer
from tuunel.relay.splice import PipePool
from tuunel.relay.store import StoredDevice
from tuunel.relay.switchboard import Pipe, Switchboard
from tuunel.relay.tunnels import Tunnels
from tuunel.settings import Home

RELAY = HostPort("198.51.100.7", 7443)
FORWARDS = {"one": IdentityKey.from_private_value(0x0E), "two": IdentityKey.from_private_value(0x20)}

PARTY: ContextVar[str] = ContextVar("party")


class Party:
    """A process: a root task, whose end is the process's."""

    def __init__(self, name: str, loop: SteppedLoop, run: Callable[[TaskGroup], Awaitable[None]]) -> None:
        self.name = name
        self.tasks: TaskGroup
        self._loop = loop
        self._run = run
        self._task = loop.create_task(self._live())

    @property
    def alive(self) -> bool:
        return not self._task.done()

    async def _live(self) -> None:
        PARTY.set(self.name)
        async with anyio.create_task_group() as self.tasks:
            await self._run(self.tasks)

    def start(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Begin something in this process."""

        async def begin() -> None:
            PARTY.set(self.name)
            self.tasks.start_soon(work, *arguments)

        self._loop.run_until_complete(begin())

    def kill(self) -> None:
        self._task.cancel()
        self._loop.settle()
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error


class MemoryStore:
    """The relay's registry, without its file. The forward proxies were enrolled by the operator, and so nobody un-enrols them."""

    def __init__(self) -> None:
        self.devices = {key.device_id: _stored(key.public_bytes) for key in FORWARDS.values()}

    async def device(self, device: DeviceID) -> StoredDevice | None:
        return self.devices.get(device)

    async def register(self, public_key: bytes, *_: object, **__: object) -> tuple[StoredDevice, bool]:
        stored = _stored(public_key)
        self.devices[stored.id] = stored
        return stored, False

    async def seen(self, device: DeviceID) -> None:
        pass

    async def mint(self, *_: object, **__: object) -> None:
        pass

    async def drop_token(self, *_: object) -> None:
        pass

    async def unenrol(self, *_: object) -> bool:
        return False


def _stored(public_key: bytes) -> StoredDevice:
    return StoredDevice(DeviceID.from_public_key(public_key), public_key, "", 0, 0, True, False, (None,))


class House:
    """Everybody. `dialled` gives the stream when the agent connects to a target, `at_once` when it does so within the call (OSError: it
    cannot), and `connected` the socket when it does so for datagrams.

    `on_redeemed` hears of each invite that was taken.
    """

    def __init__(self, loop: SteppedLoop, root: Path) -> None:
        self.loop = loop
        self.witness = Witness()
        self.wires: list[Wire] = []
        self.parties: dict[str, Party] = {}
        self.events: list[Event] = []
        self.on_redeemed: Callable[[DeviceID, bytes], None] = lambda *_: None
        self.dialled: Callable[[Address, int], Awaitable[WireStream]]
        self.at_once: Callable[[Address, int], WireStream]
        self.connected: Callable[[Address, int], TargetSocket]
        self.agent: Agent
        self.pools: dict[str, TunnelPool] = {}
        self.buffers: list[BufferPool] = []
        self._relay: RelayServer
        self._store = MemoryStore()
        self._home = Home(root)
        self._home.ensure()
        self._link: RelayLink | None = RelayLink(RELAY, CREDENTIALS.relay_id, None)  # needed at the first start
        self.agent_id = IdentityKey.load_or_create(self._home.identity_key).device_id

    @property
    def now(self) -> float:
        return self.loop.time()

    # starting and ending

    def start(self, name: str) -> None:
        """Start a process that is not running."""
        runs: dict[str, Callable[[TaskGroup], Awaitable[None]]] = {"relay": self._run_relay, "agent": self._run_agent}
        self.parties[name] = Party(name, self.loop, runs.get(name) or partial(self._run_forward, name))
        self.loop.settle()

    def crash(self, name: str) -> None:
        """End a process at once: the kernel resets its connections, and nothing that it does on its way out is seen."""
        for wire in self.wires:
            if name in wire.parties:
                wire.cut()
        self.parties[name].kill()
        self.loop.settle()

    def end(self) -> None:
        """End everybody, and forget the processes: what is still held then is held for good."""
        for name in self.parties:
            self.crash(name)
        self.parties.clear()
        vars(self).pop("agent", None)  # which may remember why it gave up

    async def _run_relay(self, tasks: TaskGroup) -> None:
        relay = RelayServer(self._home, listen=RELAY, advertise=None, open_enrolment=True, emit=self.events.append)
        switchboard = Switchboard(self._store, self.events.append, clock=self.loop.time)  # type: ignore[arg-type]
        relay._switchboard = switchboard
        pipes = PipePool(splice=False)
        self.buffers.append(pipes.buffers)
        relay._tunnels = Tunnels(switchboard, pipes)
        relay._attendance = Attendance(switchboard)
        relay._reception = Reception(switchboard, CREDENTIALS, open_enrolment=True, make_room=relay._attendance.make_room)
        self._relay = relay
        await anyio.sleep_forever()

    async def _run_agent(self, _: TaskGroup) -> None:
        link, self._link = self._link, None
        self.agent = Agent(self._home, link=link, allow=(), admit_enrolled=False, emit=self.events.append)
        self.buffers.append(self.agent._tunnels._buffers)
        with suppress(Failure):  # what answers in the relay's place at the very first try is no relay: the agent gives up
            await self.agent.run()

    async def _run_forward(self, name: str, _: TaskGroup) -> None:
        buffers = BufferPool()
        self.buffers.append(buffers)
        async with TunnelPool(FORWARDS[name], buffers, warm=1, emit=self.events.append) as self.pools[name]:
            await anyio.sleep_forever()

    @property
    def device(self) -> Device:
        return Device("home", self.agent_id, (KnownRelay(CREDENTIALS.relay_id, RELAY, enrolled=True),))

    # the network

    async def connect(self, addresses: Sequence[Address], port: int, speaker: Speaker) -> WireStream:
        """What stands for TCP's own handshake."""
        await anyio.lowlevel.checkpoint()
        if HostPort(str(addresses[0]), port) != RELAY:
            return await self.dialled(addresses[0], port)
        relay = self.parties["relay"]
        if not relay.alive:
            raise Failure(Reason.CONNECTION_REFUSED, speaker)
        wire = Wire(PARTY.get(), "relay")
        self.wires.append(wire)
        relay.tasks.start_soon(self._relay._serve_stream, wire.far)
        return wire.near

    def begin_to_connect(self, address: Address, port: int) -> WireStream:
        """The same where the kernel does it within the call."""
        return self.at_once(address, port)

    def calm(self, rounds: int = 40) -> None:
        """Let everything arrive, again and again, until nothing is under way."""
        self.loop.settle()
        for _ in range(rounds):
            self.wires = [wire for wire in self.wires if not wire.over]
            delivered = [wire.deliver_all() for wire in self.wires]
            if not any(delivered):
                return
            self.loop.settle()

    def let_pass(self, seconds: float) -> None:
        """Let time pass on a network that works."""
        end = self.now + seconds
        while self.now < end:
            self.calm()
            self.loop.advance(min(1.0, end - self.now))
        self.calm()

    # what is watched

    def faults(self) -> list[str]:
        """What nobody may ever see."""
        return self.witness.faults + [event.text for event in self.events if isinstance(event, Alarm) and "fault" in event.text]


@contextmanager
def opened() -> Iterator[House]:
    """A house, with everybody in it started."""
    loop = SteppedLoop()
    clock, root = Clock(loop), Path(tempfile.mkdtemp(prefix="tuu"))
    with ExitStack() as patches:
        patches.callback(loop.close)
        patches.callback(shutil.rmtree, root)
        for module in [module for name, module in sys.modules.items() if name.startswith("tuunel.") and vars(module).get("time") is time]:
            patches.enter_context(patch.object(module, "time", clock))
        for module in (presence, readypool):
            patches.enter_context(patch.object(module, "random", Random(7)))
        patches.enter_context(patch.object(NetworkWatch, "_find_way", lambda _: None))
        patches.enter_context(patch.object(os, "fsync", lambda _: None))  # nobody pulls the plug
        patches.enter_context(patch.object(control, "serve", _no_socket))
        patches.enter_context(patch.object(anyio.to_thread, "run_sync", _at_once))
        patches.enter_context(patch.object(relay_tunnels, "_write", _write))
        house = House(loop, root)
        patches.enter_context(house.witness.watching())
        patches.enter_context(patch.object(dial, "_Race", partial(_Attempt, house)))
        patches.enter_context(patch.object(dial, "_begin_to_connect", house.begin_to_connect))
        patches.enter_context(patch.object(dial, "_refuse_itself", lambda _: None))
        patches.enter_context(patch.object(dial, "RawStream", lambda stream: stream))
        patches.enter_context(patch.object(dial, "_connect_datagrams", lambda *where: where))
        patches.enter_context(patch.object(dial, "DatagramSocket", lambda where: house.connected(*where)))
        for module, kind in ((deviceflows, ForwardFlows), (reverseflows, AgentFlows)):
            patches.enter_context(patch.object(module, kind.__name__, watched(kind, house.witness.note)))
        patches.enter_context(patch.object(Grants, "redeem", _watched(Grants.redeem, house)))
        for name in ("relay", "agent", *FORWARDS):
            house.start(name)
        house.calm()
        yield house
        house.end()


class _Attempt:
    """Stands for the race of connection attempts: the first address is it."""

    def __init__(self, house: House, addresses: Sequence[Address], port: int, *_: object) -> None:
        self._house, self._addresses, self._port = house, addresses, port

    async def run(self, speaker: Speaker) -> WireStream:
        return await self._house.connect(self._addresses, self._port, speaker)


def _watched(redeem: Callable[..., Grant], house: House) -> Callable[..., Grant]:
    def redeemed(grants: Grants, invite_id: bytes, *arguments: Any, **named: Any) -> Grant:
        grant = redeem(grants, invite_id, *arguments, **named)
        house.on_redeemed(grant.device, invite_id)
        return grant

    return redeemed


async def _no_socket(*_: object, task_status: TaskStatus[None]) -> None:
    task_status.started()
    await anyio.sleep_forever()


async def _at_once(work: Callable[..., Any], *arguments: Any, **_: object) -> Any:
    await anyio.lowlevel.checkpoint()
    return work(*arguments)


async def _write(sink: WireStream, unsent: bytearray, pipe: Pipe) -> None:
    while unsent:
        sent = sink.send_now(unsent)
        del unsent[:sent]
        pipe.entry.traffic.up += sent
        if unsent:
            await sink.wait_writable()
