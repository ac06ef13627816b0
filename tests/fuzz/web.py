"""The HTTP front door, and the responses of hostile servers that pass through it."""

import re
from contextlib import suppress
from typing import Final

import h11

from tests.fuzz.harness import Choices, harness, pieces
from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError
from tuunel.frontdoor import Credentials, Refused, Request
from tuunel.httpproxy import HEAD_LIMIT, Closed, DoorEvent, Forward, HttpDoor, HttpOrigin, Served

_CREDENTIALS: Final = Credentials("me", "secret")
_TOKEN: Final = b"bWU6c2VjcmV0"
WORDS: Final = (
    b"CONNECT ", b"GET ", b"HEAD ", b"POST ", b"OPTIONS ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"http://", b"home.tuunel", b"\r\n\r\n",
    b"Host: ", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: ", b"close", b"upgrade", b"Upgrade: ", b"websocket",
    b"Expect: 100-continue\r\n", b"Max-Forwards: ", b"Origin: ", b"TE: trailers\r\n", b"Proxy-Authorization: Basic ", b"0\r\n\r\n",
    b"Trailer: ", b"Keep-Alive: ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 \r\n", b"HTTP/1.1 100 \r\n", b"h2c",
)  # fmt: skip
_GET: Final = b"GET http://home.tuunel/a?b HTTP/1.1\r\nHost: x\r\n"


def _door(options: int) -> HttpDoor:
    return HttpDoor(_CREDENTIALS if options & 1 else None, local=bool(options & 2), pac=lambda: "function FindProxyForURL() {}")


class _Client:
    """A client's bytes at a door, which answers 204 to whatever it forwards: the events, with the early bytes of a CONNECT apart."""

    def __init__(self, door: HttpDoor) -> None:
        self.door = door
        self.events: list[object] = []
        self.carried = b""  # what the origin servers got
        self.said = b""
        self._origin: HttpOrigin | None = None
        self.over = False

    def feed(self, data: bytes) -> None:
        if self.over:
            if self.events and isinstance(self.events[-1], Request):
                self.carried += data
            return
        self.door.receive_data(data)
        self._drain()

    def end(self) -> None:
        if not self.over:
            self.door.receive_eof()
            self._drain()

    def _drain(self) -> None:
        try:
            while not self.over and (event := self.door.next_event()) is not None:
                self._take(event)
        except RemoteProtocolError:
            assert self._origin, "outside a body the door answers by itself"
            self.events.append("broken")
            self.over = True
        self.said += self.door.data_to_send()

    def _take(self, event: DoorEvent) -> None:
        match event:
            case Forward():
                self._origin = HttpOrigin()
                self.events.append(("forward", event.request, event.repeatable))
                self.carried += self._origin.request(event.head)
            case h11.Data():
                assert self._origin
                self.carried += self._origin.body(event)
            case h11.EndOfMessage():
                assert self._origin
                self.carried += self._origin.end(event)
                self.events.append("end")
                self._origin = None
                self.door.respond(h11.Response(status_code=204, headers=[]))
                self.door.end(h11.EndOfMessage())
                self.over = not self.door.start_next_cycle()
            case Request(target, door, early, local):
                self.events.append(Request(target, door, b"", local))
                self.carried += early
                self.door.accept()
                self.over = True
            case Refused() | Served() | Closed():
                self.events.append(event)
                self.over = True


def _talk(options: int, data: bytes, size: int) -> _Client:
    client = _Client(_door(options))
    for piece in pieces(data, size):
        client.feed(piece)
    client.end()
    return client


@harness(
    max_length=1000,
    seeds=[
        b"\0\0CONNECT home.tuunel:22 HTTP/1.1\r\nHost: home.tuunel:22\r\n\r\nSSH-2.0-x\r\n",
        b"\1\1CONNECT home.tuunel:22 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic " + _TOKEN + b"\r\n\r\nx",
        b"\1\0" + _GET + b"\r\n",
        b"\0\3" + _GET + b"\r\n" + _GET + b"Connection: close\r\n\r\n",
        b"\0\0POST http://[::1]:8080/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        b"\0\7POST http://h HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
        b"\0\0OPTIONS http://home.tuunel HTTP/1.1\r\nHost: x\r\nMax-Forwards: 3\r\n\r\n",
        b"\0\0" + _GET + b"Connection: upgrade, x\r\nX: y\r\nUpgrade: websocket, h2c\r\n\r\n",
        b"\0\0" + _GET + b"Origin: http://evil.example\r\n\r\n",
        b"\2\0GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n",
        b"\0\0HEAD / HTTP/1.0\r\n\r\n",
        b"\0\0\x16\3\1\2\0\1",
    ],
    words=WORDS,
)
def http_door(data: bytes) -> None:
    """Any bytes, in any pieces, are requests or one answered refusal; what is forwarded reads as one request to that host."""
    choices = Choices(data)
    options, size, data = choices.byte(), choices.byte(), choices.rest()
    whole = _talk(options, data, 0)
    parts = _talk(options, data, size)
    assert _plain(parts.events) == _plain(whole.events), "pieces change nothing"
    assert parts.said.partition(b"\r\n")[0] == whole.said.partition(b"\r\n")[0]
    if options & 1 and whole.carried:
        assert _TOKEN in data or re.search(rb"(?i)basic", data), "nobody comes in without the password"
    assert whole.events
    _check_carried(whole)


def _plain(events: list[object]) -> list[object]:
    """The events without what a refusal says: h11 tells hopeless bytes early, and then in other words."""
    return [event.reason if isinstance(event, Refused) else event for event in events]


def _check_carried(client: _Client) -> None:
    """Whoever gets a forwarded request reads the request that the door saw, and no second one behind its head."""
    first = client.events[0]
    if not (isinstance(first, tuple) and first[0] == "forward"):
        return
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * HEAD_LIMIT)
    server.receive_data(client.carried[: client.carried.index(b"\r\n\r\n") + 4])
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert request.target.startswith(b"/") or request.target == b"*"
    hosts = [value for name, value in request.headers if name == b"host"]
    assert len(hosts) == 1
    assert HostPort.parse(hosts[0].decode().removesuffix(":"), 80) == first[1].target
    assert not {name for name, _ in request.headers} & {b"proxy-authorization", b"proxy-connection", b"keep-alive", b"http2-settings"}


_REQUESTS: Final = (
    _GET + b"\r\n",
    b"HEAD http://home.tuunel/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://home.tuunel/ HTTP/1.0\r\n\r\n",
    _GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST http://home.tuunel/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST http://home.tuunel/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel",
    _GET + b"Connection: close\r\n\r\n",
)


@harness(
    max_length=1000,
    seeds=[
        bytes([index, size]) + response
        for index, size in ((0, 0), (1, 3), (2, 0), (3, 7), (4, 0), (5, 1), (6, 0))
        for response in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nConnection: x\r\nX: y\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nframes",
            b"HTTP/1.1 426 U\r\nUpgrade: h3\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 304 Not\r\nContent-Length: 9\r\n\r\n",
        )
    ],
    words=WORDS,
)
def http_response(data: bytes) -> None:
    """Any response of a server is passed on as a response that a client can read, or is RemoteProtocolError; never our own mistake."""
    choices = Choices(data)
    sent, size, data = _REQUESTS[choices.byte() % len(_REQUESTS)], choices.byte(), choices.rest()
    door, origin = _door(0), HttpOrigin()
    door.receive_data(sent)
    forward = door.next_event()
    assert isinstance(forward, Forward)
    origin.request(forward.head)
    complete = False
    while (event := door.next_event()) is not None:
        if isinstance(event, h11.Data):
            origin.body(event)
        elif isinstance(event, h11.EndOfMessage):
            origin.end(event)
            complete = True
            break
    with suppress(RemoteProtocolError):
        _pass_on(door, origin, data, size, complete=complete)


def _pass_on(door: HttpDoor, origin: HttpOrigin, data: bytes, size: int, *, complete: bool) -> None:
    for piece in [*pieces(data, size), b""]:
        if piece:
            origin.receive_data(piece)
        else:
            origin.receive_eof()
        while (event := origin.next_event()) is not None:
            match event:
                case h11.InformationalResponse():
                    if event.status_code == 101 and not complete:
                        return  # the exchange refuses it: docs/spec/front-doors.md section 5
                    door.inform(event)
                    if event.status_code == 101:
                        return
                case h11.Response():
                    door.respond(event)
                case h11.Data():
                    door.body(event)
                case h11.EndOfMessage():
                    door.end(event)
                    assert not re.search(rb"(?im)^(proxy-connection|keep-alive):", door.data_to_send().partition(b"\r\n\r\n")[0])
                    origin.start_next_cycle()
                    door.start_next_cycle()
                    return
