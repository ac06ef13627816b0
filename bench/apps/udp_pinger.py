"""An app that sends echoes at a steady rate and measures each round trip.

Usage: udp_pinger HOST PORT. A JSON line in, `{"rate", "seconds"}`; a JSON line out, `{"sent", "rtts"}`, round trips in seconds. Its
first line, `{}`, says that the service has answered. It never waits for an answer before it sends the next, so that a stall is seen by
every datagram that falls into it.
"""

import json
import select
import socket
import sys
import time

from bench.apps import datagram
from bench.apps.udp_socket import reach

_LAST_ANSWERS_SECONDS = 1.0


def ping(sock: socket.socket, rate: float, seconds: float) -> tuple[int, list[float]]:
    """Send `rate * seconds` echoes; return how many went out, and the round trip of each answer."""
    sock.settimeout(0)
    total = int(rate * seconds)
    payload = datagram.write(datagram.ECHO)
    rtts: list[float] = []
    start = time.monotonic()
    for number in range(total):
        _collect(sock, rtts, total, until=start + number / rate)
        datagram.stamp(payload, datagram.ECHO, 0, time.monotonic_ns())
        sock.send(payload)
    _collect(sock, rtts, total, until=time.monotonic() + _LAST_ANSWERS_SECONDS)
    return total, rtts


def _collect(sock: socket.socket, rtts: list[float], total: int, *, until: float) -> None:
    """Take answers as they come, until the clock says `until` or all are here."""
    while len(rtts) < total and (left := until - time.monotonic()) > 0:
        if select.select([sock], [], [], left)[0]:
            sent_ns = datagram.read(sock.recv(datagram.SIZE)).sent_ns
            rtts.append((time.monotonic_ns() - sent_ns) / 1e9)


def main(host: str, port: str) -> None:
    """Do as told until stdin ends."""
    sock = reach((host, int(port)))
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        sent, rtts = ping(sock, order["rate"], order["seconds"])
        print(json.dumps({"sent": sent, "rtts": rtts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
