"""The relay: devices enrol and log in, agents wait, forward proxies open, and the relay pipes what it cannot read.

Source: docs/spec/relay.md.
"""

import socket
import time
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel import control
from tuunel.address import HostPort
from tuunel.descriptors import raise_limit
from tuunel.errors import StateError
from tuunel.events import Alarm, Emit, Measures, Notice, Ready
from tuunel.links import PLACEHOLDER_HOST
from tuunel.listen import address_of, open_listeners, serve
from tuunel.listeners import Announcement
from tuunel.memory import memory_allowed
from tuunel.networkwatch import FAR_AWAY, local_address
from tuunel.rawstream import RawStream
from tuunel.relay.admin import Admin
from tuunel.relay.attendance import Attendance
from tuunel.relay.certificates import RelayRoot
from tuunel.relay.connection import LOST, ControlConnection, DeviceConnection, DialConnection, ReadyConnection
from tuunel.relay.credentials import create_root, load_root, new_leaf
from tuunel.relay.gate import MAX_UNPROVEN
from tuunel.relay.limits import BOUNDS, Allowances
from tuunel.relay.reception import Reception
from tuunel.relay.splice import KEEP, MAX_LENT, PipePool
from tuunel.relay.store import Store
from tuunel.relay.switchboard import Switchboard
from tuunel.relay.tunnels import Tunnels
from tuunel.settings import Home
from tuunel.statefile import damaged

RENEWAL_INTERVAL: Final = 3600.0  #: seconds between looks at the leaf, which is renewed a month before it ends
CONNECTION_MEMORY: Final = 64 * 1024  #: bytes that a connection is reckoned with: at rest it takes a third
OWN_FILES: Final = 64  #: descriptors of the relay itself: listeners, registry, control socket and who asks there
WILDCARDS: Final = frozenset({"::", "0.0.0.0"})


class RelayServer:
    """A relay that listens on `listen` and keeps its state in `home`.

    Links carry `advertise` (`HOST[:PORT]`), else the address listened on, else a global address of this machine. With
    `open_enrolment` every device that asks is enrolled. `allowances` are what each device and address prefix may use. UsageError when
    `advertise` is no address.
    """

    def __init__(
        self,
        home: Home,
        *,
        listen: HostPort,
        advertise: str | None,
        open_enrolment: bool,
        emit: Emit,
        allowances: Allowances = Allowances(),  # noqa: B008 - frozen
    ) -> None:
        self._home = home
        self._listen = listen
        self._advertise = None if advertise is None else HostPort.parse(advertise, 0)
        self._open_enrolment = open_enrolment
        self._allowances = allowances
        self._emit = emit
        self._stopping = anyio.Event()
        self._serving = False
        self._unproven: set[anyio.CancelScope] = set()
        self._admin: Admin
        self._switchboard: Switchboard
        self._reception: Reception
        self._attendance: Attendance
        self._tunnels: Tunnels

    async def measures(self) -> Measures:
        """What it counts. StateError when the store cannot be read."""
        if not self._serving:
            return {}
        return {
            **self._switchboard.registry.census(),
            **self._reception.measures(),
            "relay_devices_enrolled": await self._switchboard.store.count(),
            "relay_opens_refused_total": self._tunnels.refused,
            "relay_at_limit": dict.fromkeys(BOUNDS, 0) | self._switchboard.limiter.at_limit(),
        }

    async def reload(self, *, advertise: str | None, open_enrolment: bool, allowances: Allowances) -> None:
        """Let new links carry `advertise`, and enrol and limit by these rules from now on. UsageError when `advertise` is no address."""
        self._advertise = None if advertise is None else HostPort.parse(advertise, 0)
        self._open_enrolment = open_enrolment
        self._allowances = allowances
        if self._serving:
            self._switchboard.limiter.allow(allowances)
            self._admin.address = self._link_address(self._admin.listen)
            self._reception.open_enrolment = open_enrolment

    def stop(self) -> None:
        """Take in nobody any more and tell every device; `run` returns when the tunnels under way have ended."""
        self._stopping.set()

    def kill(self, number: int) -> None:
        """End a tunnel because a person wants it. UsageError when there is none of this number."""
        self._switchboard.ledger.kill(number)

    async def run(self) -> None:
        """Serve until `stop` and the end of the last tunnel, or until cancelled. At start: StateError, ListenError."""
        self._capacity = capacity_within(raise_limit(), memory_allowed())
        self._home.ensure()
        store = await Store.open(self._registry_path(), time.time)
        pipes = PipePool()
        try:
            root = await self._load_root(store)
            await self._serve(store, root, pipes)
        finally:
            self._serving = False
            pipes.close()
            await store.aclose()

    def _registry_path(self) -> Path:
        path = self._home.relay_dir / "devices.db"
        if (self._home.relay_dir / "root.pem").exists() and path.exists() and not path.stat().st_size:
            # SQLite would take it for a new one; the root is made after the registry, so it was once more than that
            raise damaged(path, "it is empty")
        return path

    async def _load_root(self, store: Store) -> RelayRoot:
        path = self._home.relay_dir / "root.pem"
        root = load_root(path)
        if root is None and not await store.is_empty():
            raise StateError(
                f"{path} is missing, and devices are enrolled that know this relay by it",
                f"restore it from a backup; or move {path.parent} away: this relay is then a new one to every device",
            )
        return root or create_root(path, int(time.time()))

    async def _serve(self, store: Store, root: RelayRoot, pipes: PipePool) -> None:
        switchboard = self._switchboard = Switchboard(
            store, self._emit, clock=time.monotonic, capacity=self._capacity, allowances=self._allowances
        )
        self._tunnels = Tunnels(switchboard, pipes)
        self._attendance = Attendance(switchboard)
        self._reception = Reception(
            switchboard,
            new_leaf(root, int(time.time())),
            open_enrolment=self._open_enrolment,
            make_room=self._attendance.make_room,
        )
        listeners = await open_listeners(self._listen)
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(self._tunnels.watch)
                background.start_soon(self._attendance.keep_notes)
                await self._serve_connections(listeners, root)
                background.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._attendance.note_seen()

    async def _serve_connections(self, listeners: list[socket.socket], root: RelayRoot) -> None:
        switchboard = self._switchboard
        async with anyio.create_task_group() as connections:
            with ExitStack() as closing:
                for listener in listeners:
                    closing.callback(listener.close)
                addresses = [address_of(listener) for listener in listeners]
                listening = HostPort(self._listen.host, addresses[0].port)
                self._admin = Admin(switchboard, listen=listening, address=self._link_address(listening), relay_id=root.relay_id)
                self._serving = True
                await self._take_in(listeners, connections, root)
            for scope in self._unproven:
                scope.cancel()
            switchboard.shut_down()

    async def _take_in(self, listeners: list[socket.socket], connections: TaskGroup, root: RelayRoot) -> None:
        admin = self._admin
        async with anyio.create_task_group() as services:
            await services.start(control.serve, self._home.socket("relay"), admin.handlers)
            # Not before: now no other relay runs here, whose announcement ours would replace.
            with Announcement(self._home, "relay") as own_ports:
                own_ports.add(*(address_of(listener) for listener in listeners))
                services.start_soon(self._renew_leaf, root)
                services.start_soon(serve, listeners, self._serve_stream, connections)
                link = str(await admin.make_link()) if await self._switchboard.store.is_empty() else None
                self._emit(Ready("relay", str(admin.listen), link, fullest=self._switchboard.limiter.fullest))
                self._emit(Notice(f"room for {self._capacity} connections: two for each tunnel, and those that wait"))
                if admin.address.host == PLACEHOLDER_HOST:
                    self._emit(Notice(f"links say {PLACEHOLDER_HOST}: tell this relay its public name with --advertise"))
                await self._stopping.wait()
            services.cancel_scope.cancel()

    async def _renew_leaf(self, root: RelayRoot) -> None:
        while True:
            await anyio.sleep(RENEWAL_INTERVAL)
            now = int(time.time())
            if self._reception.credentials.needs_renewal(now):
                self._reception.credentials = new_leaf(root, now)

    async def _serve_stream(self, stream: RawStream) -> None:
        try:
            connection = await self._receive(stream)
            if connection is not None:
                await self._serve_device(connection)
        except Exception as error:  # a fault of ours ends one connection and not the relay
            self._emit(Alarm(f"a connection ended by a fault inside tuunel, please report it: {error!r}"))

    async def _receive(self, stream: RawStream) -> DeviceConnection | None:
        connection = None
        with anyio.CancelScope() as scope:
            self._unproven.add(scope)
            try:
                connection = await self._reception.receive(stream)
            finally:
                self._unproven.discard(scope)
        return connection

    async def _serve_device(self, connection: DeviceConnection) -> None:
        handed_over = False
        try:
            with connection.scope:
                handed_over = await self._serve_purpose(connection)
        except LOST:
            pass  # a device goes without a word, or says what it must not: either way its connection is over
        except StateError as error:
            self._emit(Alarm(f"{error}; {error.advice}"))
        finally:
            if not handed_over:
                self._switchboard.leave(connection)
                await connection.stream.aclose()

    async def _serve_purpose(self, connection: DeviceConnection) -> bool:
        match connection:
            case ControlConnection():
                await self._attendance.serve(connection)
            case ReadyConnection():
                return await self._tunnels.serve_ready(connection)
            case DialConnection():
                await self._tunnels.serve_dial(connection)
        return False

    def _link_address(self, listening: HostPort) -> HostPort:
        if self._advertise is not None:
            return HostPort(self._advertise.host, self._advertise.port or listening.port)
        if listening.host not in WILDCARDS:
            return listening
        return HostPort(_global_address() or PLACEHOLDER_HOST, listening.port)


def capacity_within(files: int, memory: int) -> int:
    """How many connections of devices a process that may have so many files open, and use so many bytes, can hold.

    The rest is kept for what must go on: the relay's own files, the pipes that bytes move through, and sockets that have not proved
    anything yet; and half of the memory.
    """
    within_files = files - OWN_FILES - 2 * (MAX_LENT + KEEP) - min(MAX_UNPROVEN, files // 8)
    return max(min(within_files, memory // 2 // CONNECTION_MEMORY), 2)


def _global_address() -> str | None:
    """The address that this machine uses on the Internet, when it is not behind a NAT."""
    for place in FAR_AWAY:
        address = local_address(place)
        if address is not None and ip_address(address).is_global:
            return address
    return None
