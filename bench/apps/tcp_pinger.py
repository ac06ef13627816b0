"""An app that sends a little, waits for the answer, and sends again: on one connection, as a terminal or a database does.

Usage: tcp_pinger DOOR. A JSON line in, `{"size", "seconds"}`; a JSON line out, `{"rtts"}`, round trips in seconds.
"""

import time
from collections.abc import Mapping
from typing import Any

from bench.apps import stream
from bench.apps.orders import obey
from bench.apps.tcp_socket import connect, receive_exactly
from bench.door import Door

_WARM_UP = 100  # round trips that do not count


def ping(door: Door, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """Do one order."""
    size = order["size"]
    message = bytes(size)
    rtts: list[float] = []
    with connect(door) as sock:
        sock.sendall(stream.order(stream.ECHO))
        for _ in range(_WARM_UP):
            sock.sendall(message)
            receive_exactly(sock, size)
        now = time.monotonic()
        end = now + order["seconds"]
        while now < end:
            before = now
            sock.sendall(message)
            receive_exactly(sock, size)
            now = time.monotonic()
            rtts.append(now - before)
    return {"rtts": rtts}


if __name__ == "__main__":
    obey(ping)
