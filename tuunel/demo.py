"""The whole system on one machine with throw-away state: relay, agent, proxy, and a sample site that only the agent dials.

`Demo` runs it until it is stopped; `visit_every_door` runs it, fetches the site through every front door, and ends it.
"""

import errno
import html
import math
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup, TaskStatus, UDPSocket
from anyio.streams.buffered import BufferedByteReceiveStream

from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.events import Alarm, Emit, Event, Notice, Ready, printable
from tuunel.links import parse_invite, parse_link
from tuunel.pairing import pair
from tuunel.proxy import Proxy
from tuunel.relay.server import RelayServer
from tuunel.settings import VARIABLE, Home

NAME: Final = "home"
LOCALHOST: Final = "127.0.0.1"
VISIT_TIMEOUT: Final = 20.0  # seconds for one page; a front door that takes longer does not work
GRACE: Final = 2.0  # seconds that the parts get to end by themselves after the visits
START_TIMEOUT: Final = 20.0  # seconds for one part to become ready: a slow machine makes its keys in one
PORT_ATTEMPTS: Final = 20  # ports that are tried for the sample site: each is free for UDP, and then mostly for TCP
MAX_HEAD: Final = 8192  # bytes of a head that the sample site and its visitors read, as common web servers do


@dataclass(frozen=True, slots=True)
class System:
    """A running demo: where its proxy listens, where its site is, and the laptop's state directory."""

    proxy: HostPort
    site: HostPort
    laptop: Path
    device_id: str
    greeting: str
    kill: Callable[[int], None] = field(repr=False)  #: ends a connection of the proxy: `Proxy.kill`


@dataclass(frozen=True, slots=True)
class Visit:
    """What one front door showed: `saw` is the page's status and size, or what went wrong."""

    door: str
    ok: bool
    seconds: float
    saw: str

    def document(self) -> dict[str, Any]:
        """The visit as JSON shows it."""
        return asdict(self)


class Role(Protocol):
    """A part of the system that runs until it is stopped."""

    async def run(self) -> None:
        """Serve until `stop()` or cancellation."""

    def stop(self) -> None:
        """Take no new work."""


class Demo:
    """The demo as a long-running role: emits what its proxy does, and notices that say what to open."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._stopped = anyio.Event()
        self._system: System | None = None

    async def run(self) -> None:
        """Serve until `stop()` or cancellation. Nothing is left on disk afterwards."""
        async with running_system(self._emit) as system:
            self._emit(Ready("demo", listen=str(system.proxy), device_id=system.device_id))
            for line in what_to_open(system):
                self._emit(Notice(line))
            self._system = system
            await self._stopped.wait()

    def stop(self) -> None:
        """End every part; `run()` returns when their connections have finished."""
        self._stopped.set()

    def kill(self, number: int) -> None:
        """End a connection of the proxy because a person wants it. UsageError when there is none of this number."""
        if self._system is not None:
            self._system.kill(number)


def what_to_open(system: System) -> list[str]:
    """Lines that tell a person how to see the demo work."""
    url = f"http://{system.site}/"
    program = "tuunel" if shutil.which("tuunel") else f"{shlex.quote(sys.executable)} -m tuunel"
    return [
        f"a sample site waits behind the agent, at {url}",
        f"curl:     curl --proxy socks5h://{system.proxy} {url}",
        f"browser:  chromium --user-data-dir={system.laptop / 'chromium'} --proxy-server=socks5://{system.proxy} {url}",
        f"nc:       printf 'GET / HTTP/1.0\\r\\n\\r\\n' | {VARIABLE}={system.laptop} {program} nc {NAME} {system.site.port}",
        "Ctrl-C ends it and removes everything",
    ]


@asynccontextmanager
async def running_system(emit: Emit, grace: float = math.inf) -> AsyncIterator[System]:
    """Start every part, one after the other as a person would; on leaving, stop them and wait at most `grace` seconds for them.

    `emit` hears what the proxy does, and alarms from anywhere.
    """
    greeting = f"This page came through tuunel: {secrets.token_hex(8)}"
    with TemporaryDirectory(prefix="tuunel-demo-") as folder:
        async with anyio.create_task_group() as site:
            site_port = await site.start(serve_site, greeting)
            async with anyio.create_task_group() as tasks:
                parts = Parts(tasks, emit)
                yield await parts.start(Path(folder), site_port, greeting)
                parts.stop()
                tasks.cancel_scope.deadline = anyio.current_time() + grace
            site.cancel_scope.cancel()


class Parts:
    """Starts relay, agent and proxy in `tasks`."""

    def __init__(self, tasks: TaskGroup, emit: Emit) -> None:
        self._tasks = tasks
        self._emit = emit
        self._roles: list[Role] = []

    async def start(self, root: Path, site_port: int, greeting: str) -> System:
        """Start the parts with their state below `root`, and pair the laptop with the agent."""
        anywhere = HostPort(LOCALHOST, 0)
        relay_home, agent_home, laptop = (Home(root / name) for name in ("relay", NAME, "laptop"))
        relay = await self._ready(
            lambda emit: RelayServer(relay_home, listen=anywhere, advertise=LOCALHOST, open_enrolment=False, emit=emit), self._alarms
        )
        link = parse_link(relay.link or "")
        agent = await self._ready(lambda emit: Agent(agent_home, link=link, allow=(), admit_enrolled=False, emit=emit), self._alarms)
        await pair(laptop, parse_invite(agent.invite or ""), NAME)
        proxies: list[Proxy] = []

        def build_proxy(emit: Emit) -> Proxy:
            proxies.append(Proxy(laptop, listen=anywhere, other="direct", routes=(), credentials=None, emit=emit))
            return proxies[0]

        proxy = await self._ready(build_proxy, self._all_but_ready)
        listen = HostPort.parse(proxy.listen or "")
        return System(listen, HostPort(f"{NAME}.tuunel", site_port), laptop.root, agent.device_id or "", greeting, proxies[0].kill)

    def stop(self) -> None:
        """Tell every part to stop, the proxy first."""
        for role in reversed(self._roles):
            role.stop()

    async def _ready(self, build: Callable[[Emit], Role], listener: Emit) -> Ready:
        """Start a role and wait until it is ready."""
        heard: list[Ready] = []
        ready = anyio.Event()

        def hear(event: Event) -> None:
            if isinstance(event, Ready):
                heard.append(event)
                ready.set()
            listener(event)

        role = build(hear)
        self._roles.append(role)
        self._tasks.start_soon(role.run)
        with anyio.fail_after(START_TIMEOUT):
            await ready.wait()
        return heard[0]

    def _alarms(self, event: Event) -> None:
        if isinstance(event, Alarm):
            self._emit(event)

    def _all_but_ready(self, event: Event) -> None:
        if not isinstance(event, Ready):
            self._emit(event)


async def serve_site(greeting: str, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
    """Serve one page on this machine's loopback, over TCP and UDP, until cancelled; tells its port."""

    async def respond(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.DelimiterNotFound, anyio.IncompleteRead):
                head = await BufferedByteReceiveStream(stream).receive_until(b"\r\n\r\n", MAX_HEAD)
                await stream.send(page(greeting, head))

    async def answer(socket: UDPSocket) -> None:
        async for datagram, sender in socket:
            await socket.sendto(page(greeting, datagram), *sender)

    listener, socket = await site_sockets()
    async with listener, socket, anyio.create_task_group() as tasks:
        tasks.start_soon(answer, socket)
        task_status.started(socket.extra(SocketAttribute.local_port))  # noqa: S610 - anyio's, not Django's
        await listener.serve(respond)


async def site_sockets() -> tuple[Listener[SocketStream], UDPSocket]:
    """A TCP listener and a UDP socket with one port; of a port that the system gives, another program may have the other half."""
    for left in reversed(range(PORT_ATTEMPTS)):
        socket = await anyio.create_udp_socket(local_host=LOCALHOST)
        port = socket.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
        try:
            return await anyio.create_tcp_listener(local_host=LOCALHOST, local_port=port), socket
        except OSError as error:
            await socket.aclose()
            if error.errno != errno.EADDRINUSE or not left:
                raise
    raise AssertionError  # the loop returns or raises


def page(greeting: str, head: bytes) -> bytes:
    """The sample site's HTTP response: the greeting, and the request's head as the site received it."""
    body = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>tuunel demo</title>"
        "<style>body{font:1.1rem/1.5 system-ui;max-width:44rem;margin:4rem auto;padding:0 1rem}pre{overflow:auto}</style>"
        f"<h1>It works</h1><p>{html.escape(greeting)}</p>"
        "<p>The agent dialled this site; the relay carried only ciphertext. The site received:</p>"
        f"<pre>{html.escape(head.decode('latin-1').strip())}</pre>\n"
    ).encode()
    lines = ("HTTP/1.1 200 OK", "Content-Type: text/html; charset=utf-8", f"Content-Length: {len(body)}", "Connection: close", "", "")
    return "\r\n".join(lines).encode() + body


async def visit_every_door(tell: Callable[[str], None] = lambda _: None) -> list[Visit]:
    """Run the demo, fetch its site through every front door, and end it. Raises what a part raised that could not start.

    `tell` hears what is done now, in words.
    """
    tell("starting relay, agent and proxy")
    visits = []
    async with running_system(lambda _: None, GRACE) as system:
        for door, fetch in DOORS.items():
            tell(f"fetching through {door}")
            visits.append(await visit(system, door, fetch))
        tell("ending")
    return visits


async def visit(system: System, door: str, fetch: "Fetch") -> Visit:
    """Fetch the site with `fetch` and tell what came; a front door that does not work is told, not raised."""
    start = time.monotonic()
    try:
        with anyio.fail_after(VISIT_TIMEOUT):
            response = await fetch(system)
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound) as error:
        return Visit(door, ok=False, seconds=time.monotonic() - start, saw=printable(f"{type(error).__name__}: {error}"))
    seconds = time.monotonic() - start
    status = response.partition(b"\r\n")[0].decode("latin-1")
    ok = status.startswith("HTTP/1.1 200 ") and system.greeting.encode() in response
    return Visit(door, ok, seconds, printable(f"{status}, {len(response)} bytes{'' if ok else ', not the sample page'}"))


async def through_socks5(system: System) -> bytes:
    """SOCKS5 with the name in the request, as `socks5h` clients do: RFC 1928 sections 3, 4 and 6."""
    async with await anyio.connect_tcp(system.proxy.host, system.proxy.port) as stream:
        replies = BufferedByteReceiveStream(stream)
        await stream.send(b"\x05\x01\x00")
        if await replies.receive_exactly(2) != b"\x05\x00":
            raise OSError("the proxy wants another way to log in")
        host = system.site.host.encode()
        await stream.send(b"\x05\x01\x00\x03" + bytes([len(host)]) + host + system.site.port.to_bytes(2, "big"))
        _, reply, _, kind = await replies.receive_exactly(4)
        if reply != 0:
            raise OSError(f"SOCKS5 reply {reply}")
        await replies.receive_exactly({1: 4, 4: 16}.get(kind, 0) + 2)
        return await get(system, stream, replies)


async def through_socks4a(system: System) -> bytes:
    """SOCKS4a: an address of 0.0.0.1, and the name behind the empty user."""
    async with await anyio.connect_tcp(system.proxy.host, system.proxy.port) as stream:
        replies = BufferedByteReceiveStream(stream)
        port = system.site.port.to_bytes(2, "big")
        await stream.send(b"\x04\x01" + port + b"\x00\x00\x00\x01\x00" + system.site.host.encode() + b"\x00")
        reply = (await replies.receive_exactly(8))[1]
        if reply != 0x5A:
            raise OSError(f"SOCKS4 reply {reply:#x}")
        return await get(system, stream, replies)


async def through_connect(system: System) -> bytes:
    """HTTP CONNECT: RFC 9110 section 9.3.6."""
    async with await anyio.connect_tcp(system.proxy.host, system.proxy.port) as stream:
        replies = BufferedByteReceiveStream(stream)
        await stream.send(f"CONNECT {system.site} HTTP/1.1\r\nHost: {system.site}\r\n\r\n".encode())
        head = await replies.receive_until(b"\r\n\r\n", MAX_HEAD)
        status = head.partition(b"\r\n")[0].decode("latin-1")
        if " 200 " not in f"{status} ":
            raise OSError(status)
        return await get(system, stream, replies)


async def through_http(system: System) -> bytes:
    """A plain HTTP request in absolute form: RFC 9112 section 3.2.2."""
    async with await anyio.connect_tcp(system.proxy.host, system.proxy.port) as stream:
        return await get(system, stream, BufferedByteReceiveStream(stream), f"http://{system.site}/")


async def through_udp(system: System) -> bytes:
    """One datagram there and one back, through SOCKS5 UDP ASSOCIATE: RFC 1928 sections 4 and 7."""
    async with await anyio.connect_tcp(system.proxy.host, system.proxy.port) as stream:
        replies = BufferedByteReceiveStream(stream)
        await stream.send(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
        _, _, _, reply, _, _ = await replies.receive_exactly(6)
        if reply != 0:
            raise OSError(f"SOCKS5 reply {reply}")
        await replies.receive_exactly(4)  # the proxy's own address
        port = int.from_bytes(await replies.receive_exactly(2))
        host = system.site.host.encode()
        header = b"\x00\x00\x00\x03" + bytes([len(host)]) + host + system.site.port.to_bytes(2, "big")
        async with await anyio.create_connected_udp_socket(system.proxy.host, port) as socket:
            await socket.send(header + request(system))
            return (await socket.receive()).removeprefix(header)


async def get(system: System, stream: ByteStream, replies: BufferedByteReceiveStream, target: str = "/") -> bytes:
    """Ask for the page and read until the site has closed."""
    await stream.send(request(system, target))
    received = b""
    with suppress(anyio.EndOfStream):
        while True:
            received += await replies.receive()
    return received


def request(system: System, target: str = "/") -> bytes:
    """The request for the sample page."""
    return f"GET {target} HTTP/1.1\r\nHost: {system.site}\r\nConnection: close\r\n\r\n".encode()


async def through_nc(system: System) -> bytes:
    """`tuunel nc` as a process of its own, as ssh starts it; its stdin ends before the answer comes."""
    command = [sys.executable, "-m", "tuunel", "nc", NAME, str(system.site.port)]
    environment = {**os.environ, VARIABLE: str(system.laptop)}
    ended = await anyio.run_process(command, input=request(system), env=environment, check=False)
    if ended.returncode != 0:
        raise OSError(f"exit code {ended.returncode}: {ended.stderr.decode(errors='replace').strip()}")
    return ended.stdout


Fetch = Callable[[System], Awaitable[bytes]]
DOORS: Final[dict[str, Fetch]] = {
    "socks5h": through_socks5,
    "socks4a": through_socks4a,
    "http connect": through_connect,
    "http": through_http,
    "socks5 udp": through_udp,
    "nc": through_nc,
}
