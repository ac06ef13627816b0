"""A non-blocking socket that no event loop's transport owns: waits on it, and a close that is safe while tasks wait.

What happens over and over goes through `on_readable`: on asyncio it runs in the event loop's own callback, for which no task is woken
and no descriptor registered anew, from one use to the next; elsewhere (trio) it is a loop around `wait_readable`.
"""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeAlias, TypeVar

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
        self._reading: _Reading | None = None

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
        if self._reading is not None:
            self._reading.stop()
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
        reading = self._reading
        if reading is None:
            reading = self._reading = _Reading(loop, self._sock.fileno())
        self._waiting += 1
        try:
            return await reading.begin(step)
        except BaseException:
            reading.stop()
            raise
        finally:
            reading.end()
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
        if self._reading is not None and self._reading.busy:
            raise anyio.BusyResourceError("reading from")

    def _stop_waiting(self) -> None:
        self._waiting -= 1
        if self.closed and not self._waiting:
            self._sock.close()


class _Reading:
    """What a socket's `on_readable` are to asyncio's loop: their steps as its callbacks, and one registration that outlives each of them.

    Most begin where the last has ended. What comes while nobody reads ends the registration: the loop would tell of it again and again.
    """

    __slots__ = ("_fd", "_in_step", "_loop", "_registered", "_result", "_step")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._registered = False
        self._in_step = False
        self._step: Callable[[], Any] | None = None
        self._result: asyncio.Future[Any]

    @property
    def busy(self) -> bool:
        """Whether somebody reads."""
        return self._step is not None

    def begin(self, step: Callable[[], Result | None]) -> "asyncio.Future[Result]":
        """Call `step` from now on; what comes of it. `end` must follow."""
        self._step = step
        self._result = self._loop.create_future()
        if not self._registered:
            self._registered = True
            self._loop.add_reader(self._fd, self._ready)
        return self._result

    def end(self) -> None:
        """Nobody reads any more."""
        self._step = None
        del self._result

    def stop(self) -> None:
        """End the registration. Idempotent."""
        if self._registered:
            self._registered = False
            self._loop.remove_reader(self._fd)

    def close(self) -> None:
        """The socket closes. A step that closes it itself may still give a result."""
        self.stop()
        if self._step is not None and not self._in_step:
            self._fail(anyio.ClosedResourceError())

    def _ready(self) -> None:
        if self._step is None or self._result.done():  # nobody reads, or the task that has read has not run since
            self.stop()
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
            self._result.set_result(result)
        elif not self._registered:
            self._fail(anyio.ClosedResourceError())

    def _fail(self, error: Exception) -> None:
        self.stop()
        if not self._result.done():
            self._result.set_exception(error)


def _running_asyncio() -> asyncio.AbstractEventLoop | None:
    """The loop that runs here, if it is asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def host_port_of(address: SocketAddress) -> HostPort:
    """A socket's address as the socket module gives it; an IPv4 address that a dual-stack socket has mapped is unwrapped."""
    if len(address) == 2:
        return HostPort(*address)
    ip = ip_address(address[0])
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return HostPort(str(mapped or ip), address[1])
