"""Apps by the thousand: connections that are held and carry an echo now and then, and new ones at a steady rate beside them.

Every byte is random and compared with its echo. New connections are due on time whatever becomes of the ones before them, so a stall is
paid by every one that falls into it; each carries one echo and is ended cleanly.

Usage: tcp_crowd DOOR. JSON lines in and out, one for each order: `{"hold"}` opens connections until so many are held, `{"rate", "seconds",
"beat"}` opens `rate` new ones a second while each held one carries an echo every `beat` seconds, `{"end"}` ends those that are held.
What went wrong comes back in `failures`: how often, by what it was.
"""

import os
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from bench.apps import stream
from bench.apps.orders import obey
from bench.apps.tcp_socket import Refused, connect, receive_exactly
from bench.door import Door
from tuunel.descriptors import raise_limit

_ECHO_SIZE: Final = 512
_HOLDERS: Final = 16  #: connections of those to be held that are made at a time
_OPENERS: Final = 64  #: new connections under way at a time; more than that wait, and their waiting counts
_TOGETHER: Final = 20  #: held connections whose echoes are under way at a time


class Tally:
    """How many times something was done, how long each took, and what went wrong. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: list[float] = []
        self.failures: Counter[str] = Counter()

    def attempt(self, due: float, work: Callable[[], object]) -> None:
        """Do it once; the time counts from when it was due."""
        try:
            work()
        except OSError as error:
            with self._lock:
                self.failures[str(error) or repr(error)] += 1
        else:
            with self._lock:
                self.seconds.append(time.monotonic() - due)

    def document(self) -> dict[str, Any]:
        """The tally, with the median and the slowest of a hundred in milliseconds."""
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else [0.0] * 99
        return {
            "count": len(self.seconds),
            "p50_ms": cuts[49] * 1000,
            "p99_ms": cuts[98] * 1000,
            "longest_ms": max(self.seconds, default=0.0) * 1000,
            "failures": dict(self.failures),
        }


class Crowd:
    """The apps behind one door."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def obey(self, door: Door, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do one order."""
        if "hold" in order:
            return self._hold(door, order["hold"])
        if "end" in order:
            return self._end()
        return self._be_busy(door, order["rate"], order["seconds"], order["beat"])

    def _hold(self, door: Door, count: int) -> Mapping[str, Any]:
        tally = Tally()

        def open_one(_: int) -> None:
            tally.attempt(time.monotonic(), lambda: self._held.append(_opened(door)))

        with ThreadPoolExecutor(_HOLDERS) as threads:
            list(threads.map(open_one, range(count - len(self._held))))
        return tally.document()

    def _be_busy(self, door: Door, rate: float, seconds: float, beat: float) -> Mapping[str, Any]:
        new, beats, over = Tally(), Tally(), threading.Event()
        beater = threading.Thread(target=self._beat, args=(beats, beat, over))
        beater.start()
        with ThreadPoolExecutor(_OPENERS) as threads:
            start = time.monotonic()
            for number in range(round(rate * seconds)):
                due = start + number / rate
                time.sleep(max(0.0, due - time.monotonic()))
                threads.submit(new.attempt, due, lambda: _ended(_opened(door)))
            time.sleep(max(0.0, start + seconds - time.monotonic()))
        took = time.monotonic() - start
        over.set()
        beater.join()
        return {"seconds": took, "new": new.document(), "beats": beats.document()}

    def _beat(self, beats: Tally, every: float, over: threading.Event) -> None:
        """Have each held connection carry an echo, a few at a time, all of them within `every` seconds; again and again."""
        turns = [self._held[first : first + _TOGETHER] for first in range(0, len(self._held), _TOGETHER)]
        while turns:
            for some in turns:
                if over.wait(every / len(turns)):
                    return
                _echo_together(some, beats)
        over.wait()

    def _end(self) -> Mapping[str, Any]:
        tally = Tally()
        for sock in self._held:
            tally.attempt(time.monotonic(), lambda sock=sock: _ended(sock))  # type: ignore[misc]
        self._held.clear()
        return tally.document()


def _echo_together(socks: list[socket.socket], tally: Tally) -> None:
    sent = [os.urandom(_ECHO_SIZE) for _ in socks]
    due = time.monotonic()
    for sock, data in zip(socks, sent, strict=True):
        sock.sendall(data)
    for sock, data in zip(socks, sent, strict=True):
        tally.attempt(due, lambda sock=sock, data=data: _check(sock, data))  # type: ignore[misc]


def _check(sock: socket.socket, wanted: bytes) -> None:
    if receive_exactly(sock, len(wanted)) != wanted:
        raise Refused("wrong bytes came back")


def _opened(door: Door) -> socket.socket:
    sock = connect(door)
    try:
        data = os.urandom(_ECHO_SIZE)
        sock.sendall(stream.order(stream.ECHO) + data)
        _check(sock, data)
    except BaseException:
        sock.close()
        raise
    return sock


def _ended(sock: socket.socket) -> None:
    with sock:
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1):
            raise Refused("more came back than was sent")


if __name__ == "__main__":
    raise_limit()
    obey(Crowd().obey)
