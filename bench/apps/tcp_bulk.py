"""An app that moves as many bytes as it can, on one connection or on several at once.

Usage: tcp_bulk DOOR. A JSON line in, `{"streams", "direction", "seconds"}`, the direction "up" (to the service) or "down"; a JSON line out,
`{"bytes", "seconds"}`: what has arrived at the other end, and in which time, from the first byte to the last.
"""

import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.apps import stream
from bench.apps.orders import obey
from bench.apps.tcp_socket import connect, receive_exactly
from bench.door import Door

TAIL_SECONDS = 60.0  # for what still lies in buffers when the time is up

_ROOM = memoryview(bytearray(stream.BLOCK))


class Sending:
    """One stream to the service: whole blocks until the time is up, then the last one."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self.sock = sock
        self._end = end
        self._block, self._last = stream.blocks()
        self._rest = self._block

    def step(self) -> bool:
        """Send what the socket takes; False once the last block is on its way."""
        if not self._rest:
            if self._block is self._last:
                return False
            if time.monotonic() >= self._end:
                self._block = self._last
            self._rest = self._block
        self._rest = self._rest[self.sock.send(self._rest) :]
        return True


class Receiving:
    """One stream from the service, to its end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.count = 0

    def step(self) -> bool:
        """Receive what is there; False at the end."""
        size = self.sock.recv_into(_ROOM)
        self.count += size
        return size > 0


def send_for(socks: Sequence[socket.socket], seconds: float) -> int:
    """Send on all connections at once; return how many bytes the service says it got."""
    end = time.monotonic() + seconds
    for sock in socks:
        sock.sendall(stream.order(stream.SINK))
    _together({sock.fileno(): Sending(sock, end).step for sock in socks}, socks, select.EPOLLOUT)
    for sock in socks:
        sock.settimeout(TAIL_SECONDS)
    return sum(stream.COUNT.unpack(receive_exactly(sock, stream.COUNT.size))[0] for sock in socks)


def receive_for(socks: Sequence[socket.socket], seconds: float) -> int:
    """Have the service send on all connections at once; return how many bytes came."""
    for sock in socks:
        sock.sendall(stream.order(stream.SOURCE, int(seconds * 1000)))
    receiving = {sock.fileno(): Receiving(sock) for sock in socks}
    _together({number: each.step for number, each in receiving.items()}, socks, select.EPOLLIN)
    return sum(each.count for each in receiving.values())


def _together(steps: Mapping[int, Callable[[], bool]], socks: Sequence[socket.socket], event: int) -> None:
    """Go on with each connection whenever it is ready, until all are done."""
    with select.epoll() as poll:
        for sock in socks:
            sock.settimeout(0)
            poll.register(sock, event)
        left = len(socks)
        while left:
            ready = poll.poll(TAIL_SECONDS)
            if not ready:
                raise TimeoutError(f"{left} connections moved nothing for {TAIL_SECONDS:g} s")
            for number, _ in ready:
                if not steps[number]():
                    poll.unregister(number)
                    left -= 1


def move(door: Door, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """Do one order."""
    socks = [connect(door) for _ in range(order["streams"])]
    try:
        start = time.monotonic()
        count = (send_for if order["direction"] == "up" else receive_for)(socks, order["seconds"])
        return {"bytes": count, "seconds": time.monotonic() - start}
    finally:
        for sock in socks:
            sock.close()


if __name__ == "__main__":
    obey(move)
