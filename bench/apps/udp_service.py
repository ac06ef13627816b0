"""The service: sends echoes back, counts what it is sent per trial, and tells the count.

Usage: udp_service ADDRESS. Prints its port.
"""

import json
import struct
import sys
import time
from dataclasses import asdict, dataclass

from bench.apps import datagram
from bench.apps.udp_socket import bound


@dataclass(slots=True)
class Count:
    """What arrived of one trial. `first_ns` and `last_ns` are the arrivals of the first and last datagram that was not late."""

    trial: int
    in_time: int = 0
    late: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def arrived(self, sent_ns: int, now_ns: int) -> None:
        """Count one datagram."""
        if now_ns - sent_ns > datagram.LATE_NS:
            self.late += 1
            return
        if not self.in_time:
            self.first_ns = now_ns
        self.in_time += 1
        self.last_ns = now_ns


def serve(address: str) -> None:
    """Serve until the process is ended."""
    sock = bound(address)
    print(sock.getsockname()[1], flush=True)
    buffer = memoryview(bytearray(65_536))
    count = Count(0)
    while True:
        size, sender = sock.recvfrom_into(buffer)
        try:
            kind, trial, sent_ns = datagram.read(buffer[:size])
        except struct.error:
            continue
        if kind == datagram.COUNT:
            if trial != count.trial:
                if trial < count.trial:
                    continue  # a straggler of a trial that is over
                count = Count(trial)
            count.arrived(sent_ns, time.monotonic_ns())
        elif kind == datagram.ECHO:
            sock.sendto(buffer[:size], sender)
        elif kind == datagram.REPORT:
            told = count if count.trial == trial else Count(trial)
            sock.sendto(json.dumps(asdict(told)).encode(), sender)


if __name__ == "__main__":
    serve(*sys.argv[1:])
