"""Datagrams in the journeys: servers in threads, and a client of SOCKS5 UDP ASSOCIATE written from RFC 1928."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.journeys import doors
from tests.journeys.targets import LOOPBACK, read_exactly
from tests.ports import udp_socket

Address = tuple[str, int]

PATIENCE = 30.0
LARGEST = 65_507  # RFC 768 over RFC 791: 65,535 bytes less both headers
ROOM = 4 << 20  # for a burst that waits until a thread of this process gets its turn


def bound(host: str = LOOPBACK) -> socket.socket:
    """A UDP socket on a free port. The caller closes it."""
    sock = udp_socket(host)
    with contextlib.suppress(AttributeError, PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    sock.settimeout(PATIENCE)
    return sock


@dataclass
class DatagramTarget:
    """A UDP server: its port, and who has sent to it, in the order of their first datagram."""

    sock: socket.socket
    callers: list[Address] = field(default_factory=list)
    received: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def took(self, count: int, deadline: float = PATIENCE) -> None:
        """Wait until `count` datagrams have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.received >= count, deadline), f"only {self.received} datagrams came"


Answer = Callable[[bytes], bytes | None]


@contextlib.contextmanager
def answering(answer: Answer, *, host: str = LOOPBACK) -> Iterator[DatagramTarget]:
    """Send back what `answer` makes of each datagram, nothing where it says None."""
    sock = bound(host)
    target, over = DatagramTarget(sock), threading.Event()

    def serve() -> None:
        while True:
            try:
                data, caller = sock.recvfrom(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if over.is_set():
                return
            with target.changed:
                target.received += 1
                if caller not in target.callers:
                    target.callers.append(caller)
                target.changed.notify_all()
            reply = answer(data)
            if reply is not None:
                with contextlib.suppress(OSError):
                    sock.sendto(reply, caller)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield target
    finally:
        over.set()
        sock.sendto(b"wake up", sock.getsockname())
        thread.join(10)
        sock.close()


def echo_datagrams(data: bytes) -> bytes:
    """Answer a datagram with itself."""
    return data


def shout(data: bytes) -> bytes:
    """Answer in capitals: nobody on the way can have sent it back."""
    return data.upper()


@contextlib.contextmanager
def connected(port: int, host: str = LOOPBACK) -> Iterator[socket.socket]:
    """A UDP socket that sends to and hears one port only."""
    with contextlib.closing(bound(host)) as sock:
        sock.connect((host, port))
        yield sock


def ask(sock: socket.socket, question: bytes) -> bytes:
    """Send on a connected socket and return the next datagram that comes."""
    sock.send(question)
    return sock.recv(65536)


def udp_header(host: str, port: int, *, fragment: int = 0) -> bytes:
    """RFC 1928 section 7: what stands before each payload. The address has the same form as in a request."""
    return b"\x00\x00" + bytes([fragment]) + doors.socks5_request(host, port)[3:]


def read_udp(data: bytes) -> tuple[str, int, bytes]:
    """Take a datagram from the relay apart: the address that it carries, its port, the payload."""
    assert data[:3] == b"\x00\x00\x00", data[:32]
    kind = data[3]
    if kind == 3:
        size = data[4]
        host, rest = data[5 : 5 + size].decode("ascii"), data[5 + size :]
    else:
        size = {1: 4, 4: 16}[kind]
        family = socket.AF_INET if kind == 1 else socket.AF_INET6
        host, rest = socket.inet_ntop(family, data[4 : 4 + size]), data[4 + size :]
    return host, int(struct.unpack(">H", rest[:2])[0]), rest[2:]


def read_reply(sock: socket.socket) -> tuple[int, Address]:
    """RFC 1928 section 6: the reply's code and its bound address."""
    version, code, reserved, kind = read_exactly(sock, 4)
    assert (version, reserved) == (5, 0)
    assert kind in {1, 4}, "a relay's address is a number"
    host = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, read_exactly(sock, 4 if kind == 1 else 16))
    return code, (host, int(struct.unpack(">H", read_exactly(sock, 2))[0]))


@dataclass
class Association:
    """One UDP association: `control` is the TCP connection that it lives as long as, `relay` where datagrams go."""

    control: socket.socket
    sock: socket.socket
    relay: Address

    def send(self, host: str, port: int, payload: bytes) -> None:
        self.sock.sendto(udp_header(host, port) + payload, self.relay)

    def receive(self) -> tuple[str, int, bytes]:
        """Return the next datagram: from which target as the relay names it, and what it said."""
        data, sender = self.sock.recvfrom(65536)
        assert sender[:2] == self.relay
        return read_udp(data)

    def ask(self, host: str, port: int, payload: bytes) -> bytes:
        """Send, and return the answer, which must come from there and no other place."""
        self.send(host, port, payload)
        from_host, from_port, answer = self.receive()
        assert (from_host, from_port) == (host, port)
        return answer


@contextlib.contextmanager
def associated(proxy: Address, *, declare: bool = False) -> Iterator[Association]:
    """Open an association; with `declare` the request says which port the datagrams will come from, else 0."""
    with contextlib.closing(doors.connect(proxy)) as control, contextlib.closing(bound(proxy[0])) as sock:
        control.sendall(b"\x05\x01\x00")
        assert read_exactly(control, 2) == b"\x05\x00"
        host, port = sock.getsockname()[:2] if declare else ("::" if ":" in proxy[0] else "0.0.0.0", 0)
        control.sendall(doors.socks5_request(host, port, command=3))
        code, relay = read_reply(control)
        assert code == 0, f"reply {code}"
        yield Association(control, sock, relay)
