"""Tiny clients for each front door, written from the RFCs, so that the tests see every byte of the answer."""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.journeys.targets import read_exactly

Address = tuple[str, int]
PATIENCE = 40.0


@dataclass(frozen=True)
class Answer:
    """What a front door said: `code` is the reply byte or HTTP status, `headers` with lower-case names, `body` for HTTP failures."""

    code: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Opened:
    """An answer, and the connection it came on. The caller closes it."""

    answer: Answer
    sock: socket.socket

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()


def connect(proxy: Address) -> socket.socket:
    """Connect to the front door."""
    sock = socket.create_connection(proxy, timeout=PATIENCE)
    sock.settimeout(PATIENCE)
    return sock


def socks5_request(host: str, port: int, command: int = 1) -> bytes:
    """RFC 1928 section 4: an IPv4, IPv6 or name request."""
    for family, kind in ((socket.AF_INET, b"\x01"), (socket.AF_INET6, b"\x04")):
        try:
            address = kind + socket.inet_pton(family, host)
            break
        except OSError:
            continue
    else:
        name = host.encode()
        address = b"\x03" + bytes([len(name)]) + name
    return bytes([5, command, 0]) + address + struct.pack(">H", port)


def read_socks5_reply(sock: socket.socket) -> Answer:
    """RFC 1928 section 6: the reply with its bound address."""
    version, code, reserved, kind = read_exactly(sock, 4)
    assert (version, reserved) == (5, 0), (version, code, reserved, kind)
    size = {1: 4, 4: 16}.get(kind) or read_exactly(sock, 1)[0]
    read_exactly(sock, size + 2)
    return Answer(code, {})


def socks5(proxy: Address, host: str, port: int, *, command: int = 1, early: bytes = b"") -> Opened:
    """CONNECT (or another command) without authentication."""
    sock = connect(proxy)
    try:
        sock.sendall(b"\x05\x01\x00")
        assert read_exactly(sock, 2) == b"\x05\x00"
        sock.sendall(socks5_request(host, port, command) + early)
        return Opened(read_socks5_reply(sock), sock)
    except BaseException:
        sock.close()
        raise


def socks4a_request(host: str, port: int, command: int = 1, user: bytes = b"") -> bytes:
    """SOCKS4a: address 0.0.0.1, the name behind the user id."""
    return struct.pack(">BBH", 4, command, port) + b"\x00\x00\x00\x01" + user + b"\x00" + host.encode() + b"\x00"


def read_socks4_reply(sock: socket.socket) -> Answer:
    """Eight bytes: 00, the code (5A granted, 5B refused), six that mean nothing here."""
    zero, code = read_exactly(sock, 8)[:2]
    assert zero == 0
    return Answer(code, {})


def socks4a(proxy: Address, host: str, port: int, *, command: int = 1, early: bytes = b"") -> Opened:
    """CONNECT by name."""
    sock = connect(proxy)
    sock.sendall(socks4a_request(host, port, command) + early)
    return Opened(read_socks4_reply(sock), sock)


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def http_connect_request(host: str, port: int, extra: str = "") -> bytes:
    """RFC 9110 section 9.3.6."""
    return f"CONNECT {authority(host, port)} HTTP/1.1\r\nHost: {authority(host, port)}\r\n{extra}\r\n".encode()


def read_http_head(sock: socket.socket) -> Answer:
    """Read a status line and headers byte by byte, so that nothing of what follows is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise AssertionError(f"the connection ended inside the head: {head!r}")
        head += byte
        assert len(head) < 65536
    status, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Answer(int(status.split(" ")[1]), {name.strip().lower(): value.strip() for name, _, value in pairs})


def read_http_answer(sock: socket.socket) -> Answer:
    """Read a head and the body that its Content-Length announces."""
    head = read_http_head(sock)
    return Answer(head.code, head.headers, read_exactly(sock, int(head.headers.get("content-length", "0"))))


def http_connect(proxy: Address, host: str, port: int, *, extra: str = "", early: bytes = b"") -> Opened:
    """CONNECT; a failure's page is read too."""
    sock = connect(proxy)
    sock.sendall(http_connect_request(host, port, extra) + early)
    answer = read_http_head(sock)
    if answer.code != 200:
        answer = Answer(answer.code, answer.headers, read_exactly(sock, int(answer.headers.get("content-length", "0"))))
    return Opened(answer, sock)


def http_get(proxy: Address, host: str, port: int, *, path: str = "/", extra: str = "") -> Opened:
    """GET in absolute form (RFC 9112 section 3.2.2)."""
    sock = connect(proxy)
    where = authority(host, port)
    sock.sendall(f"GET http://{where}{path} HTTP/1.1\r\nHost: {where}\r\n{extra}\r\n".encode())
    return Opened(read_http_answer(sock), sock)


@dataclass(frozen=True)
class TunnelDoor:
    """A front door that ends in a plain byte stream: how to open one, what it answers then, and the bytes of its whole request."""

    open: Callable[..., Opened]
    success: int
    request: Callable[[str, int], bytes]
    read_success: Callable[[socket.socket], Answer]


def _read_both_socks5(sock: socket.socket) -> Answer:
    assert read_exactly(sock, 2) == b"\x05\x00"
    return read_socks5_reply(sock)


TUNNEL_DOORS = {
    "socks5": TunnelDoor(socks5, 0, lambda host, port: b"\x05\x01\x00" + socks5_request(host, port), _read_both_socks5),
    "socks4a": TunnelDoor(socks4a, 0x5A, socks4a_request, read_socks4_reply),
    "http-connect": TunnelDoor(http_connect, 200, http_connect_request, read_http_head),
}
