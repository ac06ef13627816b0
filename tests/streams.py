"""Sockets for the tests of the plumbing: connected pairs, ones that are full, and ones that end by a reset."""

import socket
import struct
from contextlib import suppress

from tuunel.rawstream import RawStream


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one unix connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def reset_socket(sock: socket.socket) -> None:
    """Close it so that the peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(stream: RawStream) -> int:
    """Write to a stream until its socket takes no more: how many bytes that were."""
    filled = 0
    while sent := stream.send_now(bytes(65536)):
        filled += sent
    return filled


def drain(sock: socket.socket) -> bytes:
    """Read a blocking socket to its end. ConnectionResetError when it ends by a reset."""
    data = bytearray()
    while part := sock.recv(1 << 20):
        data += part
    return bytes(data)


def close_all(*socks: socket.socket) -> None:
    """Close sockets, whatever state they are in."""
    for sock in socks:
        with suppress(OSError):
            sock.close()
