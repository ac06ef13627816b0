"""Relay, agent and forward proxy in one event loop on loopback, with throw-away homes: what the roles' tests live in.

A world that ends checks that its roles have given back every buffer and every descriptor.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from tests.ports import udp_socket
from tests.streams import receive_all
from tuunel import pairing
from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.buffers import BufferPool
from tuunel.datagrams import DatagramSocket
from tuunel.devices import Device, Devices
from tuunel.events import Emit, Event, Ready
from tuunel.forward import Forward
from tuunel.forwarding import parse_forwardings
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import parse_invite, parse_link
from tuunel.listen import address_of, open_listeners, serve
from tuunel.pool import TunnelPool
from tuunel.proxy import Proxy
from tuunel.rawstream import RawStream
from tuunel.relay.server import RelayServer
from tuunel.settings import Home

LOOPBACK = HostPort("127.0.0.1", 0)
PATIENCE = 10.0  #: seconds that a test waits for what must happen at once

Handler = Callable[[RawStream], Awaitable[None]]
E = TypeVar("E", bound=Event)


class Role(Protocol):
    async def run(self) -> None: ...
    def stop(self) -> None: ...


R = TypeVar("R", bound=Role)


async def until(condition: Callable[[], object]) -> None:
    """Let the other tasks run until it holds."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.lowlevel.checkpoint()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@dataclass
class Running(Generic[R]):
    """A role that runs, and what it said."""

    role: R
    home: Home
    events: list[Event]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None

    def seen(self, kind: type[E], condition: Callable[[E], object] = lambda _: True) -> list[E]:
        return [event for event in self.events if isinstance(event, kind) and condition(event)]

    async def until(self, kind: type[E], condition: Callable[[E], object] = lambda _: True) -> E:
        await until(lambda: self.over.is_set() or self.seen(kind, condition))
        return self.seen(kind, condition)[0]

    async def run(self) -> None:
        try:
            with self.scope:
                await self.role.run()
        except Exception as error:
            self.error = error
        finally:
            self.over.set()

    async def kill(self) -> None:
        """End it at once: nobody is told."""
        self.scope.cancel()
        await self.over.wait()


class World:
    """Makes homes and runs roles on them."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.tasks = tasks
        self.running: list[Running[Any]] = []
        self._homes: list[Path] = []

    def home(self) -> Home:
        """An empty one. Its path is short: that of a unix socket is limited to about 104 bytes."""
        path = Path(tempfile.mkdtemp(prefix="tuu", dir="/tmp"))
        self._homes.append(path)
        return Home(path)

    def start(self, home: Home, build: Callable[[Emit], R]) -> Running[R]:
        events: list[Event] = []
        running = Running(build(events.append), home, events)
        self.running.append(running)
        self.tasks.start_soon(running.run)
        return running

    async def relay(self, home: Home | None = None, listen: HostPort = LOOPBACK) -> Running[RelayServer]:
        home = home or self.home()
        relay = self.start(home, lambda emit: RelayServer(home, listen=listen, advertise=None, open_enrolment=True, emit=emit))
        await relay.until(Ready)
        return relay

    async def agent(
        self, link: str | None, home: Home | None = None, *, allow: Sequence[DeviceID] = (), enrolled: bool = False
    ) -> Running[Agent]:
        home = home or self.home()
        parsed = parse_link(link) if link else None
        agent = self.start(home, lambda emit: Agent(home, link=parsed, allow=allow, admit_enrolled=enrolled, emit=emit))
        await agent.until(Ready)
        return agent

    async def paired(self, agent: Running[Agent], name: str = "home", **invite: object) -> tuple[Home, Device]:
        """A home that is paired with the agent."""
        home = self.home()
        answer = await agent.role._make_invite(invite)
        return home, await pairing.pair(home, parse_invite(answer["invite"]), name)

    async def proxy(self, home: Home, *, listen: HostPort = LOOPBACK, other: str = "direct", routes: Sequence[str] = ()) -> Running[Proxy]:
        proxy = self.start(home, lambda emit: Proxy(home, listen=listen, other=other, routes=routes, credentials=None, emit=emit))
        await proxy.until(Ready)
        return proxy

    async def forward(self, home: Home, *forwards: str, http_hosts: Iterable[str] = ()) -> Running[Forward]:
        forwardings = parse_forwardings(forwards)
        forward = self.start(home, lambda emit: Forward(home, forwardings=forwardings, http_hosts=frozenset(http_hosts), emit=emit))
        await forward.until(Ready)
        return forward

    async def target(self, handler: Handler) -> int:
        """A TCP service on this machine: its port."""
        (listener,) = await open_listeners(LOOPBACK)
        port = address_of(listener).port
        self.tasks.start_soon(serve, [listener], handler, self.tasks)
        return port

    def datagram_target(self, answers: Callable[[bytes], Iterable[bytes]] = lambda data: [data], host: str = "127.0.0.1") -> int:
        """A UDP service on this machine, an echo unless told otherwise: its port."""
        service = DatagramSocket(udp_socket(host))
        self.tasks.start_soon(_answer_datagrams, service, answers)
        return service.local.port

    def close(self) -> None:
        for path in self._homes:
            shutil.rmtree(path, ignore_errors=True)


async def _answer_datagrams(service: DatagramSocket, answers: Callable[[bytes], Iterable[bytes]]) -> None:
    try:
        while True:
            await service.wait_readable()
            while (received := service.receive_from()) is not None:
                for answer in answers(received[0]):
                    service.send_to(answer, received[1])
    finally:
        service.close()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A world that ends with the block, and is checked to have left nothing behind."""
    await anyio.to_thread.run_sync(lambda: None)  # what the event loop opens at its first use is not ours
    before = open_descriptors()
    made: World | None = None
    try:
        async with anyio.create_task_group() as tasks:
            made = World(tasks)
            yield made
            tasks.cancel_scope.cancel()
        for running in made.running:
            assert running.error is None or running.over.is_set()
            assert lent_by(running.role) == 0, "a connection kept a buffer"
        assert open_descriptors() == before, "a descriptor was left open"
    finally:
        if made is not None:
            made.close()


def lent_by(role: Role) -> int:
    if isinstance(role, Agent):
        return role._tunnels._buffers.lent
    return role._reach.buffers.lent if isinstance(role, Proxy | Forward) else 0


@dataclass
class Trio:
    """Relay, agent and a paired machine."""

    world: World
    relay: Running[RelayServer]
    agent: Running[Agent]
    home: Home
    device: Device


async def trio(in_world: World) -> Trio:
    relay = await in_world.relay()
    agent = await in_world.agent((await relay.until(Ready)).link)
    home, device = await in_world.paired(agent)
    return Trio(in_world, relay, agent, home, device)


@asynccontextmanager
async def pool_of(home: Home, *, warm: int = 0, emit: Emit = lambda _: None) -> AsyncIterator[TunnelPool]:
    """The home's tunnels, without its proxy."""
    buffers = BufferPool()
    async with TunnelPool(IdentityKey.load_or_create(home.identity_key), buffers, warm=warm, emit=emit) as tunnels:
        yield tunnels
    assert buffers.lent == 0


def device_of(home: Home, name: str = "home") -> Device:
    return Devices(home.devices_file).resolve(name)


async def echo(stream: RawStream) -> None:
    """Give back what comes, to its end."""
    while data := await stream.receive():
        await stream.send_all(data)
    await stream.aclose()


def answer_after_end(answer: bytes, heard: list[bytes]) -> Handler:
    """Read to the end, then answer."""

    async def handle(stream: RawStream) -> None:
        heard.append(await receive_all(stream))
        await stream.send_all(answer)
        await stream.aclose()

    return handle


async def connect(port: int) -> RawStream:
    """A connection to this machine's port."""
    return RawStream(socket.create_connection((LOOPBACK.host, port)))


async def connect_through(proxy: Running[Proxy], host: str, port: int) -> RawStream:
    """A connection through the proxy's HTTP CONNECT; ConnectionRefusedError with the answer's head if it is not 200."""
    stream = await connect(proxy.role._addresses[0].port)
    await stream.send_all(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = b""
    with anyio.fail_after(PATIENCE):
        while not head.endswith(b"\r\n\r\n"):
            byte = await stream.receive(1)
            if not byte:
                break
            head += byte
    if b" 200 " not in head.partition(b"\r\n")[0]:
        stream.close()
        raise ConnectionRefusedError(head.decode())
    return stream


@contextmanager
def unchanged_descriptors() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def environment_home(home: Home) -> dict[str, str]:
    return {**os.environ, "TUUNEL_HOME": str(home.root)}
