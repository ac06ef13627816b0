"""TCP connections of the apps, through a system's door."""

import socket
import struct
import sys
import time

from bench.apps import stream
from bench.door import Door

TIMEOUT = 30.0
_REACH_SECONDS = 20.0
_ASK_AGAIN_SECONDS = 0.1
_GREETING, _GREETED = b"\5\1\0", b"\5\0"  # RFC 1928: version 5, one method offered, no authentication; accepted
_ADDRESS_SIZES = {1: 4, 4: 16}


class Refused(OSError):
    """The SOCKS5 server did not connect, or the connection ended early."""


def connect(door: Door) -> socket.socket:
    """Return a blocking connection to the service; OSError when there is none. Small writes leave at once, as in any app that cares."""
    made = socket.create_connection((door.host, door.port), TIMEOUT)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if door.target:
            _ask_for(made, *door.target)
    except BaseException:
        made.close()
        raise
    return made


def _ask_for(made: socket.socket, host: str, port: int) -> None:
    """Have a SOCKS5 server connect, as curl does: greet, wait, ask, wait."""
    made.sendall(_GREETING)
    if receive_exactly(made, 2) != _GREETED:
        raise Refused("no SOCKS5 server, or one with a password")
    name = host.encode("ascii")
    made.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + struct.pack("!H", port))
    _, reply, _, kind = receive_exactly(made, 4)
    if reply:
        raise Refused(f"SOCKS5 reply {reply}")
    size = _ADDRESS_SIZES.get(kind) or receive_exactly(made, 1)[0]
    receive_exactly(made, size + 2)


def receive_exactly(made: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes; Refused when the connection ends before."""
    data = b""
    while len(data) < size:
        more = made.recv(size - len(data))
        if not more:
            raise Refused(f"the connection ended after {len(data)} of {size} bytes")
        data += more
    return data


def first_byte(door: Door) -> float:
    """Return how long it takes from the connect to the first byte of an answer; OSError when there is none."""
    start = time.monotonic()
    with connect(door) as made:
        made.sendall(stream.order(stream.ECHO) + b"?")
        receive_exactly(made, 1)
        return time.monotonic() - start


def reach(door: Door) -> float:
    """Return once an echo has come back through `door`: how long that took from its connect on. The process ends after 20 s without."""
    end = time.monotonic() + _REACH_SECONDS
    reason: OSError | None = None
    while time.monotonic() < end:
        try:
            return first_byte(door)
        except OSError as error:
            reason = error
            time.sleep(_ASK_AGAIN_SECONDS)
    sys.exit(f"no echo through {door.host}:{door.port} within {_REACH_SECONDS:g} s: {reason}")
