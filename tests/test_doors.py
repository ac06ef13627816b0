"""The front doors over real sockets: the truth about the target, half-close, early data, and clients that leave."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doorway import Doorway, doorway
from tests.journeys import doors
from tests.journeys.doors import TUNNEL_DOORS
from tests.journeys.targets import (
    answer_after_end,
    echo,
    end_then_listen,
    hold,
    note_how_it_ends,
    read_exactly,
    read_to_end,
    reset,
    serving,
)
from tuunel import doors as front_doors
from tuunel.address import HostPort
from tuunel.errors import ANSWERS, Failure, Reason, Speaker
from tuunel.frontdoor import EARLY_LIMIT, Credentials
from tuunel.proxystatus import CONNECTION_HEADER, parse_proxy_status
from tuunel.rawstream import RawStream

each_door = pytest.mark.parametrize("door", TUNNEL_DOORS)
LARGE = 1 << 20


@pytest.fixture
def way(anyio_backend: str) -> Iterator[Doorway]:
    with doorway(anyio_backend) as way:
        yield way


@pytest.fixture
def guarded(anyio_backend: str) -> Iterator[Doorway]:
    with doorway(anyio_backend, Credentials("ann", "secret:word")) as way:
        yield way


@each_door
def test_bytes_go_both_ways_and_are_counted(way: Doorway, door: str) -> None:
    with serving(echo) as target, TUNNEL_DOORS[door].open(way.address, "home.tuunel", target.port) as opened:
        assert opened.answer.code == TUNNEL_DOORS[door].success
        opened.sock.sendall(b"hello")
        assert read_exactly(opened.sock, 5) == b"hello"
        opened.sock.shutdown(socket.SHUT_WR)
        assert read_to_end(opened.sock) == b""
        assert way.ends() == ["done"]
        assert (way.traffic[0].up, way.traffic[0].down) == (5, 5)
        assert (str(way.requests[0].target), way.requests[0].local) == (f"home.tuunel:{target.port}", True)


@each_door
def test_a_client_from_elsewhere_is_told_apart_from_one_of_this_machine(way: Doorway, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RawStream, "peer", property(lambda _: HostPort("203.0.113.7", 40000)))
    way.failure = Failure(Reason.REFUSED_BY_SETTING)
    with TUNNEL_DOORS[door].open(way.address, "home.tuunel", 80):
        assert [request.local for request in way.requests] == [False]


@pytest.mark.parametrize("said", [b"\x05", b"\x05\x01\x00\x05\x01", b"\x04\x01", b"GET http://home.tuunel/ HTTP/1.1\r\nHost:"])
def test_a_client_that_says_half_a_request_is_let_go(way: Doorway, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_doors, "HEADER_DEADLINE", 0.05)
    with socket.create_connection(way.address, timeout=10) as client:
        client.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            read_to_end(client)
    assert way.requests == []


def test_a_client_that_says_nothing_is_let_go(way: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_doors, "HEADER_DEADLINE", 0.05)
    with socket.create_connection(way.address, timeout=10) as client:
        assert read_to_end(client) == b""


@each_door
@pytest.mark.parametrize("reason", Reason)
def test_every_failure_has_its_own_answer(way: Doorway, door: str, reason: Reason) -> None:
    way.failure = Failure(reason, Speaker.AGENT, "because")
    with TUNNEL_DOORS[door].open(way.address, "home.tuunel", 80) as opened:
        expected = {"socks5": ANSWERS[reason].socks, "socks4a": 0x5B, "http-connect": ANSWERS[reason].http}[door]
        assert opened.answer.code == expected
        if door == "http-connect":
            assert parse_proxy_status(opened.answer.headers["proxy-status"]) == (Speaker.AGENT, reason, "because")
        assert read_to_end(opened.sock) == b""


@each_door
def test_a_connection_that_breaks_under_the_dialer_is_a_failure_too(way: Doorway, door: str) -> None:
    way.failure = ConnectionResetError("early bytes met a reset")
    with TUNNEL_DOORS[door].open(way.address, "home.tuunel", 80) as opened:
        assert opened.answer.code in {ANSWERS[Reason.TUNNEL_LOST].socks, 0x5B, ANSWERS[Reason.TUNNEL_LOST].http}


@each_door
def test_success_is_not_said_before_the_dial_returned(way: Doorway, door: str) -> None:
    way.waiting = True
    with contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", 80))
        assert way.dialling.wait(10)
        sock.settimeout(0.2)
        said = b""
        with pytest.raises(TimeoutError):
            while True:
                said += sock.recv(100)
        assert said == (b"\x05\x00" if door == "socks5" else b"")


@each_door
def test_a_client_that_resets_cancels_the_dial(way: Doorway, door: str) -> None:
    way.waiting = True
    sock = doors.connect(way.address)
    sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", 80))
    assert way.dialling.wait(10)
    reset(sock)
    assert way.cancelled.wait(10)


@each_door
def test_a_client_that_closes_cancels_the_dial(way: Doorway, door: str) -> None:
    way.waiting = True
    with contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", 80))
        assert way.dialling.wait(10)
    assert way.cancelled.wait(10)


@each_door
def test_a_client_that_ended_its_side_during_a_dial_without_end_is_told(way: Doorway, door: str) -> None:
    way.waiting = True
    with contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", 80))
        sock.shutdown(socket.SHUT_WR)
        answer = TUNNEL_DOORS[door].read_success(sock)
        assert answer.code in {ANSWERS[Reason.CONNECT_TIMEOUT].socks, 0x5B, ANSWERS[Reason.CONNECT_TIMEOUT].http}


@each_door
def test_request_data_and_end_in_one_go_reach_the_target(way: Doorway, door: str) -> None:
    with serving(answer_after_end(b"x" * LARGE)) as target, contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", target.port) + b"all of it")
        sock.shutdown(socket.SHUT_WR)
        assert TUNNEL_DOORS[door].read_success(sock).code == TUNNEL_DOORS[door].success
        assert read_to_end(sock) == b"x" * LARGE
        assert target.noted() == [b"all of it"]


@each_door
@pytest.mark.parametrize("size", [1, EARLY_LIMIT, 3 * EARLY_LIMIT, LARGE])
def test_early_data_arrives_once_and_whole(way: Doorway, door: str, size: int) -> None:
    early = os.urandom(size)
    with serving(answer_after_end(b"thanks")) as target, contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", target.port) + early)
        assert TUNNEL_DOORS[door].read_success(sock).code == TUNNEL_DOORS[door].success
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b"thanks"
        assert target.noted() == [early]
        assert way.ends() == ["done"]
        assert way.traffic[0].up == size


@each_door
def test_half_close_by_the_target(way: Doorway, door: str) -> None:
    with serving(end_then_listen(b"bye")) as target, TUNNEL_DOORS[door].open(way.address, "home.tuunel", target.port) as opened:
        assert read_to_end(opened.sock) == b"bye"
        opened.sock.sendall(b"y" * LARGE)
        opened.sock.shutdown(socket.SHUT_WR)
        assert target.noted() == [b"y" * LARGE]


@each_door
def test_a_reset_of_the_target_is_a_reset_for_the_client(way: Doorway, door: str) -> None:
    with serving(hold) as target, TUNNEL_DOORS[door].open(way.address, "home.tuunel", target.port) as opened:
        reset(target.accepted()[0])
        with pytest.raises(ConnectionResetError):
            opened.sock.recv(1)
        assert way.ends() == ["reset"]


@each_door
def test_a_reset_of_the_client_is_a_reset_for_the_target(way: Doorway, door: str) -> None:
    with serving(note_how_it_ends) as target:
        opened = TUNNEL_DOORS[door].open(way.address, "home.tuunel", target.port)
        reset(opened.sock)
        assert target.noted() == ["reset"]
        assert way.ends() == ["reset"]


@each_door
def test_a_request_byte_by_byte(way: Doorway, door: str) -> None:
    with serving(echo) as target, contextlib.closing(doors.connect(way.address)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in TUNNEL_DOORS[door].request("home.tuunel", target.port):
            sock.sendall(bytes([byte]))
        assert TUNNEL_DOORS[door].read_success(sock).code == TUNNEL_DOORS[door].success
        sock.sendall(b"ping")
        assert read_exactly(sock, 4) == b"ping"


@pytest.mark.parametrize("garbage", [b"\x00", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n\r\n", b"\xff" * 100])
def test_garbage_is_refused_readably_and_dials_nothing(way: Doorway, garbage: bytes) -> None:
    with contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock).startswith(b"HTTP/1.1 400 ")
        assert way.requests == []


@pytest.mark.parametrize("part", [b"", b"\x05", b"\x05\x01", b"\x04\x01\x00\x50"])
def test_a_client_that_ends_too_early_is_let_go(way: Doorway, part: bytes) -> None:
    with contextlib.closing(doors.connect(way.address)) as sock:
        sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert read_to_end(sock) == b""


def test_the_password_opens_socks5_and_connect(guarded: Doorway) -> None:
    with serving(echo) as target:
        with contextlib.closing(doors.connect(guarded.address)) as sock:
            sock.sendall(b"\x05\x01\x02\x01\x03ann\x0bsecret:word" + doors.socks5_request("home.tuunel", target.port))
            assert read_exactly(sock, 4) == b"\x05\x02\x01\x00"
            assert doors.read_socks5_reply(sock).code == 0
        with contextlib.closing(doors.connect(guarded.address)) as sock:
            sock.sendall(doors.http_connect_request("home.tuunel", target.port, "Proxy-Authorization: Basic YW5uOnNlY3JldDp3b3Jk\r\n"))
            assert doors.read_http_head(sock).code == 200


@each_door
def test_without_the_password_nothing_is_dialled(guarded: Doorway, door: str) -> None:
    with contextlib.closing(doors.connect(guarded.address)) as sock:
        sock.sendall(TUNNEL_DOORS[door].request("home.tuunel", 80))
        answer = read_to_end(sock)
    assert {"socks5": b"\x05\xff", "socks4a": b"\x00\x5b" + bytes(6)}.get(door, answer) == answer
    if door == "http-connect":
        assert answer.startswith(b"HTTP/1.1 407 ")
        assert b"\r\nProxy-Authenticate: Basic " in answer
    assert guarded.requests == []


def test_a_client_on_the_unix_socket_is_told_its_connections_number(anyio_backend: str) -> None:
    with tempfile.TemporaryDirectory() as home, serving(echo) as target:
        path = str(Path(home) / "proxy.sock")
        with doorway(anyio_backend, unix=path) as way, socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(doors.http_connect_request("home.tuunel", target.port))
            assert doors.read_http_head(sock).headers[CONNECTION_HEADER.lower()] == "1"
            assert way.requests[0].local


def test_a_client_on_tcp_is_not_told_its_connections_number(way: Doorway) -> None:
    with serving(echo) as target, TUNNEL_DOORS["http-connect"].open(way.address, "home.tuunel", target.port) as opened:
        assert CONNECTION_HEADER.lower() not in opened.answer.headers
