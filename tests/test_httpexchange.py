"""Absolute-form HTTP through a real door to real small servers: what arrives on both sides, byte for byte."""

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.doorway import PAC, Doorway, doorway
from tests.journeys import doors
from tests.journeys.doors import read_http_answer, read_http_head
from tests.journeys.targets import Handler, Target, echo, hold, note_how_it_ends, read_exactly, read_to_end, reset, serving
from tuunel.errors import Failure, Reason, Speaker
from tuunel.frontdoor import Credentials
from tuunel.proxystatus import parse_proxy_status

LARGE = 8 << 20


@pytest.fixture
def way(anyio_backend: str) -> Iterator[Doorway]:
    with doorway(anyio_backend) as way:
        yield way


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    return head


def answering(*answers: bytes, end: bool = False) -> Handler:
    """An origin server that notes each request's head and gives the next answer."""

    def handler(sock: socket.socket, target: Target) -> None:
        for answer in answers:
            target.note(read_head(sock))
            sock.sendall(answer)
        if end:
            sock.shutdown(socket.SHUT_WR)

    return handler


def ok(body: bytes = b"ok", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), fields, body)


def get(target: Target, path: str = "/", fields: str = "", method: str = "GET", version: str = "1.1", host: str = "home.tuunel") -> bytes:
    return f"{method} http://{host}:{target.port}{path} HTTP/{version}\r\nHost: other\r\n{fields}\r\n".encode()


@contextlib.contextmanager
def client(way: Doorway) -> Iterator[socket.socket]:
    with contextlib.closing(doors.connect(way.address)) as sock:
        yield sock


def exchange(way: Doorway, request: bytes) -> bytes:
    """Send and read to the end."""
    with client(way) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)


class TestRequestHead:
    def test_it_becomes_origin_form_with_the_addresss_host(self, way: Doorway) -> None:
        with serving(answering(ok())) as target:
            assert exchange(way, get(target, "/a?b=c")).endswith(b"\r\n\r\nok")
            assert target.noted() == [b"GET /a?b=c HTTP/1.1\r\nHost: home.tuunel:%d\r\n\r\n" % target.port]

    def test_hop_by_hop_fields_stay_behind(self, way: Doorway) -> None:
        fields = (
            "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nKeep-Alive: 5\r\nConnection: X-Mine, keep-alive\r\n"
            "X-Mine: 1\r\nCookie: a=b\r\nUpgrade: h2c\r\nTE: gzip\r\n"
        )
        with serving(answering(ok())) as target:
            exchange(way, get(target, fields=fields))
            assert target.noted() == [b"GET / HTTP/1.1\r\nHost: home.tuunel:%d\r\nCookie: a=b\r\n\r\n" % target.port]

    def test_the_answers_hop_by_hop_fields_stay_behind_too(self, way: Doorway) -> None:
        fields = b"Connection: X-Theirs\r\nX-Theirs: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: Basic\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        with serving(answering(ok(fields=fields))) as target:
            answer = exchange(way, get(target))
            assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nok"


class TestKeepAlive:
    def test_requests_to_one_host_share_a_connection(self, way: Doorway) -> None:
        with serving(answering(ok(b"1"), ok(b"2"))) as target, client(way) as sock:
            for expected in (b"1", b"2"):
                sock.sendall(get(target))
                assert read_http_answer(sock).body == expected
            assert len(way.requests) == 1

    def test_the_host_may_change(self, way: Doorway) -> None:
        with serving(answering(ok(b"one"))) as one, serving(answering(ok(b"two"))) as two, client(way) as sock:
            sock.sendall(get(one))
            assert read_http_answer(sock).body == b"one"
            sock.sendall(get(two))
            assert read_http_answer(sock).body == b"two"
            assert way.ends() == ["done"]

    def test_pipelined_requests_are_answered_in_order_one_at_a_time(self, way: Doorway) -> None:
        with serving(answering(ok(b"one"), ok(b"two"))) as one, serving(answering(ok(b"three"))) as two, client(way) as sock:
            sock.sendall(get(one, "/1") + get(one, "/2") + get(two, "/3"))
            assert [read_http_answer(sock).body for _ in range(3)] == [b"one", b"two", b"three"]

    def test_a_server_that_ended_the_idle_connection_is_dialled_anew(self, way: Doorway) -> None:
        with serving(answering(ok(b"x"), end=True)) as target, client(way) as sock:
            sock.sendall(get(target))
            read_http_answer(sock)
            assert way.ends() == ["done"]
            sock.sendall(get(target, method="POST", fields="Content-Length: 0\r\n"))
            assert read_http_answer(sock).body == b"x"
            assert len(way.requests) == 2

    def test_a_repeatable_request_that_meets_a_closing_server_is_sent_again(self, way: Doorway) -> None:
        def closes_at_the_second(sock: socket.socket, target: Target) -> None:
            read_head(sock)
            sock.sendall(ok(b"x"))
            read_head(sock)
            reset(sock)

        with serving(closes_at_the_second) as target, client(way) as sock:
            for _ in range(2):
                sock.sendall(get(target))
                assert read_http_answer(sock).body == b"x"
            assert len(way.requests) == 2

    def test_a_request_that_is_not_repeatable_is_not_sent_again(self, way: Doorway) -> None:
        def closes_at_the_second(sock: socket.socket, target: Target) -> None:
            read_head(sock)
            sock.sendall(ok(b"x"))
            read_head(sock)
            reset(sock)

        with serving(closes_at_the_second) as target, client(way) as sock:
            sock.sendall(get(target))
            read_http_answer(sock)
            sock.sendall(get(target, method="POST", fields="Content-Length: 0\r\n"))
            answer = read_http_answer(sock)
            assert answer.code == 502
            parsed = parse_proxy_status(answer.headers["proxy-status"])
            assert parsed is not None
            assert parsed[:2] == (Speaker.LOCAL, Reason.BAD_RESPONSE)
            assert len(way.requests) == 1


class TestBodies:
    @pytest.mark.parametrize("method", ["PUT", "POST"])
    def test_a_large_body_up_and_down(self, way: Doorway, method: str) -> None:
        body = os.urandom(LARGE)

        def origin(sock: socket.socket, target: Target) -> None:
            read_head(sock)
            received = read_exactly(sock, LARGE)
            sock.sendall(ok(received))

        with serving(origin) as target, client(way) as sock:
            sender = threading.Thread(target=sock.sendall, args=(get(target, method=method, fields=f"Content-Length: {LARGE}\r\n") + body,))
            sender.start()
            answer = read_http_answer(sock)
            sender.join()
            assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
            assert way.traffic[0].up > LARGE < way.traffic[0].down

    def test_chunks_and_trailers_both_ways(self, way: Doorway) -> None:
        def origin(sock: socket.socket, target: Target) -> None:
            target.note(read_head(sock))
            seen = b""
            while not seen.endswith(b"\r\n\r\n"):
                seen += read_exactly(sock, 1)
            target.note(seen)
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 2\r\nContent-Length: 9\r\n\r\n")

        request = "Transfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n"
        with serving(origin) as target, client(way) as sock:
            sock.sendall(get(target, method="POST", fields=request) + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n")
            head = read_http_head(sock)
            assert head.headers["transfer-encoding"] == "chunked"
            rest = b"3\r\nabc\r\n0\r\nX-Sum: 2\r\n\r\n"
            assert read_exactly(sock, len(rest)) == rest
            noted = target.noted(2)
            assert noted[1] == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
            assert b"TE: trailers\r\n" in bytes(noted[0])  # type: ignore[call-overload]

    def test_an_http_1_0_server_ends_its_body_by_closing(self, way: Doorway) -> None:
        with serving(answering(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nbody", end=True)) as target, client(way) as sock:
            sock.sendall(get(target))
            assert read_http_head(sock).headers["transfer-encoding"] == "chunked"
            rest = b"4\r\nbody\r\n0\r\n\r\n"
            assert read_exactly(sock, len(rest)) == rest

    def test_an_http_1_0_client_gets_no_chunks_and_an_end(self, way: Doorway) -> None:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX: y\r\n\r\n"
        with serving(answering(chunked)) as target, client(way) as sock:
            sock.sendall(f"GET http://home.tuunel:{target.port}/ HTTP/1.0\r\n\r\n".encode())
            assert read_to_end(sock) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody"

    @pytest.mark.parametrize(
        ("method", "answer"),
        [
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
        ],
    )
    def test_answers_without_body_keep_the_connection(self, way: Doorway, method: str, answer: bytes) -> None:
        with serving(answering(answer, ok(b"next"))) as target, client(way) as sock:
            sock.sendall(get(target, method=method))
            assert read_exactly(sock, len(answer)) == answer
            sock.sendall(get(target))
            assert read_http_answer(sock).body == b"next"


class TestExpect:
    def test_the_servers_100_comes_before_the_body_is_sent(self, way: Doorway) -> None:
        def origin(sock: socket.socket, target: Target) -> None:
            target.note(read_head(sock))
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            target.note(read_exactly(sock, 4))
            sock.sendall(ok())

        with serving(origin) as target, client(way) as sock:
            sock.sendall(get(target, method="PUT", fields="Content-Length: 4\r\nExpect: 100-continue\r\n"))
            assert read_http_head(sock).code == 100
            assert b"Expect: 100-continue\r\n" in bytes(target.noted()[0])  # type: ignore[call-overload]
            sock.sendall(b"body")
            assert read_http_answer(sock).code == 200
            assert target.noted(2)[1] == b"body"

    def test_a_final_answer_instead_arrives_and_ends_the_connection(self, way: Doorway) -> None:
        refusal = b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n"
        with serving(answering(refusal)) as target, client(way) as sock:
            sock.sendall(get(target, method="PUT", fields="Content-Length: 4\r\nExpect: 100-continue\r\n"))
            assert read_to_end(sock) == b"HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def test_an_answer_in_the_middle_of_a_large_upload_arrives(self, way: Doorway) -> None:
        def origin(sock: socket.socket, _target: Target) -> None:
            read_head(sock)
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                read_to_end(sock)

        with serving(origin) as target, client(way) as sock:
            sock.sendall(get(target, method="PUT", fields=f"Content-Length: {LARGE}\r\n") + b"x" * 100_000)
            answer = read_http_answer(sock)
            assert (answer.code, answer.body) == (413, b"big")


class TestUpgrade:
    REQUEST = "Connection: Upgrade\r\nUpgrade: websocket\r\n"

    def test_the_connection_becomes_a_pipe(self, way: Doorway) -> None:
        def origin(sock: socket.socket, target: Target) -> None:
            target.note(read_head(sock))
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
            echo(sock, target)

        with serving(origin) as target, client(way) as sock:
            sock.sendall(get(target, fields=self.REQUEST))
            answer = read_http_head(sock)
            assert (answer.code, answer.headers) == (101, {"connection": "Upgrade", "upgrade": "websocket"})
            assert read_exactly(sock, 5) == b"first"
            sock.sendall(b"\x00\xff")
            assert read_exactly(sock, 2) == b"\x00\xff"
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b""
            assert b"Connection: Upgrade\r\n" in bytes(target.noted()[0])  # type: ignore[call-overload]
            assert way.ends() == ["done"]

    def test_bytes_sent_before_the_101_are_not_lost(self, way: Doorway) -> None:
        def origin(sock: socket.socket, target: Target) -> None:
            target.note(read_head(sock))
            echo(sock, target)

        with serving(origin) as target, client(way) as sock:
            sock.sendall(get(target, fields=self.REQUEST) + b"abc")
            target.noted()
            target.accepted()[0].sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            assert read_http_head(sock).code == 101
            assert read_exactly(sock, 3) == b"abc"

    def test_a_refused_upgrade_is_an_ordinary_answer(self, way: Doorway) -> None:
        with serving(answering(ok(b"no"), ok(b"next"))) as target, client(way) as sock:
            sock.sendall(get(target, fields=self.REQUEST))
            assert read_http_answer(sock).body == b"no"
            sock.sendall(get(target))
            assert read_http_answer(sock).body == b"next"

    def test_a_101_that_nobody_asked_for_is_no_answer(self, way: Doorway) -> None:
        with serving(answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")) as target:
            assert exchange(way, get(target)).startswith(b"HTTP/1.1 502 ")


class TestTruth:
    @pytest.mark.parametrize("reason", Reason)
    def test_each_failure_has_its_page(self, way: Doorway, reason: Reason) -> None:
        way.failure = failure = Failure(reason, Speaker.RELAY, "<b>because</b>", retry_after=7)
        with client(way) as sock:
            sock.sendall(b"GET http://home.tuunel:80/ HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = read_http_answer(sock)
            assert read_to_end(sock) == b""
        assert answer.code == failure.answer.http
        assert parse_proxy_status(answer.headers["proxy-status"]) == (Speaker.RELAY, reason, "<b>because</b>")
        assert b"&lt;b&gt;because" in answer.body
        assert b"<b>" not in answer.body
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none';")

    @pytest.mark.parametrize(
        "part",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ],
    )
    @pytest.mark.parametrize("how", [reset, lambda sock: sock.shutdown(socket.SHUT_RDWR)])
    def test_a_server_that_dies_in_its_answer_is_a_reset(self, way: Doorway, part: bytes, how: Callable[[socket.socket], None]) -> None:
        with serving(answering(part)) as target, client(way) as sock:
            sock.sendall(get(target))
            read_http_head(sock)
            read_exactly(sock, 4)
            how(target.accepted()[0])
            with pytest.raises(ConnectionResetError):
                while sock.recv(100):
                    pass
            assert way.ends() == ["reset"]

    def test_a_close_delimited_answer_cut_by_a_reset_has_no_clean_end(self, way: Doorway) -> None:
        with serving(answering(b"HTTP/1.0 200 OK\r\n\r\nhalf")) as target, client(way) as sock:
            sock.sendall(get(target))
            read_http_head(sock)
            reset(target.accepted()[0])
            with pytest.raises(ConnectionResetError):
                while sock.recv(100):
                    pass

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70000])
    def test_no_valid_answer_is_a_page(self, way: Doorway, answer: bytes) -> None:
        with serving(answering(answer, end=True)) as target:
            assert exchange(way, get(target)).startswith(b"HTTP/1.1 502 ")
            assert way.ends() == ["BAD_RESPONSE"]

    def test_an_answer_with_two_lengths_is_not_passed_on(self, way: Doorway) -> None:
        both = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        with serving(answering(both)) as target:
            assert exchange(way, get(target)).startswith(b"HTTP/1.1 502 ")

    def test_a_client_that_resets_while_the_server_thinks_resets_the_server(self, way: Doorway) -> None:
        with serving(note_how_it_ends) as target:
            sock = doors.connect(way.address)
            sock.sendall(get(target))
            target.accepted()
            reset(sock)
            assert target.noted() == ["reset"]

    def test_a_client_that_resets_in_its_body_resets_the_server(self, way: Doorway) -> None:
        with serving(note_how_it_ends) as target:
            sock = doors.connect(way.address)
            sock.sendall(get(target, method="PUT", fields="Content-Length: 10\r\n") + b"half")
            target.accepted()
            reset(sock)
            assert target.noted() == ["reset"]

    def test_a_client_that_ends_in_its_body_resets_the_server(self, way: Doorway) -> None:
        with serving(note_how_it_ends) as target, client(way) as sock:
            sock.sendall(get(target, method="PUT", fields="Content-Length: 10\r\n") + b"half")
            sock.shutdown(socket.SHUT_WR)
            assert target.noted() == ["reset"]

    def test_a_client_that_ends_after_its_request_ends_the_servers_side_too(self, way: Doorway) -> None:
        with serving(note_how_it_ends) as target, client(way) as sock:
            sock.sendall(get(target))
            sock.shutdown(socket.SHUT_WR)
            assert target.noted() == ["end"]

    def test_a_stalled_server_and_a_client_that_aborts_leave_nothing(self, way: Doorway) -> None:
        with serving(hold, receive_buffer=4096) as target:
            sock = doors.connect(way.address)
            sock.sendall(get(target, method="PUT", fields=f"Content-Length: {1 << 30}\r\n"))
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    sock.sendall(b"x" * (1 << 20))
            reset(sock)
            assert way.ends(deadline=3) == ["reset"]

    def test_a_client_that_leaves_cancels_the_dial(self, way: Doorway) -> None:
        way.waiting = True
        with client(way) as sock:
            sock.sendall(b"GET http://home.tuunel/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert way.dialling.wait(10)
        assert way.cancelled.wait(10)


class TestOwnPages:
    def test_the_pac_file_and_the_help_page_on_one_door(self, way: Doorway) -> None:
        answer = exchange(way, b"GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n")
        assert b"\r\nContent-Type: application/x-ns-proxy-autoconfig\r\n" in answer
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer
        assert answer.endswith(b"\r\n\r\n" + PAC.encode())
        assert b"This is a tuunel proxy" in exchange(way, b"GET / HTTP/1.1\r\nHost: any\r\n\r\n")
        assert way.requests == []


def test_the_password_is_asked_of_every_request(anyio_backend: str) -> None:
    with doorway(anyio_backend, Credentials("ann", "pw")) as way, serving(answering(ok(b"in"))) as target, client(way) as sock:
        sock.sendall(get(target, fields="Proxy-Authorization: Basic YW5uOnB3\r\n"))
        assert read_http_answer(sock).body == b"in"
        sock.sendall(get(target))
        answer = read_http_answer(sock)
        assert (answer.code, answer.headers["proxy-authenticate"]) == (407, 'Basic realm="tuunel", charset="UTF-8"')
        assert b"Proxy-Authorization" not in bytes(target.noted()[0])  # type: ignore[call-overload]
