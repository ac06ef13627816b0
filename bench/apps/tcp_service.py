"""The service of the TCP workloads: does what `bench.apps.stream` lists. One thread, one epoll.

Usage: tcp_service ADDRESS. Listens there and prints its port.
"""

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable

from bench.apps import stream

_BUFFER = memoryview(bytearray(stream.BLOCK))
_ZEROS = memoryview(bytes(stream.BLOCK))
_SMALL = 65_536
_BACKLOG = 4096


class Connection:
    """One connection: reads its order, then does it. `step` goes on with it once the socket is ready, and tells whether more is to do."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waits_for = select.EPOLLIN
        self.step: Callable[[], bool] = self._read_order
        self._head = b""
        self._count = 0  # of bytes that a sink has taken
        self._left = 0  # of an answer
        self._end = 0.0  # of a source

    def _read_order(self) -> bool:
        data = self.sock.recv(stream.ORDER.size - len(self._head))
        self._head += data
        if len(self._head) < stream.ORDER.size:
            return bool(data)
        kind, amount = stream.ORDER.unpack(self._head)
        if kind in (stream.ANSWER, stream.SOURCE):
            self.waits_for = select.EPOLLOUT
        self._left = amount
        self._end = time.monotonic() + amount / 1000
        steps = {stream.ECHO: self._echo, stream.ANSWER: self._answer, stream.SINK: self._sink, stream.SOURCE: self._source}
        self.step = steps[kind]
        return self.step()

    def _echo(self) -> bool:
        data = self.sock.recv(_SMALL)
        if data:
            self.sock.send(data)  # never more than a socket's buffer: apps echo small things
        return bool(data)

    def _answer(self) -> bool:
        self._left -= self.sock.send(_ZEROS[: self._left])
        return self._left > 0

    def _sink(self) -> bool:
        size = self.sock.recv_into(_BUFFER[: stream.BLOCK - self._count % stream.BLOCK])  # no read crosses the end of a block
        self._count += size
        if size and not self._count % stream.BLOCK and _BUFFER[size - 1]:
            self.sock.send(stream.COUNT.pack(self._count))
            self.step = self._await_end
        return bool(size)

    def _await_end(self) -> bool:
        return bool(self.sock.recv(1))

    def _source(self) -> bool:
        if time.monotonic() >= self._end:
            return False
        self.sock.send(_ZEROS)
        return True


class Service:
    """All connections of one listener."""

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server((address, 0), backlog=_BACKLOG)
        self._listener.settimeout(0)
        self.port: int = self._listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}

    def serve(self) -> None:
        """Serve until the process is ended."""
        while True:
            for number, _ in self._poll.poll():
                if number in self._connections:
                    self._go_on(self._connections[number])
                else:
                    self._accept()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(0)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock)
                self._poll.register(sock, select.EPOLLIN)

    def _go_on(self, connection: Connection) -> None:
        waited_for = connection.waits_for
        try:
            more = connection.step()
        except BlockingIOError:
            more = True
        except OSError:
            more = False
        if not more:
            del self._connections[connection.sock.fileno()]
            connection.sock.close()
        elif connection.waits_for != waited_for:
            self._poll.modify(connection.sock, connection.waits_for)


def main(address: str) -> None:
    """Serve until the process is ended."""
    service = Service(address)
    print(service.port, flush=True)
    service.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
