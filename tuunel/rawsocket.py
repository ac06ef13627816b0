"""A non-blocking socket that no event loop's transport owns: waits on it, and a close that is safe while tasks wait.

What happens over and over goes through `on_readable`: on asyncio it runs in the event loop's own callback, for which no task is woken
and no descriptor registered anew; elsewhere (trio) it is a loop around `wait_readable`.
"""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Any, Generic, TypeAlias, TypeVar

import anyio

from tuunel.address import HostPort

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
Result = TypeVar("Result")


class RawSocket:
    """Owns `sock`. After `close` every call that needs the socket raises anyio.ClosedResourceError, also in a task that waits."""

    __slots__ = ("_reading", "_sock", "_waiting", "closed")

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._sock = sock
        self.closed = False  #: whether this object was closed; who else uses its socket cannot close it
        self._waiting = 0
        self._reading: _Reading[Any] | None = None

    @property
    def local(self) -> HostPort:
        """This end's address; an IPv4 address is written as one even on a dual-stack socket. Not for unix sockets. OSError once closed."""
        return host_port_of(self._sock.getsockname())

    def fileno(self) -> int:
        """The descriptor, -1 once closed. It stays this object's own."""
        return -1 if self.closed else self._sock.fileno()

    async def wait_readable(self) -> None:
        """Wait until something can be received: bytes, a datagram, an end or an error. Always yields to other tasks."""
        self._check_readable()
        self._waiting += 1
        try:
            await anyio.wait_readable(self._sock)
        finally:
            self._stop_waiting()
        self._check_open()

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        """Call `step` whenever something can be received, until it gives something else than None: that is returned.

        `step` must not wait, need not take all that is there, and may close this socket. What it raises is raised here. No other task may
        wait for reading meanwhile (anyio.BusyResourceError). A cancelled call has lost nothing but what the last step has given.
        """
        loop = _running_asyncio()
        if loop is None:
            return await self._step_by_step(step)
        self._check_readable()
        self._waiting += 1
        reading = _Reading(loop, self._sock.fileno(), step)
        self._reading = reading
        try:
            return await reading.result
        finally:
            self._reading = None
            reading.stop()
            self._stop_waiting()

    async def _step_by_step(self, step: Callable[[], Result | None]) -> Result:
        result = None
        while result is None:
            await self.wait_readable()
            result = step()
        return result

    async def wait_writable(self) -> None:
        """Wait until something can be written. Always yields to other tasks."""
        self._check_open()
        self._waiting += 1
        try:
            await anyio.wait_writable(self._sock)
        finally:
            self._stop_waiting()
        self._check_open()

    def close(self) -> None:
        """Close without lingering; tasks that wait on the socket get anyio.ClosedResourceError. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._reading is not None:
            self._reading.close()
        if self._waiting:
            # The descriptor must not be reused while a wait on it is still winding up: the last waiter closes it.
            anyio.notify_closing(self._sock)
        else:
            self._sock.close()

    def _check_open(self) -> None:
        if self.closed:
            raise anyio.ClosedResourceError

    def _check_readable(self) -> None:
        self._check_open()
        if self._reading is not None:
            raise anyio.BusyResourceError("reading from")

    def _stop_waiting(self) -> None:
        self._waiting -= 1
        if self.closed and not self._waiting:
            self._sock.close()


class _Reading(Generic[Result]):
    """The steps of one `on_readable` as callbacks of asyncio's loop. `result` is what they come to."""

    __slots__ = ("_fd", "_in_step", "_loop", "_step", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, step: Callable[[], Result | None]) -> None:
        self.result: asyncio.Future[Result] = loop.create_future()
        self._loop = loop
        self._fd = fd
        self._step = step
        self._in_step = False
        loop.add_reader(fd, self._ready)

    def stop(self) -> None:
        """Call no step any more. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1

    def close(self) -> None:
        """The socket closes. A step that closes it itself may still give a result."""
        self.stop()
        if not self._in_step:
            self._fail(anyio.ClosedResourceError())

    def _ready(self) -> None:
        if self.result.done():  # cancelled, and the task has not run since
            return
        self._in_step = True
        try:
            result = self._step()
        except Exception as error:
            self._fail(error)
            return
        finally:
            self._in_step = False
        if result is not None:
            self.stop()
            self.result.set_result(result)
        elif self._fd < 0:
            self._fail(anyio.ClosedResourceError())

    def _fail(self, error: Exception) -> None:
        self.stop()
        if not self.result.done():
            self.result.set_exception(error)


def _running_asyncio() -> asyncio.AbstractEventLoop | None:
    """The loop that runs here, if it is asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def host_port_of(address: SocketAddress) -> HostPort:
    """A socket's address as the socket module gives it; an IPv4 address that a dual-stack socket has mapped is unwrapped."""
    ip = ip_address(address[0])
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return HostPort(str(mapped or ip), address[1])
