"""An app that holds many connections which once carried an echo and then nothing.

Usage: tcp_idler DOOR. A JSON line in, `{"count"}`; a JSON line out, `{"seconds"}`, once so many connections are held. They end with it.
"""

import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.apps import stream
from bench.apps.orders import obey
from bench.apps.tcp_socket import connect, receive_exactly
from bench.door import Door

_AT_ONCE = 16

_held: list[socket.socket] = []


def _open(door: Door) -> None:
    sock = connect(door)
    _held.append(sock)
    sock.sendall(stream.order(stream.ECHO) + b"?")
    receive_exactly(sock, 1)


def hold(door: Door, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """Do one order."""
    start = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(_open, [door] * order["count"]):
            pass
    return {"seconds": time.monotonic() - start}


if __name__ == "__main__":
    obey(hold)
