"""The role of `tuunel forward`: ports and unix sockets of this machine that lead to services behind devices.

Source: docs/spec/forward.md.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus

from tuunel import control
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.descriptors import raise_limit
from tuunel.e2e.wire import Command
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure
from tuunel.events import Emit, Ready
from tuunel.forwarding import Destination, Forwarding
from tuunel.frontdoor import Request
from tuunel.guardedstream import GuardedStream
from tuunel.hostguard import HostGuard, refusal
from tuunel.listen import address_of, close_listener, drop_waiting, open_listeners, open_unix_listener, serve
from tuunel.listeners import SUFFIX, Announcement
from tuunel.outbound import Outbound, dial_for_client, pipe
from tuunel.oversight import Oversight
from tuunel.rawstream import RawStream
from tuunel.reach import Reach
from tuunel.routing import ThroughDevice, resolve_name
from tuunel.settings import Home
from tuunel.statefile import lock_of
from tuunel.udpforward import UdpForward, open_sockets


class Forward:
    """`tuunel forward`. Constructing it reads and creates state (StateError), and looks every name up (Failure UNKNOWN_NAME, NOT_PAIRED).

    With `http_hosts` (`tuunel.hostguard.parse_hosts`) the byte streams carry HTTP requests for these hosts, and nothing else.
    """

    def __init__(self, home: Home, *, forwardings: Sequence[Forwarding], http_hosts: frozenset[str], emit: Emit) -> None:
        home.ensure()
        self._home = home
        self._name = f"forward-{os.getpid()}"
        self._forwardings = forwardings
        self._http_hosts = http_hosts
        self._emit = emit
        self._reach = Reach(home, emit)
        self._own_ports = Announcement(home, self._name)
        self._places: list[dict[str, str]] = []
        self._streams: list[tuple[list[socket.socket], Destination]] = []
        self._datagrams: list[UdpForward] = []
        self._stop = anyio.Event()
        for forwarding in forwardings:
            self._way(forwarding.to)

    async def run(self) -> None:
        """Serve until `stop` or cancellation. ListenError when a place is taken."""
        raise_limit()
        async with self._reach:
            with self._own_ports, ExitStack() as closing:
                self._tidy_up(closing)
                async with anyio.create_task_group() as background:
                    for forwarding in self._forwardings:
                        await self._open(forwarding, closing)
                    await background.start(self._serve_socket)
                    self._be_present()
                    self._emit(Ready("forward", self._places[0]["listen"], forwards=tuple(self._places)))
                    await self._serve()
                    background.cancel_scope.cancel()

    def stop(self) -> None:
        """Take no more clients; `run` returns when those that are connected have finished. UDP knows no such end, and ends at once."""
        self._stop.set()

    async def reload(self) -> None:
        """Read the book of devices, as every connection does: StateError when it is unusable."""
        self._reach.devices.devices()

    def kill(self, number: int) -> None:
        """End a connection because a person wants it. UsageError when there is none of this number."""
        self._reach.ledger.kill(number)

    async def _serve(self) -> None:
        async with anyio.create_task_group() as clients:
            for datagrams in self._datagrams:
                clients.start_soon(datagrams.run, self._stop)
            async with anyio.create_task_group() as accepting:
                for listeners, to in self._streams:
                    accepting.start_soon(serve, listeners, partial(self._serve_client, to), clients)
                await self._stop.wait()
                accepting.cancel_scope.cancel()

    def _be_present(self) -> None:
        for forwarding in self._forwardings:
            for relay in self._way(forwarding.to).device.relays:
                self._reach.be_present(relay)

    def _way(self, to: Destination) -> ThroughDevice:
        device, host = resolve_name(self._reach.devices, to.host)
        return ThroughDevice(device, to.path or host)

    # places

    async def _open(self, forwarding: Forwarding, closing: ExitStack) -> None:
        listen, to = forwarding.listen, forwarding.to
        if isinstance(listen, str):
            self._add_streams([open_unix_listener(Path(listen))], to, closing)
            self._places.append({"listen": listen, "target": str(to)})
            return
        if to.udp:
            sockets = open_sockets(listen)
            addresses = self._add_datagrams(sockets, to, closing)
            self._own_ports.add(*addresses)
            for each in sockets:
                each.drop_queued()  # nobody has been told of the port yet, but a guest of the agent may have guessed it
        else:
            listeners = await open_listeners(listen)
            self._add_streams(listeners, to, closing)
            addresses = [address_of(listener) for listener in listeners]
            self._own_ports.add(*addresses)
            drop_waiting(listeners)  # for the same reason
        self._places.append({"listen": str(HostPort(listen.host, addresses[0].port)), "target": str(to)})

    def _add_streams(self, listeners: list[socket.socket], to: Destination, closing: ExitStack) -> None:
        for listener in listeners:
            closing.callback(close_listener, listener)
        self._streams.append((listeners, to))

    def _add_datagrams(self, sockets: list[DatagramSocket], to: Destination, closing: ExitStack) -> list[HostPort]:
        for each in sockets:
            closing.callback(each.close)
        self._datagrams.append(UdpForward(sockets, HostPort(to.host, to.port), lambda _: self._way(to), self._reach))
        return [each.local for each in sockets]

    # byte streams

    async def _serve_client(self, to: Destination, stream: RawStream) -> None:
        """Serve one client until it is done. Owns `stream`; whoever calls resets it when this raises."""
        if self._http_hosts:
            await self._serve_guarded(to, GuardedStream(stream, HostGuard(self._http_hosts)), stream)
            return
        outbound, ahead = await dial_for_client(partial(self._dial, to), _request(to), stream, verbatim=True)
        try:
            await outbound.send(self._reach.buffers, ahead)
        except BaseException:
            outbound.reset()
            raise
        await pipe(stream, outbound, self._reach.buffers)

    async def _serve_guarded(self, to: Destination, guarded: GuardedStream, stream: RawStream) -> None:
        try:
            early = await guarded.first_request()
        except Failure as failure:
            self._tell_refused(to, failure)
            await stream.send_all(refusal(failure))
            early = b""
        if not early:
            await stream.aclose()
            return
        outbound, ahead = await dial_for_client(partial(self._dial, to), _request(to, early), stream)
        try:
            guarded.take(ahead)
        except Failure as failure:
            outbound.reset(str(failure.reason))
            raise
        await pipe(guarded, outbound, self._reach.buffers)

    async def _dial(self, to: Destination, request: Request, early: EarlyBytes) -> Outbound:
        try:
            way = self._way(to)
        except Failure as failure:
            self._tell_refused(to, failure)
            raise
        command = Command.UNIX if to.path else Command.TCP
        return await self._reach.dial(str(to), way, to.port, door=request.door, early=early, command=command)

    def _tell_refused(self, to: Destination, failure: Failure) -> None:
        self._reach.ledger.open(str(to), device="", door="forward", path="relay").end(str(failure.reason), str(failure))

    # the control socket

    def _tidy_up(self, closing: ExitStack) -> None:
        """Remove the sockets that crashed forwards have left, and arrange for our own's lock to go: nobody else ever has our name."""
        for path in self._home.run_dir.glob("forward-*.sock*"):
            if not path.with_name(path.name.partition(".")[0] + SUFFIX).exists():  # a living one has announced itself
                path.unlink(missing_ok=True)
        closing.callback(lock_of(self._home.socket(self._name)).unlink, missing_ok=True)

    async def _serve_socket(self, *, task_status: TaskStatus[None]) -> None:
        handlers = Oversight("forward", self._reach.ledger, self._facts).handlers
        await control.serve(self._home.socket(self._name), handlers, task_status=task_status)

    def _facts(self) -> dict[str, Any]:
        return {"listen": [place["listen"] for place in self._places], "forwards": self._places, **self._reach.facts()}


def _request(to: Destination, early: bytes = b"") -> Request:
    return Request(HostPort(to.host, to.port), "forward", early)
