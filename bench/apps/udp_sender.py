"""An app that sends datagrams at the rates it is told.

Usage: udp_sender HOST PORT. A JSON line in, `{"trial", "rate", "seconds"}`; a JSON line out, `{"sent", "seconds"}`. Its first line,
`{}`, says that the service has answered.
"""

import contextlib
import json
import socket
import sys
import time

from bench.apps import datagram
from bench.apps.udp_socket import reach

_PAUSE = 0.000_2  # between two looks at the clock: bursts stay small, and the core is left to the others


def send(sock: socket.socket, trial: int, rate: float, seconds: float) -> tuple[int, float]:
    """Send at `rate` per second for `seconds`, evenly; return how many, and in which time. What the kernel refuses counts as sent."""
    payload = datagram.write(datagram.COUNT, trial)
    start = time.monotonic()
    sent = 0
    while (elapsed := time.monotonic() - start) < seconds:
        due = int(elapsed * rate) + 1
        while sent < due:
            datagram.stamp(payload, datagram.COUNT, trial, time.monotonic_ns())
            with contextlib.suppress(ConnectionRefusedError):
                sock.send(payload)
            sent += 1
            if not sent % 64 and time.monotonic() - start > seconds:
                break  # the rate is beyond this machine
        else:
            time.sleep(_PAUSE)
    return sent, time.monotonic() - start


def main(host: str, port: str) -> None:
    """Do as told until stdin ends."""
    sock = reach((host, int(port)))
    sock.settimeout(None)
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        sent, seconds = send(sock, order["trial"], order["rate"], order["seconds"])
        print(json.dumps({"sent": sent, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
