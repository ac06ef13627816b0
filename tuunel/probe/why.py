"""`tuunel why`: walks the way from an app to a target, part by part, and stops at the first that is broken.

Source: docs/howto (find out what is wrong), docs/reference/errors.md.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, NoReturn

import anyio
from anyio import to_thread

from tuunel import control
from tuunel.address import HostPort, parse_tuunel_name
from tuunel.buffers import BufferPool
from tuunel.devices import Device, Devices, KnownRelay
from tuunel.dial import dial, resolve
from tuunel.e2e.wire import Command, RecordType, Target
from tuunel.errors import Failure, NotRunning, Reason, Speaker, TuunelError
from tuunel.identity import IdentityKey
from tuunel.pool import RELAY_REASONS, TunnelPool
from tuunel.probe.way import by_each_relay, faults_told
from tuunel.relay.client import HopConnection, Step, connect
from tuunel.relay.wire import Params, Purpose, Role
from tuunel.routing import ThroughDevice, resolve_name
from tuunel.settings import Home
from tuunel.tunnel import ANSWER_TIMEOUT, Tunnel

PARTING: Final = 0.5  #: seconds that a target gets to end the connection that was made to it

#: What the agent says of a target that its policy allows and, if it has a name, that it has found.
_OF_THE_TARGET: Final = frozenset({
    Reason.CONNECTION_REFUSED, Reason.HOST_UNREACHABLE, Reason.NET_UNREACHABLE, Reason.CONNECT_TIMEOUT,
})  # fmt: skip
_PROVEN: Final = "verified end to end: it holds that device's key"


@dataclass(frozen=True, slots=True)
class Hop:
    """One part of the way. `ok` None: it is not needed, or of no use to the rest; then, or when it is False, `error` says why.

    `said` may hold text of another machine. `seconds` is what looking at it took; None when there was nothing to wait for.
    """

    name: str
    ok: bool | None
    said: str
    seconds: float | None = None
    error: TuunelError | None = None


class Why:
    """Walks to `target`; `tell` hears of each part, and `hops` keeps them.

    The target gets one connection, which ends at once, as by a port scan.
    """

    def __init__(self, home: Home, target: HostPort, tell: Callable[[Hop], None]) -> None:
        self.hops: list[Hop] = []
        self._home = home
        self.target = target
        self._tell = tell

    async def walk(self) -> TuunelError | None:
        """Walk. What is broken first, or None when all works; a proxy that is not running counts only when nothing else is broken."""
        try:
            through = await self._decide()
            if through is None:
                await self._directly()
            else:
                await self._through(through)
        except _BrokenError as broken:
            return broken.error
        return next((hop.error for hop in self.hops if hop.name == "proxy" and hop.error is not None), None)

    # this machine

    async def _decide(self) -> ThroughDevice | None:
        """Ask the proxy that runs here; without one, know the names that it would."""
        status = await self._ask_proxy()
        host = self.target.host
        if status is None:
            with self._hop("name") as hop:
                device, inner = resolve_name(Devices(self._home.devices_file), host)
                hop.said = f"{device.name} is {device.id}"
            return ThroughDevice(device, inner)
        with self._hop("name" if _is_tuunel(host) else "route") as hop:
            way = await self._ask("route", host=host)
            hop.said = _said_of(way, self.target)
        if way["way"] == "direct":
            return None
        # The proxy has decided; the relays where the device is asked for are in the book.
        device, _ = resolve_name(Devices(self._home.devices_file), f"{way['name']}.tuunel")
        return ThroughDevice(device, way["host"])

    async def _ask_proxy(self) -> dict[str, Any] | None:
        with self._hop("proxy") as hop:
            try:
                status = await self._ask("status")
            except NotRunning as error:
                if not _is_tuunel(self.target.host):
                    raise
                # nc and forward need none: whoever uses these wants to know about the rest
                hop.missing = error
                hop.said = "none runs here: only nc and forward reach anything"
                return None
            hop.said = f"runs here, on {' and '.join(status['listen'])}"
            return status

    async def _ask(self, command: str, **arguments: str) -> dict[str, Any]:
        try:
            return await to_thread.run_sync(partial(control.call, self._home.socket("proxy"), command, **arguments))
        except NotRunning as error:
            raise NotRunning("no tuunel proxy runs here", "start it with 'tuunel proxy'") from error

    async def _directly(self) -> None:
        with self._hop("target") as hop:
            stream = await dial(self.target, allow=list, speaker=Speaker.LOCAL)
            hop.said = f"{self.target} took the connection from {stream.local.host}"
            stream.close()

    # the relay

    async def _through(self, through: ThroughDevice) -> None:
        with self._hop("enrolment") as hop:
            identity = IdentityKey.load_or_create(self._home.identity_key)
            hop.said = f"enrolled at {' and '.join(str(relay.address) for relay in through.device.relays)}"
        ways = by_each_relay(through.device)
        async with TunnelPool(identity, BufferPool(), warm=0) as tunnels:
            for device in ways:
                try:
                    tunnel = await self._open(tunnels, identity, device)
                    break
                except _BrokenError as broken:
                    passing = isinstance(broken.error, Failure) and broken.error.reason in RELAY_REASONS
                    if device is ways[-1] or not passing:
                        raise
            await self._to_target(tunnel, through.host)

    async def _open(self, tunnels: TunnelPool, identity: IdentityKey, device: Device) -> Tunnel:
        (relay,) = device.relays
        connection = await self._to_relay(identity, relay)
        tunnels.dial_pool(relay).add(connection)
        return await self._to_agent(tunnels, device)

    async def _to_relay(self, identity: IdentityKey, relay: KnownRelay) -> HopConnection:
        await self._look_up(relay)
        passed: list[tuple[Step, float]] = []
        started = time.monotonic()
        error: TuunelError | None = None
        connection: HopConnection | None = None
        try:
            connection = await connect(
                relay,
                identity,
                purpose=Purpose.DIAL,
                params=Params(Role.FORWARD, os.urandom(16)),
                passed=lambda step: passed.append((step, time.monotonic())),
            )
        except Failure as failure:
            error = failure
        ends = dict(passed)
        for name, step, said in (
            ("relay", Step.CONNECTED, f"connected to {relay.address}"),
            ("pin", Step.AUTHENTICATED, "it is the relay of the link"),
        ):
            if step not in ends:
                break
            self._say(name, said, ends[step] - started)
            started = ends[step]
        spent = time.monotonic() - started
        if connection is None:
            assert error is not None
            broken = "login" if Step.AUTHENTICATED in ends else "pin" if Step.CONNECTED in ends else "relay"
            self._break(broken, error, spent)
        self._say("login", "it knows this machine", spent)
        return connection

    async def _look_up(self, relay: KnownRelay) -> None:
        """Look the relay's name up for itself: that there is no such name is another fault than that nobody answers there."""
        if _is_address(relay.address.host):
            return
        with self._hop("dns") as hop:
            try:
                addresses = await resolve(relay.address.host, relay.address.port)
            except Failure as failure:
                raise Failure(Reason.RELAY_UNREACHABLE, detail=str(failure)) from failure
            hop.said = f"{relay.address.host} is {' '.join(map(str, addresses))}"

    # the agent

    async def _to_agent(self, tunnels: TunnelPool, device: Device) -> Tunnel:
        started = time.monotonic()
        try:
            tunnel = await tunnels.open(device)
        except Failure as failure:
            spent = time.monotonic() - started
            if failure.speaker is Speaker.RELAY:
                self._break("device", failure, spent)
            self._say("device", f"{device.name} is online")
            if failure.speaker is Speaker.AGENT:
                self._say("tunnel", _PROVEN)
                self._break("admission", failure, spent)
            self._break("tunnel", failure, spent)
        shaken = tunnel.rtt or 0.0
        self._say("device", f"{device.name} is online", time.monotonic() - started - shaken)
        self._say("tunnel", _PROVEN, shaken)
        self._say("admission", "it lets this machine in")
        return tunnel

    async def _to_target(self, tunnel: Tunnel, host: str) -> None:
        started = time.monotonic()
        try:
            request = Target(Command.TCP, host, self.target.port)
            with faults_told(tunnel):
                await tunnel.request(request)
                await tunnel.answer(ANSWER_TIMEOUT)
        except Failure as failure:
            tunnel.reset()
            spent = time.monotonic() - started
            named = bool(host) and not _is_address(host)
            if named and failure.reason is Reason.NAME_NOT_RESOLVED:
                self._break("lookup", failure, spent)
            if failure.reason in {Reason.POLICY_DENIED, Reason.POLICY_REVOKED, Reason.NOT_PAIRED}:
                self._break("policy", failure, spent)
            if failure.reason in _OF_THE_TARGET:
                if named:
                    self._say("lookup", f"the agent has found {host}")
                self._say("policy", "the agent allows the target")
            self._break("target", failure, spent)
        spent = time.monotonic() - started
        if host and not _is_address(host):
            self._say("lookup", f"the agent has found {host}")
        self._say("policy", "the agent allows the target")
        self._say("target", f"{host or 'localhost'} took the connection on port {self.target.port}", spent)
        await _part(tunnel)

    # telling

    @contextmanager
    def _hop(self, name: str) -> Iterator["_Looking"]:
        """Look at one part: what the block raises breaks the way there."""
        looking = _Looking()
        started = time.monotonic()
        try:
            yield looking
        except TuunelError as error:
            not_paired = isinstance(error, Failure) and error.reason is Reason.NOT_PAIRED
            self._break("enrolment" if not_paired else name, error, time.monotonic() - started)
        ok = None if looking.missing else True
        self._add(Hop(name, ok, looking.said, time.monotonic() - started, looking.missing))

    def _say(self, name: str, said: str, seconds: float | None = None) -> None:
        self._add(Hop(name, ok=True, said=said, seconds=seconds))

    def _break(self, name: str, error: TuunelError, seconds: float) -> NoReturn:
        self._add(Hop(name, ok=False, said=str(error), seconds=seconds, error=error))
        raise _BrokenError(error)

    def _add(self, hop: Hop) -> None:
        self.hops.append(hop)
        self._tell(hop)


class _Looking:
    """What was seen of one part; `missing` when it is not there and need not be."""

    def __init__(self) -> None:
        self.said = ""
        self.missing: TuunelError | None = None


class _BrokenError(Exception):
    """The way is broken here; the hop was told."""

    def __init__(self, error: TuunelError) -> None:
        super().__init__(str(error))
        self.error = error


async def _part(tunnel: Tunnel) -> None:
    """End the connection to the target as cleanly as it lets us in a moment."""
    with suppress(OSError, anyio.ClosedResourceError), anyio.move_on_after(PARTING):
        await tunnel.write_eof()
        await tunnel.records.receive(RecordType.FIN)
    tunnel.reset()


def _said_of(way: Mapping[str, Any], target: HostPort) -> str:
    if way["way"] == "direct":
        return "it goes from this machine, through no device"
    if _is_tuunel(target.host):
        return f"{way['name']} is {way['device_id']}"
    by = f"the route {way['route']}" if way["route"] else "--other"
    return f"it goes through the device {way['name']}, by {by}"


def _is_tuunel(host: str) -> bool:
    try:
        return parse_tuunel_name(host) is not None
    except Failure:  # malformed: it goes nowhere else all the same
        return True


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
