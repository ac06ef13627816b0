"""What an app, a bug or an attacker may send to the front door: byte by byte, too early, too long, or garbage."""

import contextlib
import os
import socket

import pytest

from tests.journeys import doors
from tests.journeys.doors import TUNNEL_DOORS
from tests.journeys.processes import until
from tests.journeys.sockets import facing
from tests.journeys.targets import answer_after_end, echo, read_exactly, read_to_end, serving, web_site
from tests.journeys.world import LOOPBACK, Trio

pytestmark = pytest.mark.real


def send_byte_by_byte(sock: socket.socket, data: bytes) -> None:
    """One segment per byte."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in data:
        sock.sendall(bytes([byte]))


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_a_request_byte_by_byte(trio: Trio, door: str) -> None:
    entry = TUNNEL_DOORS[door]
    with serving(echo) as target, contextlib.closing(doors.connect(trio.proxy.address)) as sock:
        send_byte_by_byte(sock, entry.request("home.tuunel", target.port) + b"and early data")
        assert entry.read_success(sock).code == entry.success
        assert read_exactly(sock, 14) == b"and early data"


def test_an_http_request_byte_by_byte(trio: Trio) -> None:
    with web_site({"/": ("text/plain", b"slow and whole")}) as site, contextlib.closing(doors.connect(trio.proxy.address)) as sock:
        where = f"home.tuunel:{site.port}"
        send_byte_by_byte(sock, f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode())
        assert doors.read_http_answer(sock).body == b"slow and whole"


@pytest.mark.parametrize("door", TUNNEL_DOORS)
@pytest.mark.parametrize("size", [1, 16_384, 65_536, 1_000_000])
def test_early_data_behind_the_request_arrives_once_and_whole(trio: Trio, door: str, size: int) -> None:
    entry, early = TUNNEL_DOORS[door], os.urandom(size)
    with serving(answer_after_end(b"thanks")) as target, contextlib.closing(doors.connect(trio.proxy.address)) as sock:
        sock.sendall(entry.request("home.tuunel", target.port) + early)
        assert entry.read_success(sock).code == entry.success
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b"thanks"
        assert target.noted() == [early]


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_a_name_of_255_bytes_is_refused(trio: Trio, door: str) -> None:
    host = "a" * (255 - len(".home.tuunel")) + ".home.tuunel"
    with TUNNEL_DOORS[door].open(trio.proxy.address, host, 80) as opened:
        assert opened.answer.code != TUNNEL_DOORS[door].success


TOO_LONG = {
    "a SOCKS4a name without end": b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"a" * 200_000,
    "a SOCKS4 user without end": b"\x04\x01\x00\x50\x00\x00\x00\x01" + b"a" * 200_000,
    "an HTTP request line without end": b"GET http://" + b"a" * 200_000,
    "HTTP headers without end": b"GET http://home.tuunel/ HTTP/1.1\r\n" + b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 6_000,
    "a CONNECT name without end": b"CONNECT " + b"a" * 200_000,
}

GARBAGE = {
    "zeros": bytes(4096),
    "noise": bytes(range(255, -1, -1)) * 16,
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(100),
    "SOCKS5 with no methods": b"\x05\x00",
    "SOCKS5 with methods that we lack": b"\x05\x02\x01\x80",
    "SOCKS5, then a wrong version": b"\x05\x01\x00\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
    "SOCKS5 with an empty name": b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50",
    "SOCKS5 with a name of control characters": b"\x05\x01\x00\x05\x01\x00\x03\x04\r\n\x00\x1b\x00\x50",
    "SOCKS5 with port 0": b"\x05\x01\x00" + doors.socks5_request("home.tuunel", 0),
    "SOCKS4a with an empty name": b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
    "CONNECT without a port": b"CONNECT home.tuunel HTTP/1.1\r\nHost: home.tuunel\r\n\r\n",
    "CONNECT with a port too high": b"CONNECT home.tuunel:65536 HTTP/1.1\r\nHost: home.tuunel\r\n\r\n",
    "a request of no host": b"GET http:/// HTTP/1.1\r\nHost:\r\n\r\n",
    "two lengths": b"POST http://home.tuunel/ HTTP/1.1\r\nHost: home.tuunel\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": b"POST http://home.tuunel:1/ HTTP/1.1\r\nHost: home.tuunel:1\r\n"
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a header with a bare line feed inside": b"GET http://home.tuunel/ HTTP/1.1\r\nHost: home.tuunel\r\nX: a\nb: c\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another scheme": b"GET ftp://home.tuunel/ HTTP/1.1\r\nHost: home.tuunel\r\n\r\n",
}


@pytest.mark.parametrize("what", [*TOO_LONG, *GARBAGE])
def test_nonsense_is_refused_and_the_connection_closed(trio: Trio, what: str) -> None:
    """The answer is a refusal or nothing, it comes at once, and the proxy holds nothing afterwards."""
    sent = TOO_LONG.get(what) or GARBAGE[what]
    sock = doors.connect(trio.proxy.address)
    mine = sock.getsockname()[1]
    with contextlib.closing(sock):
        sock.settimeout(10)
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = read_to_end(sock)
        assert_refusal(answer)
    until(lambda: not facing(mine, local=trio.proxy.port), "the proxy has closed the connection", 5)


def assert_refusal(answer: bytes) -> None:
    """`answer` grants nothing, and tells nothing that the app did not know: no path, no trace, no relay."""
    if answer.startswith(b"HTTP/"):
        assert answer.split(b" ")[1][:1] in (b"4", b"5"), answer[:200]
    elif answer[:1] == b"\x05":
        replies = answer[2:]
        assert not replies or replies[1] != 0, answer
    elif answer[:1] == b"\x00":
        assert answer[1] != 0x5A
    else:
        assert answer == b"", answer[:200]
    for secret in (b"Traceback", b'File "', b"/tmp/", b"pin="):
        assert secret not in answer


def test_what_is_left_of_a_request_that_ends_inside_is_dropped(trio: Trio) -> None:
    for entry in TUNNEL_DOORS.values():
        request = entry.request("home.tuunel", 80)
        for cut in range(1, len(request), 7):
            sock = doors.connect(trio.proxy.address)
            with contextlib.closing(sock):
                sock.sendall(request[:cut])
                sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    assert len(read_to_end(sock)) < 2000


def test_the_proxy_serves_on_after_all_that(trio: Trio) -> None:
    assert trio.proxy.process.alive()
    with serving(echo) as target, doors.socks5(trio.proxy.address, "home.tuunel", target.port) as opened:
        opened.sock.sendall(b"still here")
        assert read_exactly(opened.sock, 10) == b"still here"
    assert "Traceback" not in trio.proxy.process.errors()
    assert "Traceback" not in trio.agent.process.errors()
    assert "Traceback" not in trio.relay.process.errors()


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "GET /etc/passwd HTTP/1.1", "OPTIONS * HTTP/1.1", "POST / HTTP/1.1"])
def test_a_request_to_the_proxy_itself_gets_help_and_no_secrets(trio: Trio, request_line: str) -> None:
    with contextlib.closing(doors.connect(trio.proxy.address)) as sock:
        sock.sendall(f"{request_line}\r\nHost: {LOOPBACK}:{trio.proxy.port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        answer = read_to_end(sock)
    assert answer.startswith(b"HTTP/1.1 ")
    for secret in (trio.agent.device_id, str(trio.relay.port), str(trio.laptop.home)):
        assert secret.encode() not in answer
