"""Front doors that really listen, in a thread with its own event loop; their dialer is plain TCP, and fails or waits when told to.

What a UDP association sends comes back to it, as if each target were an echo.
"""

import contextlib
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.doors import FrontDoors, Outbound
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure
from tuunel.events import Traffic
from tuunel.frontdoor import Credentials, Request
from tuunel.listeners import Announcement, known_listeners
from tuunel.outbound import Datagrams
from tuunel.rawstream import RawStream
from tuunel.settings import Home
from tuunel.udpdoor import UdpDoor

PAC = 'function FindProxyForURL(url, host) { return "DIRECT"; }\n'


@dataclass
class Echo:
    """Implements `tuunel.outbound.Datagrams`: notes what it is given, and returns it to the sender."""

    door: str
    local: bool
    deliver: Callable[[Hashable, bytes], object]
    sent: list[tuple[HostPort, bytes]] = field(default_factory=list)
    key: Hashable = None
    over: bool = False

    def send(self, target: HostPort, payload: bytes, key: Hashable = None) -> None:
        self.sent.append((target, payload))
        self.key = key
        self.deliver(key, payload)

    def flush(self) -> None: ...


@dataclass
class Doorway:
    """The doors: their address, what the dialer was asked, how connections ended; `failure` and `waiting` tell the dialer what to do."""

    address: tuple[str, int]
    home: Home
    echoes: list[Echo] = field(default_factory=list)
    udp: UdpDoor = field(init=False)
    portal: BlockingPortal = field(init=False)
    requests: list[Request] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    failure: Failure | OSError | None = None
    waiting: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    dialling: threading.Event = field(default_factory=threading.Event)
    _ends: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    async def dial(self, request: Request, early: EarlyBytes) -> Outbound:
        self.requests.append(request)
        self.dialling.set()
        if self.waiting:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
        if self.failure:
            raise self.failure
        # a .tuunel name is the test's own loopback, as with an agent on this machine
        stream = RawStream(socket.create_connection(("127.0.0.1", request.target.port)))
        await stream.send_all(early.take())
        traffic = Traffic()
        self.traffic.append(traffic)
        return Outbound(stream, traffic, self._ended, stream.local, connection=len(self.requests))

    @contextlib.asynccontextmanager
    async def associate(self, *, door: str, local: bool, deliver: Callable[[Hashable, bytes], object]) -> AsyncIterator[Datagrams]:
        echo = Echo(door, local, deliver)
        with self._changed:
            self.echoes.append(echo)
        try:
            yield echo
        finally:
            deliver(echo.key or b"", b"an answer that comes too late")
            with self._changed:
                echo.over = True
                self._changed.notify_all()

    def associations_end(self, deadline: float = 15.0) -> None:
        """Wait until every association has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: all(echo.over for echo in self.echoes), deadline), "an association goes on"

    def listening(self) -> set[int]:
        """The ports that are announced to the other roles of the home."""
        return {port for _, port in known_listeners(self.home.run_dir)}

    def _ended(self, how: str) -> None:
        with self._changed:
            self._ends.append(how)
            self._changed.notify_all()

    def ends(self, count: int = 1, deadline: float = 15.0) -> list[str]:
        """Wait until `count` connections have ended: how each did."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._ends) >= count, deadline), f"only {self._ends} ended"
            return list(self._ends)


@contextlib.contextmanager
def doorway(backend: str, credentials: Credentials | None = None, *, unix: str | None = None, host: str = "127.0.0.1") -> Iterator[Doorway]:
    """Serve front doors on a loopback port, or on a unix socket at the path `unix`."""
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind(unix or (host, 0))
    listener.listen(64)
    listener.setblocking(False)
    with tempfile.TemporaryDirectory() as directory:
        way = Doorway(unix or listener.getsockname()[:2], Home(Path(directory)))
        way.home.ensure()
        own_ports = Announcement(way.home, "proxy")
        udp = way.udp = UdpDoor(way.associate, own_ports)
        buffers = BufferPool()
        front = FrontDoors(way.dial, udp=udp, pac=lambda: PAC, buffers=buffers, credentials=credentials)

        async def serve(stop: anyio.Event) -> None:
            async with anyio.create_task_group() as clients:

                async def accept() -> None:
                    while True:
                        await anyio.wait_readable(listener)
                        clients.start_soon(front.serve_client, RawStream(listener.accept()[0]))

                clients.start_soon(accept)
                await stop.wait()
                clients.cancel_scope.cancel()

        with own_ports, start_blocking_portal(backend) as portal:
            way.portal = portal
            stop = portal.call(anyio.Event)
            served = portal.start_task_soon(serve, stop)
            try:
                yield way
            finally:
                portal.call(stop.set)
                served.result(15)
                listener.close()
    assert buffers.lent == 0, "a connection kept a buffer"
    assert len(udp) == 0, "an association outlived its client"
    assert own_ports.addresses == (), "an association's port is still announced"
