"""The guard of --http-hosts, and what `nc` and scripts read of an answer: the head, and Proxy-Status."""

from collections import deque
from typing import Any, Final, cast

import h11

from tests.fuzz.harness import Choices, harness, pieces
from tests.fuzz.web import WORDS
from tuunel import netcat
from tuunel.address import HostPort
from tuunel.errors import Failure, NotRunning, Reason, Speaker
from tuunel.hostguard import HostGuard, parse_hosts, refusal
from tuunel.httpproxy import HEAD_LIMIT
from tuunel.proxystatus import MAX_DETAIL, parse_proxy_status, printable, proxy_status

_HOSTS: Final = parse_hosts("localhost,app.example")
_DENIED: Final = proxy_status(Failure(Reason.POLICY_DENIED, Speaker.AGENT, 'a "b"')).encode()
_ALLOWED: Final = b"GET / HTTP/1.1\r\nHost: localhost:80\r\n"


def _guarded(data: bytes, size: int) -> tuple[bytes, bool]:
    """What the guard lets through, and whether it refuses."""
    guard, through, given = HostGuard(_HOSTS), b"", 0
    try:
        for piece in pieces(data, size):
            given += len(piece)
            through += guard.receive_data(piece)
            assert len(guard._held) <= HEAD_LIMIT + len(piece)
            assert through + (b"" if guard._free else guard._held) == data[:given], "every byte goes on unchanged, or is held"
        guard.receive_eof()
    except Failure as failure:
        if failure.reason is not Reason.FORBIDDEN_HOST:
            raise
        if not refusal(failure).startswith(b"HTTP/1.1 403 "):
            raise AssertionError("a refusal is no page") from failure
        return through, True
    return through, False


@harness(
    max_length=1000,
    seeds=[
        b"\0" + _ALLOWED + b"\r\n",
        b"\5" + _ALLOWED + b"\r\n" + _ALLOWED.replace(b"localhost:80", b"evil.example") + b"\r\n",
        b"\0POST / HTTP/1.1\r\nHost: app.example\r\nContent-Length: 3\r\n\r\nabc" + _ALLOWED + b"\r\n",
        b"\3POST / HTTP/1.1\r\nHost: APP.example.\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
        b"\0" + _ALLOWED + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\nframes",
        b"\0GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0GET / HTTP/1.0\r\n\r\n",
        b"\0CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
    ],
    words=(*WORDS, b"localhost", b"app.example", b"evil.example"),
)
def host_guard(data: bytes) -> None:
    """Any bytes, in any pieces, go on unchanged or are held, at most one head, and every request that is let through has a listed host."""
    size, data = (data or b"\0")[0], data[1:]
    whole, refused = _guarded(data, 0)
    parts, refused_in_parts = _guarded(data, size)
    assert refused == refused_in_parts
    assert data.startswith(parts)
    assert parts.startswith(whole)
    for through in (whole, parts):
        _check_hosts(through)


def _check_hosts(through: bytes) -> None:
    """Another reader finds no request for an unlisted host in what went on."""
    while through:
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * HEAD_LIMIT)
        reader.receive_data(through)
        request = reader.next_event()
        assert isinstance(request, h11.Request), "only whole heads go on"
        hosts = [value for name, value in request.headers if name == b"host"]
        assert len(hosts) == 1
        assert HostPort.parse(hosts[0].decode(), 0).host.lower().removesuffix(".") in _HOSTS
        upgrade = any(name == b"connection" and b"upgrade" in value.lower() for name, value in request.headers)
        event: object = request
        while not isinstance(event, h11.EndOfMessage):
            event = reader.next_event()
            if event is h11.NEED_DATA:
                return
        if upgrade:
            return
        through = bytes(reader.trailing_data[0])


@harness(
    max_length=500,
    seeds=[
        b"\0\0connection refused",
        b'\3\1say "no" \\ to that',
        b"\0\0" + _DENIED,
        b'\0\0tuunel; error=x; details="local INTERNAL"',
    ],
    words=[b"tuunel; error=", b'; details="', b"local ", b"agent ", b"INTERNAL", b'\\"', b"\\\\"],
)
def proxy_status_value(data: bytes) -> None:
    """Any header value is a failure that we wrote or None, and any failure that we write is read back as it was, in one printable line."""
    choices = Choices(data)
    reason = list(Reason)[choices.byte() % len(Reason)]
    speaker = list(Speaker)[choices.byte() % len(Speaker)]
    text = choices.rest().decode("utf-8", "surrogateescape")
    known = parse_proxy_status(text)
    if known is not None:
        assert known[0] in Speaker
        assert known[1] in Reason
    written = proxy_status(Failure(reason, speaker, text))
    assert written.isascii()
    assert written.isprintable()
    detail = printable(text).encode("ascii", "replace").decode()
    assert parse_proxy_status(written) == (speaker, reason, detail)
    assert len(detail) <= MAX_DETAIL


class _Answers:
    """A proxy's socket that answers in these pieces, then ends."""

    def __init__(self, data: bytes, size: int) -> None:
        self._pieces = deque(pieces(data, size))

    def sendall(self, data: bytes) -> None:
        """Take the request."""

    def recv(self, size: int) -> bytes:
        """The next piece of the answer."""
        return self._pieces.popleft()[:size] if self._pieces else b""


_OK: Final = b"HTTP/1.1 200 Connection established\r\nTuunel-Connection: 7\r\n\r\nSSH-2.0"


@harness(
    max_length=1000,
    seeds=[
        b"\0" + _OK,
        b"\3" + _OK,
        b"\200" + _OK,
        b"\200",
        b"\0HTTP/1.1 403 Forbidden\r\nProxy-Status: " + _DENIED + b"\r\n\r\n",
        b"\0HTTP/1.1 502 Bad\r\n\r\n",
        b"\0",
    ],
    words=[b"HTTP/1.1 ", b"200 ", b"Tuunel-Connection: ", b"\r\n\r\n", b"Proxy-Status: "],
)
def nc_answer(data: bytes) -> None:
    """Any answer to nc's CONNECT is a connection's number and its first bytes, Failure, or NotRunning where nothing can have arrived."""
    size = (data or b"\0")[0]
    words = b"words" if size & 128 else b""
    door = cast("Any", _Answers(data[1:], size & 127))
    try:
        number, first = netcat._connect(door, HostPort("home.tuunel", 22), words)
    except Failure:
        return
    except NotRunning:
        assert not words
        assert len(data) <= 1
        return
    assert number >= 0
    assert data.count(first)
