"""UDP sockets of the app and the service."""

import socket
import sys
import time

from bench.apps import datagram
from bench.place import LOOPBACK

_BUFFER = 4 * 1024 * 1024  # asked for; the kernel gives what net.core.rmem_max allows
_REACH_SECONDS = 20.0
_ASK_AGAIN_SECONDS = 0.1


def bound(address: str = LOOPBACK) -> socket.socket:
    """Return a socket on a free port of `address`, with the largest receive buffer that the kernel gives."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    made.bind((address, 0))
    return made


def reach(address: tuple[str, int]) -> socket.socket:
    """Return a socket connected to `address`, once the service behind it has sent an echo back. The process ends when none comes for 20 s.

    The path is warm then: what a system builds for a new flow is there.
    """
    made = bound("0.0.0.0")
    made.connect(address)
    made.settimeout(_ASK_AGAIN_SECONDS)
    end = time.monotonic() + _REACH_SECONDS
    while time.monotonic() < end:
        try:
            made.send(datagram.write(datagram.ECHO))
            made.recv(datagram.SIZE)
        except ConnectionRefusedError:
            time.sleep(_ASK_AGAIN_SECONDS)  # its listener is not there yet
        except TimeoutError:
            pass
        else:
            _drain(made)
            return made
    made.close()
    sys.exit(f"no echo through {address[0]}:{address[1]} within {_REACH_SECONDS:g} s")


def _drain(made: socket.socket) -> None:
    """Take the echoes of earlier attempts away, until none has come for a moment."""
    while True:
        try:
            made.recv(datagram.SIZE)
        except TimeoutError:
            return
