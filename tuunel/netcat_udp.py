"""What `tuunel nc -u` does: one read of standard input is one datagram, and each datagram that comes is one write to standard output.

One UDP flow, over a tunnel of its own that runs in a second thread. Source: docs/spec/records.md section 6.
"""

import math
import os
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

import anyio

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.datagrams import RECEIVE_SIZE, DatagramSocket
from tuunel.deviceflows import DeviceFlows, Flow
from tuunel.devices import Devices
from tuunel.e2e.wire import MAX_DATAGRAM
from tuunel.errors import Failure
from tuunel.forwarding import Destination
from tuunel.identity import IdentityKey
from tuunel.netcat import write_out
from tuunel.pool import TunnelPool
from tuunel.routing import resolve_name
from tuunel.settings import Home
from tuunel.tunnel import Tunnel

QUIET: Final = 5.0  #: seconds after the end of standard input without a datagram, after which no more is waited for
ROOM: Final = 0.01  #: seconds until a datagram for which there is no room is offered again
_END: Final = b""  # between the threads: no more datagrams. An empty one of the target's, which would write nothing, is never handed on


def carry_datagrams(home: Home, to: Destination) -> int:
    """Exchange datagrams with `to`; returns 0 when standard input has ended and nothing has come for QUIET seconds.

    Raises Failure when the flow was refused, or could not be had. Standard input is read no faster than datagrams leave here;
    answers are dropped while standard output takes none.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    outcome: Future[None] = Future()
    threading.Thread(target=_run_flow, args=(home, to, theirs, outcome), daemon=True).start()
    threading.Thread(target=_read_in, args=(ours,), daemon=True).start()  # a read of standard input cannot be interrupted
    while datagram := ours.recv(RECEIVE_SIZE):
        write_out(datagram)
    outcome.result()
    return 0


def _read_in(inner: socket.socket) -> None:
    with suppress(OSError):
        while datagram := os.read(0, MAX_DATAGRAM):
            inner.send(datagram)
    with suppress(OSError):
        inner.send(_END)


def _run_flow(home: Home, to: Destination, inner: socket.socket, outcome: "Future[None]") -> None:
    try:
        anyio.run(_exchange, home, to, DatagramSocket(inner))
        outcome.set_result(None)
    except BaseException as error:  # the other thread waits for it, whatever happened here
        outcome.set_exception(error)
    inner.settimeout(None)
    inner.send(_END)


async def _exchange(home: Home, to: Destination, inner: DatagramSocket) -> None:
    identity = IdentityKey.load_or_create(home.identity_key)
    device, host = resolve_name(Devices(home.devices_file), to.host)
    async with TunnelPool(identity, BufferPool(), warm=0) as tunnels:
        async with anyio.create_task_group() as tasks:
            flows = DeviceFlows(tunnels, device, tasks)
            exchange = _Exchange(flows, HostPort(host, to.port), inner)
            await exchange.run()
            await flows.aclose()
            tasks.cancel_scope.cancel()
        if exchange.failure is not None:
            raise exchange.failure


class _Exchange:
    """The user of one flow, or of one after the other: an agent ends one that is idle, and the next datagram opens it anew."""

    def __init__(self, flows: DeviceFlows, target: HostPort, inner: DatagramSocket) -> None:
        self.failure: Failure | None = None
        self._flows = flows
        self._target = target
        self._inner = inner
        self._flow: Flow | None = None
        self._is_open = False
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Send what comes from the other thread to its end, then wait until it is quiet; or until the flow has failed: see `failure`."""
        with self._scope:
            try:
                while datagram := await self._next_datagram():
                    while not self._flow_in_use().send(datagram):  # noqa: ASYNC110  a flow does not say when it has room
                        await anyio.sleep(ROOM)
                    self._flows.flush()
            except Failure as failure:
                self.failure = failure
                return
            await self._until_quiet()

    async def _next_datagram(self) -> bytes:
        while True:
            await self._inner.wait_readable()
            if (datagram := self._inner.receive()) is not None:
                return datagram

    def _flow_in_use(self) -> Flow:
        if self._flow is None:
            self._flow = self._flows.open(self._target, self)
        return self._flow

    async def _until_quiet(self) -> None:
        while self._flow is not None:
            self._news = anyio.Event()
            # a flow that is not open yet is waited for: opening its tunnel has its own limits
            with anyio.move_on_after(QUIET if self._is_open else math.inf) as quiet:
                await self._news.wait()
            if quiet.cancelled_caught:
                return

    # what the flow says

    def opened(self, tunnel: Tunnel) -> None:
        self._is_open = True
        self._news.set()

    def deliver(self, payload: bytes) -> None:
        self._news.set()
        if payload:
            self._inner.send(payload)

    def dropped(self, size: int) -> None:
        pass

    def ended(self, failure: Failure | None) -> None:
        self._flow, self._is_open = None, False
        self._news.set()
        if failure is not None:
            self.failure = failure
            self._scope.cancel()
