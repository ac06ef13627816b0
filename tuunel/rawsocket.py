"""A non-blocking socket that no event loop's transport owns: anyio's waits on it, and a close that is safe while tasks wait."""

import socket
from ipaddress import IPv6Address, ip_address
from typing import TypeAlias

import anyio

from tuunel.address import HostPort

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


class RawSocket:
    """Owns `sock`. After `close` every call that needs the socket raises anyio.ClosedResourceError, also in a task that waits."""

    __slots__ = ("_closed", "_sock", "_waiting")

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._closed = False
        self._waiting = 0

    @property
    def local(self) -> HostPort:
        """This end's address; an IPv4 address is written as one even on a dual-stack socket. Not for unix sockets. OSError once closed."""
        return host_port_of(self._sock.getsockname())

    def fileno(self) -> int:
        """The descriptor, -1 once closed. It stays this object's own."""
        return -1 if self._closed else self._sock.fileno()

    async def wait_readable(self) -> None:
        """Wait until something can be received: bytes, a datagram, an end or an error. Always yields to other tasks."""
        self._check_open()
        self._waiting += 1
        try:
            await anyio.wait_readable(self._sock)
        finally:
            self._stop_waiting()
        self._check_open()

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
        if self._closed:
            return
        self._closed = True
        if self._waiting:
            # The descriptor must not be reused while a wait on it is still winding up: the last waiter closes it.
            anyio.notify_closing(self._sock)
        else:
            self._sock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

    def _stop_waiting(self) -> None:
        self._waiting -= 1
        if self._closed and not self._waiting:
            self._sock.close()


def host_port_of(address: SocketAddress) -> HostPort:
    """A socket's address as the socket module gives it; an IPv4 address that a dual-stack socket has mapped is unwrapped."""
    ip = ip_address(address[0])
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return HostPort(str(mapped or ip), address[1])
