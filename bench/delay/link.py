"""A link between two network namespaces that holds every packet, in each direction, for the same time. It loses none.

Usage: link MILLISECONDS PID ADDRESS PID ADDRESS: the processes whose networks it joins, and what each end is called. Prints `ready`. Needs
the right to make network devices.
"""

import os
import select
import sys
import time

from bench.delay.delayqueue import DelayQueue
from bench.delay.tun import LARGEST, open_tun

_BATCH = 64  # packets read from one end before the other gets its turn


class Link:
    """Both directions, by the descriptors of the ends."""

    def __init__(self, one: int, other: int, delay: float) -> None:
        self._ends = {one: other, other: one}
        self._queues = {one: DelayQueue(delay), other: DelayQueue(delay)}  # by the end that the packets came in at

    def carry(self) -> None:
        """Carry packets until the process is ended."""
        while True:
            dues = [due for queue in self._queues.values() if (due := queue.next) is not None]
            patience = max(0.0, min(dues) - time.monotonic()) if dues else None
            readable, _, _ = select.select(list(self._ends), [], [], patience)
            for end in readable:
                self._take(end)
            for end, queue in self._queues.items():
                while (packet := queue.due(time.monotonic())) is not None:
                    os.write(self._ends[end], packet)

    def _take(self, end: int) -> None:
        try:
            for _ in range(_BATCH):
                self._queues[end].put(os.read(end, LARGEST), time.monotonic())
        except BlockingIOError:
            pass


def main(milliseconds: str, one: str, one_address: str, other: str, other_address: str) -> None:
    """Join the two."""
    delay = float(milliseconds) / 1000
    ends = (
        open_tun(int(one), f"to{other}", one_address, other_address),
        open_tun(int(other), f"to{one}", other_address, one_address),
    )
    print("ready", flush=True)
    Link(*ends, delay).carry()


if __name__ == "__main__":
    main(*sys.argv[1:])
