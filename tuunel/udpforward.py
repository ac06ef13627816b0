"""A UDP forward: each client address that sends to its sockets gets a flow of its own. Source: docs/spec/forward.md section 3."""

import errno
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Final

import anyio

from tuunel.address import HostPort
from tuunel.association import Route
from tuunel.datagrams import DatagramSocket, bind_datagrams
from tuunel.errors import ListenError
from tuunel.listen import LOOPBACKS, NO_SUCH_FAMILY, PORT_ATTEMPTS
from tuunel.outbound import Datagrams
from tuunel.reach import Reach

BURST: Final = 32  #: datagrams that are taken at a time: 2 MiB at most, before others have their turn


def open_sockets(where: HostPort) -> list[DatagramSocket]:
    """Bind UDP sockets for `where`, an IP address or `localhost`; the caller owns them. All have the same port. ListenError.

    `localhost` is 127.0.0.1 and ::1, or 127.0.0.1 alone where there is no IPv6. Port 0 is a free one.
    """
    if where.host != "localhost":
        return [bind_datagrams(where.host, where.port)]
    for attempt in range(PORT_ATTEMPTS):
        first = bind_datagrams(LOOPBACKS[0], where.port)
        try:
            return [first, bind_datagrams(LOOPBACKS[1], first.local.port)]
        except ListenError as error:
            code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            if code in NO_SUCH_FAMILY:
                return [first]
            first.close()
            if code != errno.EADDRINUSE or where.port or attempt + 1 == PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


class UdpForward:
    """Carries datagrams between the clients of `sockets` and `target`, whose way `route` knows. Owns the sockets."""

    def __init__(self, sockets: Sequence[DatagramSocket], target: HostPort, route: Route, reach: Reach) -> None:
        self._sockets = sockets
        self._target = target
        self._route = route
        self._reach = reach

    async def run(self, stop: anyio.Event) -> None:
        """Carry until `stop` is set; ends every flow then, and tells the agent. Cancelled: at once."""
        try:
            async with (
                self._reach.associate(self._route, door="forward", deliver=self._deliver) as datagrams,
                anyio.create_task_group() as tasks,
            ):
                for number in range(len(self._sockets)):
                    tasks.start_soon(self._receive, number, datagrams)
                await stop.wait()
                tasks.cancel_scope.cancel()
        finally:
            for socket in self._sockets:
                socket.close()

    async def _receive(self, number: int, datagrams: Datagrams) -> None:
        socket = self._sockets[number]

        def step() -> None:
            for _ in range(BURST):
                received = None
                with suppress(OSError):  # the kernel's word on an answer that was sent: its client has gone
                    received = socket.receive_from()
                if received is None:
                    break
                payload, client = received
                datagrams.send(self._target, payload, key=(number, client))
            datagrams.flush()

        await socket.on_readable(step)

    def _deliver(self, key: Hashable, payload: bytes) -> bool:
        assert isinstance(key, tuple)
        number, client = key
        with suppress(OSError, anyio.ClosedResourceError):  # no way to the client now; or the forward is just ending
            return self._sockets[number].send_to(payload, client)
        return False
