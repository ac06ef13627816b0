"""The guard against DNS rebinding: which bytes reach the target, in whatever pieces they come. docs/spec/forward.md section 4."""

from contextlib import suppress
from random import Random

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.errors import Failure, Reason, UsageError
from tuunel.hostguard import HostGuard, parse_hosts, refusal
from tuunel.httpproxy import HEAD_LIMIT

HOSTS = parse_hosts("localhost,home.tuunel,[::1],127.0.0.1")
GET = b"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: home.tuunel\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: LOCALHOST.\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: [::1]:8080\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
FOREIGN = b"GET / HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n"


def passed(data: bytes) -> bytes:
    """What a guard lets through of bytes that end within a body or between two requests."""
    guard = HostGuard(HOSTS)
    through = guard.receive_data(data)
    guard.receive_eof()
    return through


def refused(data: bytes) -> Failure:
    guard = HostGuard(HOSTS)
    with pytest.raises(Failure) as raised:
        guard.receive_data(data)
        guard.receive_eof()
    assert raised.value.reason is Reason.FORBIDDEN_HOST
    return raised.value


def get(*lines: bytes, version: bytes = b"1.1", target: bytes = b"/") -> bytes:
    return b"\r\n".join((b"GET %b HTTP/%b" % (target, version), *lines, b"", b""))


@pytest.mark.parametrize("request_", [GET, POST, CHUNKED, UPGRADE], ids=["GET", "POST", "chunked", "upgrade"])
def test_a_request_for_a_listed_host_passes_unchanged(request_: bytes) -> None:
    assert passed(request_) == request_


@pytest.mark.parametrize(
    "host", [b"localhost", b"localhost:1", b"LocalHost", b"localhost.", b"[::1]", b"[0:0::1]:80", b"127.0.0.1:80", b"home.tuunel"]
)
def test_case_port_and_a_last_dot_do_not_count(host: bytes) -> None:
    assert passed(get(b"Host: " + host))


@pytest.mark.parametrize(
    "head",
    [
        FOREIGN,
        get(b"Host: localhost.evil.example"),
        get(b"Host: evil.example:80#localhost"),
        get(b"Host: localhost@evil.example"),
        get(b"Host: localhost, evil.example"),
        get(b"Host: localhost:"),
        get(b"Host: "),
        get(b"Host: 127.1"),
        get(b"Host: \xff"),
        get(),
        get(version=b"1.0"),
        get(b"Host: localhost", b"Host: localhost"),
        get(b"Host: localhost", b"Host: evil.example"),
        get(b"Host: localhost", b"Host: localhost", version=b"1.0"),
        get(b"Host : localhost"),
        get(b"Host: localhost", target=b"http://evil.example/"),
        get(b"Host: localhost", target=b"http://localhost/"),
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    ],
)
def test_everything_else_is_refused(head: bytes) -> None:
    refused(head)


def test_the_refusal_names_the_host_as_it_came_without_what_a_terminal_would_obey() -> None:
    assert "evil.example:8080" in refused(FOREIGN).detail
    assert refused(get(b"Host: \x9b2J")).detail.isprintable()


@pytest.mark.parametrize("first", [GET, POST, CHUNKED], ids=["GET", "POST", "chunked"])
def test_each_request_of_a_connection_is_judged(first: bytes) -> None:
    assert passed(first + POST + GET) == first + POST + GET
    refused(first + FOREIGN)
    guard = HostGuard(HOSTS)
    assert guard.receive_data(first) == first
    with pytest.raises(Failure):
        guard.receive_data(FOREIGN)


def test_nothing_of_a_head_passes_before_it_is_judged() -> None:
    guard = HostGuard(HOSTS)
    assert guard.receive_data(GET[:-1]) == b""
    assert guard.receive_data(GET[-1:] + POST[:20]) == GET
    assert guard.receive_data(POST[20:-3]) == POST[:-3]
    assert guard.receive_data(POST[-3:]) == POST[-3:]


def test_a_request_in_a_body_is_a_body() -> None:
    body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(FOREIGN) + FOREIGN
    assert passed(body) == body


def test_behind_an_upgrade_nothing_is_looked_at() -> None:
    guard = HostGuard(HOSTS)
    assert guard.receive_data(UPGRADE + b"\x81\x05hello") == UPGRADE + b"\x81\x05hello"
    assert guard.receive_data(FOREIGN) == FOREIGN
    guard.receive_eof()


def test_an_upgrade_needs_a_listed_host_too() -> None:
    refused(UPGRADE.replace(b"[::1]", b"evil.example"))


def test_a_head_is_held_up_to_its_limit_and_not_beyond() -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
    guard = HostGuard(HOSTS)
    assert guard.receive_data(head + b"x" * (HEAD_LIMIT - len(head))) == b""
    with pytest.raises(Failure):
        guard.receive_data(b"x")


def test_a_body_of_any_size_is_not_held() -> None:
    guard = HostGuard(HOSTS)
    guard.receive_data(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
    for _ in range(10):
        assert guard.receive_data(bytes(HEAD_LIMIT)) == bytes(HEAD_LIMIT)
        assert not guard._held


@given(st.lists(st.sampled_from([GET, POST, CHUNKED]), max_size=4), st.booleans(), st.randoms())
def test_any_pieces_give_the_same_bytes(requests: list[bytes], upgraded: bool, random: Random) -> None:
    stream = b"".join(requests) + (UPGRADE + FOREIGN if upgraded else b"")
    guard = HostGuard(HOSTS)
    through, at = b"", 0
    while at < len(stream):
        size = random.randint(1, 40)
        through += guard.receive_data(stream[at : at + size])
        at += size
        assert stream.startswith(through)
    guard.receive_eof()
    assert through == stream


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_of_it_passes(data: bytes) -> None:
    guard = HostGuard(HOSTS)
    with suppress(Failure):
        assert guard.receive_data(data) == b""


def test_the_answer_is_a_403_that_says_what_to_do() -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "evil.example")]))
    client.send(h11.EndOfMessage())
    client.receive_data(refusal(Failure(Reason.FORBIDDEN_HOST, detail="evil.example<script>")))
    response, body = client.next_event(), client.next_event()
    assert isinstance(response, h11.Response)
    assert isinstance(body, h11.Data)
    assert response.status_code == 403
    assert (b"connection", b"close") in response.headers
    assert b"default-src 'none'" in dict(response.headers)[b"content-security-policy"]
    assert b"--http-hosts" in body.data
    assert b"<script>" not in body.data


def test_hosts_are_listed_with_commas() -> None:
    assert parse_hosts("Home.tuunel., localhost,::1") == {"home.tuunel", "localhost", "::1"}


@pytest.mark.parametrize("text", ["", "localhost,", ",", "a b", "localhost:8080", "[::1]:80", "http://localhost", "*", "b\u00fccher"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_hosts(text)
