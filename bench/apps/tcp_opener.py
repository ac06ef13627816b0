"""An app that opens connections, takes a short answer from each, and goes on with the next: one after the other, or many at once.

Usage: tcp_opener DOOR. A JSON line in, `{"at_once", "size"}` and `"seconds"` or `"count"`; a JSON line out, `{"count", "seconds"}`:
how many connections gave their whole answer, and in which time.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

from bench.apps import stream
from bench.apps.orders import obey
from bench.apps.tcp_socket import connect, receive_exactly
from bench.door import Door


class Openers:
    """Threads that open connections until `seconds` are over, or until `count` have been opened."""

    def __init__(self, door: Door, size: int, *, seconds: float, count: float) -> None:
        self._door = door
        self._size = size
        self._end = time.monotonic() + seconds
        self._left = count
        self._lock = threading.Lock()
        self._done = 0
        self._failure: OSError | None = None

    def run(self, at_once: int) -> int:
        """Open with `at_once` threads; return how many connections were answered. Raises the first OSError that any of them met."""
        threads = [threading.Thread(target=self._work) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return self._done

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0 and time.monotonic() < self._end and self._failure is None

    def _work(self) -> None:
        try:
            while self._take():
                with connect(self._door) as sock:
                    sock.sendall(stream.order(stream.ANSWER, self._size))
                    receive_exactly(sock, self._size)
                with self._lock:
                    self._done += 1
        except OSError as error:
            self._failure = error


def open_many(door: Door, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """Do one order."""
    openers = Openers(door, order["size"], seconds=order.get("seconds", float("inf")), count=order.get("count", float("inf")))
    start = time.monotonic()
    return {"count": openers.run(order["at_once"]), "seconds": time.monotonic() - start}


if __name__ == "__main__":
    obey(open_many)
