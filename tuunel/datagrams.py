"""UDP sockets that never block the event loop: what a flow, an association and a UDP forward send and receive through."""

import errno
import socket
from contextlib import suppress
from typing import Final

from tuunel.address import HostPort
from tuunel.errors import ListenError
from tuunel.rawsocket import RawSocket, SocketAddress
from tuunel.rawstream import Bytes

RECEIVE_SIZE: Final = 65536  # bytes; UDP over IPv6 carries 65,527 (RFC 768, RFC 8200), so that no datagram is ever cut short
# Bytes that the kernel is asked to hold for a socket, each way: four of the largest datagrams. Some systems send no datagram that is
# larger than their send buffer, which is 9 KiB unless it is asked for more.
KERNEL_BUFFER: Final = 4 * RECEIVE_SIZE
# Datagrams that one socket holds: each takes several hundred bytes of the kernel, even an empty one.
MAX_QUEUED: Final = KERNEL_BUFFER // 128
_LOST: Final = frozenset({errno.ENOBUFS, errno.EMSGSIZE})
_ELSEWHERE: Final = "choose another place to listen on"
_ADVICE: Final = {
    errno.EADDRINUSE: "another program uses that UDP port: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.EACCES: "ports below 1024 need a privilege: choose a higher port",
}


class DatagramSocket(RawSocket):
    """A UDP socket, connected or bound. Owns `sock`.

    Sending and receiving never wait. SO_BROADCAST is not set, so nothing here reaches a broadcast address.
    """

    __slots__ = ()

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with suppress(OSError):  # the system allows less: what it gave stays
                sock.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER)

    def receive(self) -> bytes | None:
        """Take the next datagram, whole; None when there is none.

        On a connected socket OSError tells that an earlier datagram was refused, and ECONNREFUSED that nobody listens there.
        """
        self._check_open()
        try:
            return self._sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return None

    def receive_from(self) -> tuple[bytes, SocketAddress] | None:
        """Take the next datagram, whole, with its sender as `send_to` takes it; None when there is none."""
        self._check_open()
        try:
            data, address = self._sock.recvfrom(RECEIVE_SIZE)
        except BlockingIOError:
            return None
        return data, address

    def drop_queued(self) -> int:
        """Throw away what has come by now: how many datagrams that were."""
        dropped = 0
        for _ in range(MAX_QUEUED):
            with suppress(OSError):  # the kernel's word on a datagram that was sent
                if self.receive_from() is None:
                    break
            dropped += 1
        return dropped

    def send(self, data: Bytes) -> bool:
        """Send one datagram to the address that the socket is connected to.

        False: it is lost, because the kernel takes no more now, or none of that size. OSError as `receive`; it is lost then, too.
        """
        self._check_open()
        try:
            self._sock.send(data)
        except BlockingIOError:
            return False
        except OSError as error:
            return _is_lost(error)
        return True

    def send_to(self, data: Bytes, address: SocketAddress) -> bool:
        """Send one datagram to an address that `receive_from` gave; as `send`."""
        self._check_open()
        try:
            self._sock.sendto(data, address)
        except BlockingIOError:
            return False
        except OSError as error:
            return _is_lost(error)
        return True


def _is_lost(error: OSError) -> bool:
    """Tell of an error that concerns one datagram only, as what `send` returns; raise any other."""
    if error.errno in _LOST:
        return False
    raise error


def bind_datagrams(host: str, port: int = 0) -> DatagramSocket:
    """Bind a UDP socket to one IP address and `port`, 0: a free one; the caller owns it. `::` takes both IP versions.

    `host` is an IPv4 or IPv6 address, no name: nothing is looked up. ListenError when it cannot be bound.
    """
    where = HostPort(host, port)
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            sock.bind(address)
            return DatagramSocket(sock)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(
            f"cannot receive datagrams on {where}: {error.strerror or error}", _ADVICE.get(error.errno or 0, _ELSEWHERE)
        ) from error
